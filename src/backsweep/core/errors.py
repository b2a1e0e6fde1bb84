"""The errors that a user can mend. Everything else that is raised is a defect of ours."""


class BacksweepError(Exception):
    """Base of all errors that Backsweep raises on purpose."""


class BadInput(BacksweepError):
    """A model, data set, setting or folder cannot be used.

    The message is one line: what is wrong, and how to mend it. The command line prints it
    and ends with exit status 2.
    """
