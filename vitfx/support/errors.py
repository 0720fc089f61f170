"""What a user can mend is told apart from what is a defect."""


class UserError(Exception):
    """Something the user can mend: one sentence with what was wrong, its value, and what to do.

    Commands print it without a traceback and exit with code 2.
    """


class NothingPrunable(UserError):
    """A graph without a sublayer, as an artifact is from which all were deleted."""

    def __init__(self) -> None:
        super().__init__("no attention and no MLP is left in the model: give one that has something to take apart")
