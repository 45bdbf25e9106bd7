"""`python -m sanakit`: the command line."""

from sanakit.cli import main

if __name__ == "__main__":
    main()
