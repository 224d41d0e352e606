"""The errors that are the user's to mend: shown as one clear line, with exit status 2."""


class UserError(Exception):
    """Something outside the program is wrong; ``str()`` says what, where and what to do.

    It is one line without control characters, whatever a file's name or content put into it.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """The text with everything unprintable escaped."""
    # An allow list: besides newlines this catches terminal escapes, bidi marks and surrogates.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
