"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input, told in one line that names the file, field or value and the way out.

    The doors print it and exit 1; a traceback is kept for defects (or `--debug`).
    """
