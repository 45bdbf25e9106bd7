"""strategy.json: what a race measured, what it says, and for which cores its probability is calibrated."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sanakit.swap.arm import Arm
from sanakit.swap.calibration import RaceFacts, calibrated_for, why_extrapolated
from sanakit.swap.ending import RaceResult
from sanakit.swap.forecast import CHEAPEST, INTERVAL, steps_that_tell
from sanakit.swap.settings import horizon_of

if TYPE_CHECKING:
    from sanakit.swap.context import Swap


def comparison(swap: "Swap", arms: Sequence[Arm], result: RaceResult) -> dict[str, Any]:
    """Every arm of the race, and which one is recommended."""
    target, answer, kind = swap.target, result.answer, swap.config.kind
    facts = race_facts(swap)
    best = result.best.forecast
    assert best is not None
    return {
        "recommended": answer.name,
        "in_sight": answer.in_sight,
        "probability": round(answer.probability, 4),
        "probability_within_horizon": round(best.within, 4),
        "margin": CHEAPEST,
        "horizon": horizon_of(swap.config, embedded=swap.base.embedded),
        "interval": INTERVAL,
        "conclusive": answer.told,
        "stopped_by": result.stopped_by,
        "calibrated_for": calibrated_for(kind),
        "core": asdict(facts),
        "extrapolated": why_extrapolated(kind, facts) or None,
        "candidates": [arm.as_dict() | {"finalist": arm in result.finalists} for arm in arms],
        "budget_steps": result.step,
        "steps_that_tell": steps_that_tell(best, result.step),
        "target": {"measure": target.measure, "unit": target.unit, "tolerance": target.tolerance},
        "base_held_out_loss": swap.base_held_out.loss,
    }


def race_facts(swap: "Swap") -> RaceFacts:
    base = swap.base_system
    return RaceFacts(
        parameters=sum(p.numel() for p in base.core.parameters()),
        tokens=base.num_tokens,
        batch=swap.config.train.batch_size,
        measure=swap.target.measure,
    )
