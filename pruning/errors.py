"""What a user of the scripts is meant to read: one sentence, not a traceback."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

OF_THE_SYSTEM = {  # what a user can mend: a full or read-only disk, a path that may not be used
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
    *(errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.EIO),
}


class UserError(SystemExit):
    """Something only the user can mend: a missing folder, a wrong setting, a stale cache.

    As a `SystemExit` that carries a sentence it ends a script with status 1 and that sentence on
    standard error, without a traceback.
    """


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's main. A fault of the project's own keeps its traceback.

    Exit status 1 with a sentence for a UserError and for a file that the system refuses, 130 for Ctrl-C, 1
    without a message when the reader of the output is gone (a broken pipe).
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="replace")  # a console may lack a letter
    try:
        main()
        print(end="", flush=True)
    except KeyboardInterrupt:
        if not hasattr(sys.stdout, "reconfigure"):  # a notebook goes on
            raise
        with suppress(OSError):  # Ctrl-C stops a reader of the output too
            print(end="", flush=True)
            print("\nStopped. What is finished is kept: start the script again to go on.", file=sys.stderr)
        os._exit(130)  # at once: threads of a tokenizer or a loader would go on
    except BrokenPipeError:
        _throw_away(sys.stdout, sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in OF_THE_SYSTEM:
            raise
        if error.filename is None:  # it was standard output: a file that is written has a UserError
            _throw_away(sys.stdout)
        raise UserError(f"{error.filename or 'standard output'}: {error.strerror}") from None


def _throw_away(*streams: TextIO) -> None:
    """Sends what is still to be written nowhere: Python would try again at its end, and complain."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
