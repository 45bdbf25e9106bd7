"""Many runs on one page: a leaderboard, each run's gates that did not pass, and race curves over steps."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sanakit.reporting.charts import is_number, legend, line_chart
from sanakit.reporting.folder import read_as_run, read_json
from sanakit.reporting.page import environment, write_html

Row = dict[str, Any]
ORDER = ("pass", "inconclusive", "fail")
PSNR = "PSNR"


def leaderboard(run_dirs: Sequence[Path]) -> list[Row]:
    """One row a run, best first: verdict, then the error over the base's. Raises SK0109 for a folder that is no run."""
    rows = [_row(path) for path in dict.fromkeys(p.resolve() for p in run_dirs)]

    def far(row: Any) -> float:
        return row["error_ratio"] if is_number(row["error_ratio"]) else float("inf")

    rows.sort(key=lambda row: (ORDER.index(row["verdict"]), far(row), row["run"]))
    return [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]


def _row(path: Path) -> Row:
    with read_as_run(path):
        return _read(path)


def _read(path: Path) -> Row:
    validation: Row = read_json(path / "validation.json", {})
    race: Row = read_json(path / "strategy.json", {})
    stages: Row = validation.get("stages") or {}
    strategy: Row = validation.get("strategy") or {}
    best: Row = next((c for c in strategy.get("candidates") or [] if c["name"] == strategy.get("recommended")), {})
    gates = [gate for stage in stages.values() for gate in stage.get("gates") or []]
    quality = [g["value"] for g in gates if g["code"] == "SK0504"]
    component = {row["metric"]: row for row in (read_json(path / "component.json", {}).get("rows") or [])}
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
        "predicted_steps": best.get("predicted_steps"),
        "predicted_steps_low": best.get("predicted_steps_low"),
        "predicted_steps_high": best.get("predicted_steps_high"),
        "relative_error": best.get("relative_error"),
        "measure": (race.get("target") or {}).get("measure"),
        "error_ratio": quality[-1] if quality else None,
        "seconds": sum(stage.get("seconds") or 0 for stage in stages.values()),
        "steps": best.get("steps") or [],
        "errors": best.get("relative_errors") or [],
    }


def write_comparison(rows: Sequence[Row], out: Path) -> Path:
    """One self-contained page of the leaderboard."""
    named = {f"{row['rank']}. {row['candidate']}": row for row in rows}
    series = [
        (name, list(zip(row["steps"], row["errors"], strict=False))) for name, row in named.items() if row["errors"]
    ]
    title = "Error over the base's, recommended strategy of each run"
    chart = line_chart(series, title=title, x_label="step", y_label="error over the base's", limit=1.0)
    html = (
        environment()
        .get_template("compare.html.j2")
        .render(
            rows=rows,
            counts=Counter(row["verdict"] for row in rows),
            chart=chart,
            legend=legend([n for n, _ in series]) if series else "",
            title=title,
            series=series,
        )
    )
    return write_html(html, out)
