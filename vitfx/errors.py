"""What a user can mend is told apart from what is a defect."""


class UserError(Exception):
    """Something the user can mend: one sentence with what was wrong, its value, and what to do.

    Commands print it without a traceback and exit with code 2.
    """
