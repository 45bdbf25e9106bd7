"""The command line: thin commands, heavy imports inside them."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from sanakit.errors import SanakitError

BROKEN_PIPE = 141  # 128 + SIGPIPE: nobody reads any more


def main() -> None:
    """Run a command. A SanakitError becomes its message on standard error and its exit code; any other error one line
    (SK0999), exit code 5 and a file that holds the traceback."""
    from sanakit.cli.output import document_alone, open_streams, tolerate_locale
    from sanakit.cli.silence import silence_libraries
    from sanakit.tracebacks import nobody_reads

    open_streams()
    tolerate_locale()
    if "--verbose" not in sys.argv[1:]:
        silence_libraries()
    with document_alone("--json" in sys.argv[1:]):
        try:
            _run()
        except SanakitError as error:
            _stop(error)
        except KeyboardInterrupt:
            sys.exit(130)
        except BaseException as error:  # a panic of a Rust extension is no Exception
            if nobody_reads(error):
                _stop_unread()
            _unforeseen(error)


def _run() -> None:
    # each adds its commands
    from sanakit.cli import cache, data, drift, evaluate, export, info, new, results, swap, train, translate  # noqa: F401
    from sanakit.cli.app import Unforeseen, app

    try:
        app()
    except Unforeseen as wrapper:
        assert wrapper.__cause__ is not None
        raise wrapper.__cause__ from None
    finally:
        sys.stdout.flush()


def _unforeseen(error: BaseException) -> NoReturn:
    from sanakit.tracebacks import of_environment, plugin_of, stops, told

    if isinstance(error, SystemExit) and (stops(error) or not getattr(error, "raised_inside", False)):
        raise error
    refused = of_environment(error)
    if refused is not None:
        _stop(refused)
    plugin = plugin_of(error)
    account = told(error)
    _stop(SanakitError("SK0114", f"{plugin}: {account}") if plugin else SanakitError("SK0999", account))


def _stop(error: SanakitError) -> NoReturn:
    """In full; in one line where rank 0 has most likely met and said the same."""
    from sanakit.distributed import is_main, rank
    from sanakit.ranks.lost import LOST

    with suppress(BrokenPipeError):  # nobody reads it: the exit code is all that is left to say
        if is_main() or error.code == LOST:
            print(f"{error}\n  more:  sanakit explain {error.code}", file=sys.stderr)
        else:
            print(f"rank {rank()}: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit(error.exit_code)


def _stop_unread() -> NoReturn:
    """As when `head` has seen enough: what is still buffered goes nowhere."""
    assert sys.__stdout__ is not None
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    sys.exit(BROKEN_PIPE)
