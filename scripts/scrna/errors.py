"""Errors that a user can mend."""


class UserError(ValueError):
    """Something in the data, the config or the machine that the user can put right.

    The message names the dataset, file or config key, says what was found and what was expected,
    and what to do next. `scrna.rule.report` shows it without a traceback; the log has both.
    """
