"""The errors that are the user's to mend: shown as one clear line, with exit status 2."""


class UserError(Exception):
    """Something outside the program is wrong; ``str()`` says what, where and what to do."""
