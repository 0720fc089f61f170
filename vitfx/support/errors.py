"""What a user can mend is told apart from what is a defect."""


class UserError(Exception):
    """Something the user can mend: one sentence with what was wrong, its value, and what to do.

    Commands print it without a traceback and exit with code 2.
    """


class NothingPrunable(UserError):
    """A graph without a sublayer, as an artifact is from which all were deleted."""

    def __init__(self) -> None:
        super().__init__("no attention and no MLP is left in the model: give one that has something to take apart")


def in_a_line(value: object) -> str:
    """A library's error, or a value out of a file, as part of a sentence: without line breaks, 300 letters at most."""
    return " ".join(str(value).split())[:300] or type(value).__name__
