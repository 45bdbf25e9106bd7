"""The command line: thin commands, heavy imports inside them."""

import errno
import sys
from typing import NoReturn

# what the system says when a file or folder cannot be used; any other OSError is a defect and keeps its traceback
UNUSABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
UNUSABLE |= {errno.EEXIST, errno.ENAMETOOLONG}


def main() -> None:
    """Run a command; a SanakitError becomes its message on standard error and its exit code, never a traceback."""
    from sanakit.cli import data, drift, export, info, swap, train  # noqa: F401  they add their commands
    from sanakit.cli.app import app
    from sanakit.errors import SanakitError

    try:
        app()
    except SanakitError as error:
        _stop(error, error.code, error.exit_code)
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        refused = SanakitError("SK0903", str(error), cause="The system refuses to read or write there.")
        _stop(refused, refused.code, refused.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _stop(error: Exception, code: str, exit_code: int) -> NoReturn:
    print(error, file=sys.stderr)
    print(f"  more:  sanakit explain {code}", file=sys.stderr)
    sys.exit(exit_code)
