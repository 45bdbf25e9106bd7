"""The first screen of the report: the answer, three figures, samples side by side, one command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sanakit.records import Row, read_json
from sanakit.reporting.charts import is_number
from sanakit.reporting.decided import MOODS, WORDS, cost_text, interval_text, risk_text, said_change
from sanakit.reporting.folder import embedded
from sanakit.reporting.page import duration, number

SIDES = {"truth": "true image", "base": "base", "candidate": "candidate"}
ARRIVES = "probability_within_horizon"
FIRST = 4  # prompts on the first screen
HOUR = 3600.0
SIGNS = {"swap": "✓", "swap-with-loss": "!", "not-yet": "?", "do-not": "✕"}


def first_screen(validation: Mapping[str, Any], component: Sequence[Row], pairs: Sequence[Row]) -> Row:
    """Everything that is read before scrolling. pairs: of `side_by_side`."""
    decision = validation["decision"]
    answer = decision["answer"]
    return {
        "word": WORDS[answer],
        "sign": SIGNS[answer],
        "mood": MOODS[answer],
        "reason": decision["reason"],
        "figures": [quality(validation, component), cost(decision["cost"]), risk(decision["risk"])],
        "pairs": spread(pairs, FIRST),
        "next": decision["next"],
    }


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows at even distances: some of the training images, some held out."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def quality(validation: Mapping[str, Any], component: Sequence[Row]) -> Row:
    """The best that the candidate allows: its reconstructions, or for a text encoder the error that was reached."""
    psnr = {row["metric"]: row for row in component}.get("PSNR")
    if psnr and is_number(psnr.get("candidate")):
        base = f"the base's VAE: {psnr['base']:.2f} dB" if is_number(psnr.get("base")) else "no base to compare with"
        value = f"{psnr['candidate']:.2f} dB"
        return {
            "label": "Best quality the candidate allows",
            "value": value,
            "note": f"PSNR of reconstructions; {base}",
        }
    strategy = validation.get("strategy") or {}
    errors = [c["relative_error"] for c in strategy.get("candidates") or [] if is_number(c.get("relative_error"))]
    gates = [gate for stage in validation["stages"].values() for gate in stage.get("gates") or []]
    full = next((gate for gate in gates if gate["gate"] == "full/quality" and is_number(gate["value"])), None)
    label = "Best quality so far"
    if full:
        ends = f", {number(full['ci_low'])} to {number(full['ci_high'])}" if is_number(full.get("ci_low")) else ""
        return {"label": label, "value": number(full["value"]), "note": f"error after the full run, base = 1{ends}"}
    if errors:
        return {"label": label, "value": number(min(errors)), "note": "lowest error of the race, base = 1"}
    return {"label": label, "value": "–", "note": "not measured yet"}


def cost(stated: Row) -> Row:
    """Steps as the figure, their interval and time as the note."""
    label = "Cost"
    if is_number(stated["trained_steps"]) and stated["trained_steps"]:
        return {
            "label": label,
            "value": f"{number(stated['trained_steps'])} steps",
            "note": f"trained; {duration(stated['seconds_spent'])} in all",
        }
    if not is_number(stated["steps"]):
        return {"label": label, "value": "not known", "note": cost_text(stated)}
    if not stated["steps"]:
        return {"label": label, "value": "no training", "note": f"{stated['strategy']} is enough"}
    share = f"{stated['interval']:.0%} interval " if is_number(stated["interval"]) else ""
    late = number(round(stated["steps_high"])) if is_number(stated["steps_high"]) else "open"
    span = f"{share}{number(round(stated['steps_low']))} to {late}; " if is_number(stated["steps_low"]) else ""
    time = f"{duration(stated['hours'] * HOUR)} on this machine" if is_number(stated["hours"]) else ""
    return {
        "label": label,
        "value": f"{number(round(stated['steps']))} steps",
        "note": f"{span}{time} ({stated['strategy']})",
    }


def risk(figures: Row) -> Row:
    """A probability where the forecast states one; else the number of open questions."""
    label, stated = "Risk", figures["probabilities"]
    if stated:
        key = ARRIVES if ARRIVES in stated else next(iter(stated))
        return {"label": "Probability", "value": f"{stated[key]:.0%}", "note": risk_text(figures)}
    if figures["failed"]:
        failed = len(figures["failed"])
        value = "1 gate failed" if failed == 1 else f"{failed} gates failed"
        return {"label": label, "value": value, "note": risk_text(figures)}
    count = len(figures["open"])
    value = "none open" if not count else "1 open question" if count == 1 else f"{count} open questions"
    return {"label": label, "value": value, "note": risk_text(figures)}


def side_by_side(run_dir: Path) -> list[Row]:
    """Rows {prompt, split, truth, base, candidate} of the last stage that drew samples, images as data URIs."""
    rows = [row for row in read_json(run_dir / "figures.json", []) if row.get("section") == "compared"]
    last = "full" if any(row["stage"] == "full" for row in rows) else "smoke"
    shown = []
    for row in rows:
        images = {side: embedded(run_dir, row.get(side) or "") for side in SIDES}
        if row["stage"] == last and all(images.values()):
            shown.append({"prompt": row["prompt"], "split": row.get("split", "")} | images)
    return shown


def change_rows(decision: Mapping[str, Any]) -> list[Row]:
    """Gains and losses of the decision as rows of one table; a loss is amber, or red where the policy does not allow
    it."""
    rows = []
    for kind in ("losses", "gains"):
        for one in decision[kind]:
            verdict = one.get("within_allowed")
            mood = "pass" if kind == "gains" else "fail" if verdict is False else "inconclusive"
            limit = "unknown" if one.get("allowed") is not None else "no limit stated"
            told = (
                ""
                if verdict is None
                else "allowed"
                if verdict is True
                else "not allowed"
                if verdict is False
                else limit
            )
            rows.append(
                dict(one)
                | {"kind": "gain" if kind == "gains" else "loss", "mood": mood, "said": said_change(one)}
                | {"interval": interval_text(one), "allowed_text": told}
            )
    return rows
