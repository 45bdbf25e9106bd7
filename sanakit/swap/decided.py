"""What a run hands to the decision (sanakit/decision): its records, and the facts that no file holds."""

from typing import TYPE_CHECKING, Any

from sanakit.adapters.linear import fitted_patch
from sanakit.checks.causes import decisive
from sanakit.decision import decide_swap
from sanakit.decision.next_step import next_command
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap


def decided(swap: "Swap", validation: dict[str, Any]) -> dict[str, Any]:
    """`decision` and `next` of a validation whose stages, strategy and policy are complete."""
    stages = validation["stages"]
    gates = [gate for stage in stages.values() for gate in stage["gates"]]
    trained = (stages["full"].get("steps") or swap.config.train.max_steps) if "full" in stages else None
    decision = decide_swap(
        validation,
        component=swap.run.read_json("component.json", {}).get("rows", []) if "component" in stages else [],
        plan=swap.run.read_json("plan.json", {}),
        samples=(validation.get("evaluation") or {}).get("rows", []),
        tolerance=(validation["strategy"].get("target") or {}).get("tolerance"),
        first_failed=decisive(gates),
        trained_steps=trained,
        seconds_per_step=swap.seconds_per_step,
        averaged=swap.config.train.ema_decay > 0,
    )
    refused = decision["answer"] == "do-not"
    decision["next"] = command_after(swap, validation, trained_steps=trained, refused=refused)
    return {"decision": decision, "next": decision["next"]}


def command_after(
    swap: "Swap", validation: dict[str, Any], *, trained_steps: int | None = None, refused: bool = False
) -> str:
    """The one command that comes next. refused: the decision is do-not."""
    stages = validation["stages"]
    return next_command(
        stages,
        validation.get("strategy") or {},
        run_dir=str(swap.run.path),
        kind=swap.config.kind,
        candidate=swap.config.candidate,
        bare=swap.bare,
        tunes_vae=swap.config.trains_vae_alone,
        first_failed=decisive([gate for stage in stages.values() for gate in stage["gates"]]),
        trained_steps=trained_steps,
        refused=refused,
    )


def tokens_row(swap: "Swap") -> list[dict[str, Any]]:
    """The row of component.json that says how many tokens the core reads for an image; empty without a base, and where
    the candidate's cells do not fit the images."""
    if swap.bare or not isinstance(swap.candidate, VAE):
        return []
    base = swap.base_system
    size, patch, ratio = base.image_size, base.core.config.patch_size, base.vae.spec.spatial_compression_ratio
    candidate_ratio = swap.candidate.spec.spatial_compression_ratio
    counts = [
        (size // (one_ratio * one_patch)) ** 2
        for one_ratio, one_patch in (
            (ratio, patch),
            (candidate_ratio, fitted_patch(patch, ratio, candidate_ratio)),
        )
    ]
    row = {"metric": "tokens per image", "unit": "", "better": "lower"}
    return [row | {"base": float(counts[0]), "candidate": float(counts[1])}]
