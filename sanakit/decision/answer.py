"""The answer: swap, swap-with-loss, not-yet or do-not, by the rules of docs/decision.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.decision.comparison import compare, open_losses, sort_changes, unmeasured
from sanakit.decision.cost import cost_of, recommended
from sanakit.decision.measures import DIFFERENCE
from sanakit.decision.risk import extrapolated, open_gates, risk_of, why_not_told

Row = Mapping[str, Any]
SWAP, WITH_LOSS, NOT_YET, DO_NOT = "swap", "swap-with-loss", "not-yet", "do-not"
ANSWERS = (SWAP, WITH_LOSS, NOT_YET, DO_NOT)
# gates that speak of the candidate's worth; any other gate of sanakit speaks of wiring
WORTH = (
    "component/reconstruction",
    "component/collapse",
    "component/dead-channels",
    "component/prompts-differ",
    "component/words-read",
    "component/meaning",
    "component/truncation",
    "smoke/progress",
    "smoke/prompt-effect",
    "smoke/control",
    "smoke/within-reach",
    "full/progress",
    "full/prompt-effect",
    "full/samples",
    "full/quality",
    "tune/",
)
NAMED = 3  # losses that a reason names
OWN_STAGES = ("component/", "smoke/", "full/", "tune/")


def decide_swap(
    validation: Row,
    *,
    component: Sequence[Row] = (),
    samples: Sequence[Row] = (),
    plan: Row | None = None,
    tolerance: float | None = None,
    first_failed: Row | None = None,
    trained_steps: int | None = None,
    seconds_per_step: float | None = None,
    averaged: bool = False,
) -> dict[str, Any]:
    """The `decision` of a validation. component: rows of component.json. samples: rows of evaluation.json. tolerance:
    the relative error that counts as the base's quality. first_failed: the failed gate to check first; by default the
    first one. trained_steps: of a stage full that is done. seconds_per_step: of the machine that the full run is
    planned for. averaged: stage full keeps an average of the weights."""
    stages: Row = validation.get("stages") or {}
    strategy: Row = validation.get("strategy") or {}
    gates = [gate for stage in stages.values() for gate in stage.get("gates") or []]
    allowed = (validation.get("policy") or {}).get("allowed_loss") or {}
    compared = compare(component, gates, tolerance, samples)
    changes = sort_changes(compared, allowed, tolerance)
    trained = "full" in stages and not any(gate["gate"].startswith("tune/") for gate in gates)
    unknown = unmeasured(compared, allowed, kind=validation.get("kind"), trained=trained)
    answer, reason = _answer(stages, strategy, gates, changes["losses"], unknown, first_failed)
    rows = list(component)
    return {
        "answer": answer,
        "reason": reason,
        **changes,
        "cost": cost_of(
            stages,
            strategy,
            plan or {},
            rows,
            trained_steps=trained_steps,
            seconds_per_step=seconds_per_step,
            averaged=averaged,
        ),
        "risk": risk_of(gates, strategy, trained="full" in stages),
        "next": validation.get("next") or "",
    }


def _answer(
    stages: Row,
    strategy: Row,
    gates: Sequence[Row],
    losses: Sequence[Row],
    unknown: Sequence[str],
    first_failed: Row | None,
) -> tuple[str, str]:
    failed = first_failed or next((gate for gate in gates if gate["verdict"] == "fail"), None)
    if failed is not None:
        return DO_NOT, _failure(failed)
    if told := _hopeless(stages, strategy):
        return DO_NOT, told
    beyond = [row for row in losses if row["within_allowed"] is False]
    if beyond:
        return DO_NOT, f"The loss is larger than the policy allows: {_named(beyond)}."
    if told := _open(stages, strategy, gates, losses, unknown):
        return NOT_YET, told
    if losses:
        limited = all(row["allowed"] is not None for row in losses)
        told = "within what the policy allows" if limited else "the policy does not say how much is allowed"
        count = "1 measure is" if len(losses) == 1 else f"{len(losses)} measures are"
        more = f" and {len(losses) - NAMED} more" if len(losses) > NAMED else ""
        return WITH_LOSS, f"It works, and {count} worse than the base's: {_named(losses[:NAMED])}{more} ({told})."
    return SWAP, "It works, and no measure is worse than the base's."


def _failure(gate: Row) -> str:
    checks_wiring = gate["gate"].startswith(OWN_STAGES)
    what = f"{gate['gate']} ({gate.get('code', '')}) failed"
    hint = f" What would mend it: {gate['hint']}." if gate.get("hint") else ""
    if checks_wiring and not gate["gate"].startswith(WORTH):
        return f"Fix first: {what}. It is a fault in the wiring and says nothing of the candidate's worth.{hint}"
    return f"{what}.{hint}"


def _hopeless(stages: Row, strategy: Row) -> str:
    """What a race says that is sure that nobody arrives; empty for any other, and where the full run was measured."""
    told = strategy.get("conclusive") is True and strategy.get("in_sight") is False
    if not told or "full" in stages or extrapolated(strategy):
        return ""
    sure = strategy.get("probability")
    share = f" (probability {sure:.2f})" if isinstance(sure, float) else ""
    return f"No strategy is expected to reach the base's quality within {strategy.get('horizon')} steps{share}."


def _open(stages: Row, strategy: Row, gates: Sequence[Row], losses: Sequence[Row], unknown: Sequence[str]) -> str:
    """Why nothing can be said yet; empty where it can."""
    if broken := [gate["gate"] for gate in gates if gate.get("error")]:
        return f"{broken[0]} could not be evaluated."
    if undecided := open_gates(gates):
        more = f" and {len(undecided) - 1} more" if len(undecided) > 1 else ""
        return f"{undecided[0]['gate']} ({undecided[0].get('code', '')}){more} could not be decided."
    if straddling := list(open_losses(losses)):
        return f"The interval of a loss holds its limit, more images are needed: {_named(straddling)}."
    if "full" in stages:
        alone = "The candidate by itself was not measured: stage component."
        return _unmeasured(unknown) if "component" in stages else alone
    missing = [name for name in ("component", "smoke") if name not in stages]
    if missing:
        return f"Stage {missing[0]} was not run: nothing is known yet of {OF_STAGE[missing[0]]}."
    return _unmeasured(unknown) or _forecast(strategy)


def _unmeasured(unknown: Sequence[str]) -> str:
    """Limits of the policy on what was not measured; empty where there is none."""
    return f"The policy limits what was not measured: {', '.join(unknown)}." if unknown else ""


OF_STAGE = {"component": "the candidate by itself", "smoke": "how the whole system takes the candidate"}


def _forecast(strategy: Row) -> str:
    """What the race left open; empty where it could tell."""
    best, name = recommended(strategy), strategy.get("recommended")
    if not best:
        return "No strategy was recommended."
    if best.get("predicted_steps") is None:
        return f"The base's quality is not in sight: {name} was nearest."
    arrived = best["predicted_steps"] <= ((best.get("steps") or [0])[-1])
    if not strategy.get("conclusive", True):
        return f"The race could not tell: {why_not_told(strategy)}."
    if best.get("predicted_steps_high") is None and not arrived and "predicted_steps_high" in best:
        steps = f"about {best['predicted_steps']:,.0f} steps are likely, and how many more it may take is not known"
        return f"The forecast of {name} has no late end: {steps}."
    if extrapolated(strategy) and not arrived:
        return "The forecast is extrapolated: it is not calibrated for a core of this size."
    return ""


def _named(rows: Sequence[Row]) -> str:
    return ", ".join(f"{row['metric']} {said_change(row)}" for row in rows)


def said_change(row: Row) -> str:
    """A change in words: `-3.78 dB`, `+56%`, `x2.1`."""
    change = row["change"]
    if row["unit"] == "dB":
        return f"{change:+.2f} dB"
    if row["unit"] == "share":
        return f"{100 * change:+.1f} points"
    if row["unit"] == DIFFERENCE:
        return f"{change:+.3g}"
    return f"x{1 + change:.3g}" if change >= 1 else f"{change:+.0%}" if abs(change) >= 0.1 else f"{change:+.1%}"
