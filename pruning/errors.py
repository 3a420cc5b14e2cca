"""The one error that a user of the scripts is meant to read."""


class UserError(SystemExit):
    """Something only the user can mend: a missing folder, a wrong setting, a stale cache.

    As a `SystemExit` that carries a sentence it ends a script with status 1 and that sentence on
    standard error, without a traceback.
    """
