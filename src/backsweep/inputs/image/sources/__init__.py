"""Where images are read from: a module for each kind of file or folder."""
