"""cache: list, verify and prune the store of latents and embeddings."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli.app import Application, app
from sanakit.cli.output import print_json
from sanakit.errors import ExitCode, SanakitError
from sanakit.inventory import Item, State, in_work, remove, scan

DAY = 86_400
FRESH = 600  # seconds within which a half-written file may still be written to

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")]
Folder = Annotated[Path | None, typer.Argument(help="A folder that `encode` filled; default the user's cache.")]

cache = Application(help="The store of latents and embeddings.", no_args_is_help=True)
app.add_typer(cache, name="cache")


@cache.command("ls")
def cache_ls(folder: Folder = None, as_json: AsJson = False) -> None:
    """Every entry with its facts and size; a damaged or an unfinished one says so."""
    items = scan(_root(folder))
    if as_json:
        print_json([item.as_dict() for item in items])
        return
    for item in items:
        typer.echo(_line(item))


@cache.command("verify")
def cache_verify(folder: Folder = None, as_json: AsJson = False) -> None:
    """Hash every shard; exit code 1 and the shard's name where one is damaged."""
    items = [item for item in scan(_root(folder)) if item.state != State.UNFINISHED]
    wrong = [line for item in items for line in _damage(item)]
    if as_json:
        print_json({"entries": len(items), "damage": wrong})
    else:
        typer.echo("\n".join(wrong) or f"{len(items)} entries, every shard whole")
    raise typer.Exit(ExitCode.GATE_FAILED if wrong else ExitCode.PASSED)


@cache.command("prune")
def cache_prune(
    folder: Folder = None,
    days: Annotated[float | None, typer.Option("--older-than", min=0, help="Also whole entries of more days.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Also damaged entries (hashes all).")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove unfinished entries of latents and embeddings, and by option old or damaged ones, after asking.

    Nothing else in the folder is touched: your own files, converted checkpoints, packaged encoders, and the files for
    `sanakit drift` that lie beside an entry stay.
    """
    chosen = [(item, reason) for item in scan(_root(folder)) if (reason := _reason(item, days, damaged))]
    rows = [_row(item, reason) for item, reason in chosen]
    going = [(item, row) for (item, _), row in zip(chosen, rows, strict=True) if not row["kept"]]
    if not as_json:
        _show(rows)
    can_ask = not as_json and _terminal()
    agreed = yes or (bool(going) and can_ask and _ask(len(going), sum(item.nbytes for item, _ in going)))
    failed = [row for item, row in going if agreed and not _remove(item, row)]
    if as_json:
        print_json({"entries": rows, "removed": [row["folder"] for row in rows if row["removed"]]})
    elif agreed:
        for _, row in going:
            typer.echo(f"removed {row['folder']}" if row["removed"] else f"kept {row['folder']}: {row['kept']}")
    if going and not yes and not can_ask:
        raise SanakitError("SK0410", f"entries that could be removed: {len(going)}, removed: none")
    if going and not agreed:
        typer.echo("nothing was removed")
    if failed:
        raise SanakitError("SK0411", f"{failed[0]['folder']}: {failed[0]['kept']}")


def _root(folder: Path | None) -> Path:
    from sanakit.files import cache_dir

    if folder is not None and not folder.is_dir():
        raise SanakitError(
            "SK0404",
            f"{folder} is not a folder",
            cause="A cache is a folder that `sanakit encode` filled.",
            fix="Name the --out of `sanakit encode`.",
        )
    return folder or cache_dir()


def _damage(item: Item) -> list[str]:
    """What is wrong, every shard hashed."""
    return item.entry.damage() if item.entry else [item.detail]


def _reason(item: Item, days: float | None, damaged: bool) -> str:
    """Why an entry is to go; empty where it stays."""
    if item.state == State.UNFINISHED:
        return "unfinished"
    wrong = _damage(item) if damaged else []
    if wrong:
        return f"damaged: {wrong[0]}"
    old = item.entry is not None and days is not None and item.age > days * DAY
    return f"{item.age / DAY:,.1f} days old" if old else ""


def _row(item: Item, reason: str) -> dict[str, Any]:
    kept = ""
    if item.foreign:
        kept = f"it holds {item.foreign[0]}, which is not ours"
    elif item.path.is_dir() and in_work(item.path):
        kept = "a process is filling it"
    elif item.path.is_file() and item.age < FRESH:
        kept = "a process may be writing it"
    return item.as_dict() | {"reason": reason, "age_seconds": round(item.age), "kept": kept, "removed": False}


def _remove(item: Item, row: dict[str, Any]) -> bool:
    try:
        remove(item)
    except OSError as error:
        row["kept"] = f"{type(error).__name__}: {error}"
        return False
    row["removed"] = True
    return True


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(count: int, size: int) -> bool:
    """Asks on standard error and reads one line; the end of the input is a no."""
    sys.stderr.write(f"Remove {count} entries, {megabytes(size)}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        written = f"last written {_span(row['age_seconds'])} ago"
        stays = f"  stays: {row['kept']}" if row["kept"] else ""
        typer.echo(f"{row['folder']}  {megabytes(row['bytes'])}  {row['reason']}, {written}{stays}")
    if not rows:
        typer.echo("nothing to remove")


def _line(item: Item) -> str:
    if item.entry is None:
        return f"{item.path}  {megabytes(item.nbytes)}  {item.state}{': ' if item.detail else ''}{item.detail}"
    facts = ", ".join(f"{k} {str(v)[:12]}" for k, v in item.entry.facts.items() if k not in ("kind", "libraries"))
    state = "" if item.state == State.WHOLE else f"  {item.state}: {item.detail}"
    return f"{item.path}  {item.entry.manifest['count']:,} rows  {megabytes(item.nbytes)}  {facts}{state}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _span(seconds: float) -> str:
    for unit, length in (("days", DAY), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} seconds"
