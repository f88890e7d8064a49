"""The one exception for mistakes a user can mend: mains print its message as one line and exit, without a traceback."""


class UserError(Exception):
    """A rule that the input breaks. The message says the rule, the value got, and the config key or file to change."""
