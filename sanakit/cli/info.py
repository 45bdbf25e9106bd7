"""ls, describe, doctor, explain: what there is and whether it works. Only describe and doctor import torch."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sanakit.cli import completion
from sanakit.cli.app import app
from sanakit.cli.output import print_json
from sanakit.errors import CODES, ExitCode, SanakitError, did_you_mean
from sanakit.registry import PACKAGES, Registry

BASES = "bases"
WITH_THE_ROW = "what its row of a validation names"
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def registries() -> dict[str, Registry[Any]]:
    """Fresh registries for listing: the source scan needs no import of the components."""
    return {kind: Registry(kind) for kind in PACKAGES}


def base_cards() -> dict[str, dict[str, Any]]:
    """The packaged bases with their cards."""
    cores = Path(__file__).parent.parent / "assets" / "cores"
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(cores.glob("*/card.json"))
    }


def base_row(name: str, card: dict[str, Any]) -> dict[str, Any]:
    title = f"{card['image_size']} px, {card['vae']}, {card['text_encoder']}"
    row = {"kind": BASES, "name": name, "title": title, "origin": "builtin", "embedded": True}
    return row | {"licence": card.get("licence", ""), "error": None}


@app.command("ls")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(help=", ".join([*PACKAGES, BASES]), autocompletion=completion.kinds)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every registered name, plugins included, and every packaged base; nothing is imported for it."""
    kinds = [*PACKAGES, BASES]
    if kind is not None and kind not in kinds:
        raise SanakitError("SK0101", f"no kind {kind!r}{did_you_mean(kind, kinds)}; known: {', '.join(kinds)}")
    rows = [base_row(name, card) for name, card in base_cards().items()] if kind in (None, BASES) else []
    rows += [
        entry.as_dict()
        for name, registry in registries().items()
        if kind in (None, name)
        for entry in registry.entries().values()
    ]
    if as_json:
        print_json(rows)
        return
    heading = ""
    for row in rows:
        if row["kind"] != heading:
            heading = row["kind"]
            typer.secho(("" if row is rows[0] else "\n") + heading, bold=True)
        origin = "" if row["origin"] == "builtin" else f"  from {row['origin']}"
        licence = f"  ({row['licence']})" if row["licence"] else ""
        typer.echo(f"  {row['name']:<28} {row['title']}{licence}{origin}")
        if row["error"]:
            typer.secho(f"  {'':<28} error: {row['error']}", fg="red")


@app.command()
def describe(name: Annotated[str, typer.Argument(help="A name of `sanakit ls`.")], as_json: AsJson = False) -> None:
    """The facts of one name; for a trained component its card."""
    known, bases = registries(), base_cards()
    if name in bases:
        card = {key: value for key, value in bases[name].items() if key != "curve"}
        _print_facts(base_row(name, bases[name]) | {"card": card}, as_json=as_json)
        return
    holders = [registry for registry in known.values() if name in registry.entries()]
    if not holders:
        if name.startswith(("path:", "hub:")):
            raise SanakitError(
                "SK0101",
                f"{name!r} is no name of `sanakit ls`",
                cause="`describe` states what the registry knows; files are measured, not described.",
                fix="`sanakit validate --stage component --base none --vae path:DIR` measures a VAE, "
                "--text-encoder a text encoder.",
            )
        every = [*bases, *(other for registry in known.values() for other in registry.entries())]
        raise SanakitError("SK0101", f"nothing is named {name!r}{did_you_mean(name, every)}")
    from sanakit.tracebacks import guarded

    facts = holders[0].entries()[name].as_dict()
    more, error = guarded(lambda: _facts(holders[0].get(name), name))
    if error is not None:
        facts["error"] = holders[0].blame(name, error)[1]
    facts |= more or {}
    if facts["kind"] == "datasets" and not facts["error"]:
        facts["data"] = _data_facts(name)
    _print_facts(facts, as_json=as_json)


def _data_facts(name: str) -> dict[str, Any]:
    """How many images, sizes, captions an image with examples, and what was set aside."""
    from sanakit.data import load_images
    from sanakit.data.describe import describe as describe_data

    return describe_data(load_images(name))


def _print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if value not in (None, "", []):
            text = json.dumps(value, indent=2) if isinstance(value, dict) else value
            typer.echo(f"{key}: {text}")


def _facts(item: Any, name: str) -> dict[str, Any]:
    """What the record of a registered object states; whatever a plugin's object raises is the caller's to tell."""
    facts: dict[str, Any] = {"documentation": (item.__doc__ or "").strip()}
    stated = (
        "hub",
        "revision",
        "spec",
        "stats",
        "initialise",
        "scales",
        "learning_rate",
        "text_learning_rate",
        "better",
    )
    for key in stated:
        value = getattr(item, key, None)
        if value is not None:
            facts[key] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    card = getattr(item, "card_path", Path(__file__).parent.parent / "assets" / "vaes" / name / "card.json")
    if card.is_file():
        facts["card"] = json.loads(card.read_text(encoding="utf-8"))
        facts["card"].pop("curve", None)
    return facts


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, known-vulnerable floors, disk, memory, GPU, plugins; each line with a fix."""
    from sanakit.doctor import examine

    rows = examine(registries())
    if as_json:
        print_json(rows)
    else:
        marks = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}
        for row in rows:
            typer.echo(
                f"{marks[row['status']]}  {row['check']}: {row['detail']}"
                + (f"\n      fix: {row['fix']}" if row["fix"] else "")
            )
    if any(row["status"] == "fail" for row in rows):
        raise typer.Exit(ExitCode.ENVIRONMENT)


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="A code such as SK0203, or a gate such as component/shift.")],
) -> None:
    """What a code of an error or a gate means, why it happens and how to mend it."""
    entry = CODES.get(code.upper())
    if entry is not None:
        typer.echo(f"{code.upper()}: {entry.title}\n  why: {entry.why}\n  fix: {entry.fix}")
        return
    from sanakit.checks.base import GATES, rule_of

    gates = GATES.entries()
    matching = (
        [gates[code]] if code in gates else [e for e in gates.values() if _code_of(rule_of(e.name)) == code.upper()]
    )
    if not matching:
        known = [*CODES, *gates]
        raise SanakitError("SK0108", f"no code or gate {code!r}{did_you_mean(code, known)}")
    for gate in matching:
        typer.echo(_gate_text(gate, rule_of(gate.name)))


def _code_of(rule: Any) -> str:
    return "" if rule is None else str(rule.code).upper()


def _gate_text(gate: Any, rule: Any) -> str:
    """A gate in words: what it asks, its thresholds, and what its code says where sanakit knows it."""
    origin = "" if gate.origin == "builtin" else f", of {gate.origin}"
    lines = [f"{gate.name}{origin}: {gate.title}"]
    if rule is not None:
        side = "at most" if not rule.at_least else "above" if rule.above else "at least"
        lines.append(f"  measures: {rule.metric or WITH_THE_ROW}")
        lines.append(f"  passes: {side} {rule.default:g} (strict {rule.strict:g})")
        lines.append(f"  threshold: {rule.definition or 'calibrated on clean systems, see docs/gates.md'}")
        entry = CODES.get(rule.code)
        lines.append(
            f"  {rule.code}: {entry.title}\n  why: {entry.why}\n  fix: {entry.fix}" if entry else f"  {rule.code}"
        )
    return "\n".join(lines)
