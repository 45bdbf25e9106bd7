"""Sessions of a contributor: `nox -s tests`, `nox -s lint typing`, `nox -s notebook site`."""

import nox

nox.options.sessions = ["lint", "typing", "tests"]


@nox.session
def demo(session: nox.Session) -> None:
    """Run the main job on the embedded world, as the README does."""
    session.install("-e", ".[demo]")
    session.run("sanakit", "swap-vae", "--candidate", "pca-f16c32", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite, as CI does."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes each: every embedded component through stage smoke, kernels at Sana's shapes."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", "-m", "slow and not gpu and not network", *session.posargs)


@nox.session
def real_size(session: nox.Session) -> None:
    """Swap a VAE at Sana-0.6B's width with random weights on the fake accelerator: about an hour, 7 GB."""
    session.install("-e", ".[test]")
    session.run("python", "experiments/benchmarks/real_size.py", "--out", "runs/real_size", "--device", "fake")


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
    """Kill checkpoints, the race, `encode` and stage full fifty times each (SANAKIT_KILLS): nothing is lost."""
    session.install("-e", ".[test]")
    session.run(
        "python", "-m", "pytest", "-m", "slow or not slow", "-k", "fifty_kills or random_kills", *session.posargs
    )


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated pages, docs/codes.md and docs/zoo.md; CI checks that they are current."""
    session.install("-e", ".[test]")
    session.run("python", "experiments/write_docs.py")


@nox.session
def site(session: nox.Session) -> None:
    """Build the documentation site into build/site, with what `notebook` has executed; a dead link is an error."""
    session.install("mkdocs-material>=9.5", "mkdocstrings[python]>=1.0", "ruff>=0.8")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def notebook(session: nox.Session) -> None:
    """Run the tutorial and the guide to the library, or the pages that are named, as notebooks; it takes minutes."""
    session.install("-e", ".[demo]", "nbclient>=0.11", "nbconvert>=7.16", "nbformat>=5.10", "ipykernel>=6.29")
    for page in session.posargs or ["docs/tutorial.md", "docs/library.md"]:
        out = f"build/notebook/{page.rpartition('/')[2].removesuffix('.md')}.ipynb"
        session.run("python", "experiments/make_notebook.py", page, out, "--execute", "--html")
