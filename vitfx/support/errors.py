"""Errors that a user can fix, as opposed to defects."""


class UserError(Exception):
    """Something the user can fix: one sentence with what was wrong, its value, and what to do.

    Commands print it without a traceback and exit with code 2.
    """


class NothingPrunable(UserError):
    """A graph without sublayers, such as an artifact from which all were deleted."""

    def __init__(self) -> None:
        super().__init__("the model has no attention and no MLP left: give one that has something to prune")
