"""The exception for mistakes that a user can correct: mains print its message as one line, without a traceback."""


class UserError(Exception):
    """A rule that the input breaks. The message states the rule, the value got, and the config key or file to
    change.
    """
