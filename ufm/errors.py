"""The two ways a command ends badly. Neither ever reaches a user as a traceback."""


class RequestError(ValueError):
    """What was asked for is wrong: one line naming the value, the rule and the remedy. Exit status 2."""


class RunError(RuntimeError):
    """What was asked for is right but could not be done (a corrupt file, no space, every cell diverged). Exit status 1."""
