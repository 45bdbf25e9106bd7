"""Which failed gate to check first: the cause, not what follows from it, in the stage that decided.

FOLLOWS lists, for a gate, the gates whose failure explains its own. A failure that another one explains is left out. Of
the rest the last stage that ran decides, as an earlier one that failed was passed over on purpose (--force), and within
it the first gate: gates stand in the order cause before consequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.contracts import Verdict

Row = Mapping[str, Any]

STAGES = ("component", "smoke", "full")
ENTIRELY = 0.5  # share of prompts cut short from which truncation explains what else is wrong with the embeddings
LATENTS = ("component/finite-latents", "component/geometry", "component/repeatable-latents", "component/input-range")
EMBEDDINGS = ("component/finite-embeddings", "component/hidden-states", "component/repeatable-embeddings")
# wiring of the base and of training: says nothing about the candidate, and does not follow from it
WIRING = ("smoke/base", "smoke/mask", "smoke/data-order", "smoke/flow-shift", "smoke/moved", "smoke/average")
APART = (*WIRING, "full/latent-drift")
TRUNCATION = "component/truncation"

FOLLOWS: dict[str, tuple[str, ...]] = {
    "component/repeatable-latents": ("component/finite-latents",),
    "component/normalisation": ("component/finite-latents",),
    "component/channel-order": ("component/finite-latents",),
    "component/orientation": ("component/finite-latents",),
    "component/seams": ("component/finite-latents",),
    "component/reconstruction": (
        *LATENTS,
        "component/channel-order",
        "component/orientation",
        "component/normalisation",
    ),
    # a mean that was not subtracted is in the power; inputs of another range narrow or widen it
    "component/scale-high": (*LATENTS, "component/shift"),
    "component/scale-low": (*LATENTS, "component/dead-channels"),
    "component/shift": LATENTS,
    "component/collapse": (*LATENTS, "component/dead-channels"),
    "component/dead-channels": LATENTS[:3],
    "component/repeatable-embeddings": ("component/finite-embeddings",),
    "component/prompts-kept": (*EMBEDDINGS, TRUNCATION),
    "component/mask": ("component/finite-embeddings",),
    "component/padding-side": (*EMBEDDINGS, "component/tokens-differ", TRUNCATION),
    "component/padding": (*EMBEDDINGS, "component/mask", "component/padding-side"),
    "component/instruction": (*EMBEDDINGS, TRUNCATION),
    "component/null": EMBEDDINGS,
    "component/tokens-differ": EMBEDDINGS,
    "component/words-read": (*EMBEDDINGS, "component/prompts-differ", TRUNCATION),
    "component/meaning": (*EMBEDDINGS, "component/prompts-differ", "component/words-read", TRUNCATION),
    "component/prompts-differ": (*EMBEDDINGS, "component/tokens-differ", "component/prompts-kept", TRUNCATION),
    "smoke/average": ("smoke/moved",),
    "smoke/samples": ("smoke/progress",),
    "smoke/prompt-effect": ("smoke/progress", "smoke/control"),
    "smoke/control": ("smoke/progress",),
    "full/samples": ("full/progress", "full/latent-drift"),
    "full/progress": ("full/latent-drift",),
    "full/prompt-effect": ("full/progress", "full/latent-drift"),
    "full/quality": ("full/progress", "full/samples", "full/prompt-effect", "full/latent-drift"),
}


def decisive(gates: Sequence[Row]) -> Row | None:
    """Of the rows of all stages, in their order, the failed one to check first; None where none failed."""
    failed = [gate for gate in gates if gate["verdict"] == Verdict.FAIL]
    causes = [gate for gate in failed if not any(explains(other, gate) for other in failed if other is not gate)]
    if not causes:
        return failed[0] if failed else None
    last = max(_stage(gate) for gate in causes)
    return next(gate for gate in causes if _stage(gate) == last)


def explains(cause: Row, effect: Row) -> bool:
    """Whether the first failure is likely to have brought about the second."""
    first, second = cause["gate"], effect["gate"]
    if first == TRUNCATION and not (cause["value"] or 0) > ENTIRELY:
        return False
    if first in FOLLOWS.get(second, ()):
        return True
    earlier = _stage(cause) < _stage(effect)
    if first in WIRING:
        return second not in APART and _stage(cause) <= _stage(effect)
    return earlier and second not in APART


def _stage(gate: Row) -> int:
    """Place of the gate's stage; a tuned VAE is evaluated in stage full."""
    name = gate["gate"].partition("/")[0]
    return STAGES.index(name) if name in STAGES else len(STAGES) - 1
