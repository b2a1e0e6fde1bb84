"""What `backsweep demo` shows, a file for each kind of input: networks, told apart, in a minute."""
