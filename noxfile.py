"""Sessions of a contributor: `nox -s tests`, `nox -s lint typing`."""

import nox

nox.options.sessions = ["lint", "typing", "tests"]


@nox.session
def demo(session: nox.Session) -> None:
    """Run the main job on the embedded world, as the README does."""
    session.install("-e", ".[demo]")
    session.run("sanakit", "swap-vae", "--candidate", "dc-f16c16", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite, as CI does."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("ruff>=0.8")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types of the whole package; pyproject.toml names the modules that are checked strictly."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def kills(session: nox.Session) -> None:
    """Kill checkpoints, the race and `encode` fifty times each: nothing is lost, nothing is made twice."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-m", "slow or not slow", "-k", "fifty_kills", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated pages, docs/codes.md and docs/zoo.md; CI checks that they are current."""
    session.install("-e", ".[test]")
    session.run("python", "experiments/write_docs.py")
