"""The command line: thin commands, heavy imports inside them."""

import sys


def main() -> None:
    """Run a command; a SanakitError becomes its message on standard error and its exit code, never a traceback."""
    from sanakit.cli import info, swap  # noqa: F401  they add their commands
    from sanakit.cli.app import app
    from sanakit.errors import SanakitError

    try:
        app()
    except SanakitError as error:
        print(error, file=sys.stderr)
        print(f"  more:  sanakit explain {error.code}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
