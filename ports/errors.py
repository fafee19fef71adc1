"""The one exception for what a user can put right, and text from others made safe to print."""


class UserError(ValueError):
    """A mistake in what was asked for, never a defect of this package. The command line prints it as one line."""


def printable(text: str) -> str:
    """Return a text in which every character can be seen; letters of every script stay as they are.

    Names from a file may hold escape sequences, line ends and marks that turn the direction of writing: printed raw
    they forge lines of a report.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
