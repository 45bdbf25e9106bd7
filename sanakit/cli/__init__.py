"""The command line: thin commands, heavy imports inside them."""

import os
import select
import sys
from typing import NoReturn, TextIO

from sanakit.errors import SanakitError

BROKEN_PIPE = 141  # 128 + SIGPIPE: nobody reads any more


def main() -> None:
    """Run a command. A SanakitError becomes its message on standard error and its exit code; any other error one line
    (SK0999), exit code 5 and a file that holds the traceback."""
    from sanakit.cli.output import document_alone, tolerate_locale
    from sanakit.cli.silence import silence_libraries

    tolerate_locale()
    if "--verbose" not in sys.argv[1:]:
        silence_libraries()
    with document_alone("--json" in sys.argv[1:]):
        try:
            _run()
        except SanakitError as error:
            _stop(error)
        except BrokenPipeError as error:
            _nobody_reads(error)
        except KeyboardInterrupt:
            sys.exit(130)
        except BaseException as error:  # a panic of a Rust extension is no Exception
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

    if is_main() or error.code == LOST:
        print(f"{error}\n  more:  sanakit explain {error.code}", file=sys.stderr)
    else:
        print(f"rank {rank()}: {str(error).splitlines()[0]}", file=sys.stderr)
    sys.exit(error.exit_code)


def _nobody_reads(error: BrokenPipeError) -> NoReturn:
    """As when `head` has seen enough: what is still buffered goes nowhere. Another broken pipe is an error like any."""
    if not _closed(sys.__stdout__):
        _unforeseen(error)
    assert sys.__stdout__ is not None
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    sys.exit(BROKEN_PIPE)


def _closed(stream: TextIO | None) -> bool:
    """Whether the other end of a pipe is closed; taken for granted where the system cannot tell."""
    try:
        if stream is None or not hasattr(select, "poll"):
            return stream is not None
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
