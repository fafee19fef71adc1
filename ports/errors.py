"""The one exception for what a user can put right: its text says what, got, expected and what to do next."""


class UserError(ValueError):
    """A mistake in what was asked for, never a defect of this package. The command line prints it as one line."""
