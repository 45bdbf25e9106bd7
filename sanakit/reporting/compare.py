"""Many runs on one page: a leaderboard, each run's gates that did not pass, and race curves over steps."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sanakit.decision import ANSWERS, decide_swap
from sanakit.records import Row, read_json
from sanakit.reporting.charts import is_number, legend, line_chart
from sanakit.reporting.conclusions import nearest_at_the_end
from sanakit.reporting.decided import MOODS, WORDS, cost_text
from sanakit.reporting.first_screen import side_by_side, spread
from sanakit.reporting.folder import read_as_run
from sanakit.reporting.page import environment, write_html
from sanakit.reporting.report import HEAD, page_mark
from sanakit.reporting.score_table import score_table, score_warnings, scores_of_run

ORDER = ("pass", "inconclusive", "fail")
PSNR = "PSNR"
THUMBNAILS = 2  # prompts a run
STEPS = ("predicted_steps", "predicted_steps_low", "predicted_steps_high")
MEASURED = (*STEPS, "psnr", "base_psnr", "relative_error", "error_ratio", "seconds")
NAMED = ("kind", "base", "candidate", "strategy", "data", "data_fingerprint")


def leaderboard(run_dirs: Sequence[Path]) -> list[Row]:
    """One row a run, best first: decision, verdict, then the error over the base's.

    Raises SK0109 for a folder that is no run.
    """
    rows = [_row(path) for path in dict.fromkeys(p.resolve() for p in run_dirs)]

    def far(row: Any) -> float:
        return row["error_ratio"] if is_number(row["error_ratio"]) else float("inf")

    rows.sort(key=lambda row: (ANSWERS.index(row["answer"]), ORDER.index(row["verdict"]), far(row), row["run"]))
    return [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]


def _row(path: Path) -> Row:
    with read_as_run(path):
        row = _read(path)
        for value in (*(row[key] for key in MEASURED if row[key] is not None), *row["steps"], *row["errors"]):
            if not isinstance(value, float) and not is_number(value):  # a float may be NaN
                raise ValueError(f"found {value!r:.40} where a run writes a number")
        return row | {key: str(row[key]) for key in NAMED if row[key] is not None}


def _read(path: Path) -> Row:
    validation: Row = read_json(path / "validation.json", {})
    race: Row = read_json(path / "strategy.json", {})
    stages: Row = validation.get("stages") or {}
    strategy: Row = validation.get("strategy") or {}
    best: Row = next((c for c in strategy.get("candidates") or [] if c["name"] == strategy.get("recommended")), {})
    gates = [gate for stage in stages.values() for gate in stage.get("gates") or []]
    quality = [g["value"] for g in gates if g["code"] == "SK0504"]
    provenance: Row = read_json(path / "provenance.json", {})
    rows = read_json(path / "component.json", {}).get("rows") or []
    decision = validation.get("decision") or decide_swap(
        {**validation, "stages": stages}, component=rows, tolerance=(race.get("target") or {}).get("tolerance")
    )
    component = {row["metric"]: row for row in rows}
    return {
        "run": path.name,
        "folder": str(path),
        "kind": validation.get("kind", ""),
        "base": validation.get("base", ""),
        "candidate": validation.get("candidate", ""),
        "verdict": ORDER[ORDER.index(validation.get("verdict", "inconclusive"))],
        "stages": {name: stage.get("verdict") for name, stage in stages.items()},
        "not_passed": [f"{g['gate']} ({g['code']})" for g in gates if g["verdict"] != "pass"],
        "gates": len(gates),
        "psnr": (component.get(PSNR) or {}).get("candidate"),
        "strategy": strategy.get("recommended"),
        **{name: best.get(name) for name in STEPS},
        "relative_error": best.get("relative_error"),
        "measure": (race.get("target") or {}).get("measure"),
        "error_ratio": quality[-1] if quality else None,
        "seconds": sum(stage.get("seconds") or 0 for stage in stages.values()),
        "answer": ANSWERS[ANSWERS.index(decision["answer"])],
        "cost": cost_text(decision["cost"]),
        "data": ((provenance.get("data") or {}).get("source")),
        "data_fingerprint": (provenance.get("data") or {}).get("fingerprint"),
        "base_psnr": (component.get(PSNR) or {}).get("base"),
        "steps": list(best.get("steps") or []),
        "errors": list(best.get("relative_errors") or []),
        **scores_of_run(validation),
    }


def differing(rows: Sequence[Row]) -> list[str]:
    """A warning for every fact in which the runs differ and without which they cannot be ranked."""
    warnings = []
    for key, what, means in (
        ("kind", "kind of swap", "a VAE and a text encoder are not ranked against each other"),
        ("base", "base", "errors are in units of each run's own base"),
        ("data", "data", "held-out images are not the same"),
    ):
        values = sorted({str(row[key]) for row in rows if row.get(key)})
        if len(values) > 1:
            warnings.append(f"The runs differ in their {what} ({', '.join(values)}): {means}.")
    prints = {row["data_fingerprint"] for row in rows if row.get("data_fingerprint")}
    if len(prints) > 1 and len({row["data"] for row in rows if row.get("data")}) == 1:
        warnings.append("The runs name the same data, and its content differs: held-out images may not be the same.")
    return warnings + score_warnings(rows)


def report_of(row: Row, out: Path) -> str:
    """The run's report beside the page, as a relative address; empty where there is none."""
    mark = page_mark(Path(row["folder"]))
    for folder in (out.parent, Path("reports")):
        for page in (folder / f"{row['run']}.html", folder / f"{row['run']}-{mark}.html"):
            if page.is_file() and mark in page.read_text(encoding="utf-8", errors="replace")[:HEAD]:
                return quote(os.path.relpath(page, out.parent))
    return ""


def _shown(row: Row, out: Path) -> Row:
    folder, answer = Path(row["folder"]), row["answer"]
    with read_as_run(folder):
        pairs = spread(side_by_side(folder), THUMBNAILS)
    return row | {"report": report_of(row, out), "pairs": pairs, "word": WORDS[answer], "mood": MOODS[answer]}


def write_comparison(rows: Sequence[Row], out: Path, scored: Sequence[Row] = ()) -> Path:
    """One self-contained page of the leaderboard. scored: further systems, of `read_scores`."""
    named = {f"{row['rank']}. {row['candidate']}": row for row in rows}
    series = [
        (name, list(zip(row["steps"], row["errors"], strict=False))) for name, row in named.items() if row["errors"]
    ]
    shown = [_shown(row, out) for row in rows]
    title = "Error over the base's, recommended strategy of each run"
    chart = line_chart(series, title=title, x_label="step", y_label="error over the base's", limit=1.0)
    html = (
        environment()
        .get_template("compare.html.j2")
        .render(
            rows=shown,
            warnings=list(dict.fromkeys([*differing(rows), *score_warnings([*rows, *scored])])),
            scores=score_table([*rows, *scored]),
            says=nearest_at_the_end([(name, [(x + 1, y) for x, y in points]) for name, points in series]),
            counts=Counter(row["verdict"] for row in rows),
            chart=chart,
            legend=legend([n for n, _ in series]) if series else "",
            title=title,
            series=series,
        )
    )
    return write_html(html, out)
