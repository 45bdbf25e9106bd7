"""Stage full: what base and candidate draw for the same held-out prompts and noise, scored by metrics."""

from typing import TYPE_CHECKING, Any

from sanakit.assembly import LatentDiffusion
from sanakit.config import Config
from sanakit.contracts import GateResult, Verdict
from sanakit.errors import SanakitError
from sanakit.evaluation.drawing import FEWEST, GUIDANCE_SCALE, NUM_STEPS, Drawn, asked_of, draw
from sanakit.evaluation.image_features import features_named
from sanakit.evaluation.scores import compare_scores, require_metrics

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

RECORD = "evaluation.json"
Row = dict[str, Any]


def require(config: Config) -> None:
    """Metrics and features that stage full will need, before anything is trained. Raises as `require_metrics`."""
    asked = config.evaluate
    if asked.num_prompts:
        require_metrics(asked.metrics, features_named(asked.features), asked.clip)


def evaluate_samples(swap: "Swap", system: LatentDiffusion) -> None:
    """Write evaluation.json: a row a score, of both sides and the change."""
    record = _compared(swap, system)
    swap.run.write_json(RECORD, record)


def _compared(swap: "Swap", system: LatentDiffusion) -> Row:
    asked = swap.config.evaluate
    held_out, train = swap.splits[1], swap.splits[0]
    count = min(asked.num_prompts, len(held_out), len(train))
    record: Row = {"num_prompts": count, "num_seeds": asked.num_seeds, "seed": swap.config.train.seed}
    record |= {"num_steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE, "data_fingerprint": swap.images.fingerprint}
    if not asked.num_prompts:
        return record | {"rows": [], "note": "evaluate.num_prompts is 0"}
    if count < FEWEST:
        told = f"{count} held-out images, {FEWEST} are the fewest of an evaluation"
        return record | {"rows": [], "note": told}
    names = features_named(asked.features)
    question = asked_of(held_out, train, count, system.image_size)
    of_candidate = question.prompts if swap.config.kind == "vae" else question.candidate_prompts
    sides = {"base": (swap.base_system, question.prompts), "candidate": (system, of_candidate)}
    options: Row = {"num_seeds": asked.num_seeds, "seed": swap.config.train.seed, "progress": swap.progress}
    options |= {"num_steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE}
    images = {}
    for side, (one, prompts) in sides.items():
        try:
            images[side] = draw(one, prompts, label=f"drawing for evaluation, {side}", **options)
        except SanakitError as error:
            if error.code != "SK0507":
                raise
            return record | {"rows": [], "note": error.found, "not_finite": side}
    base = Drawn(asked=question, images=images["base"], clip=asked.clip, placement=swap.placement)
    rows = compare_scores(base, base.beside(images["candidate"]), asked.metrics, names)
    return record | {"reference": len(question.reference), "rows": rows, "note": ""}


def broken_metrics(swap: "Swap") -> list[GateResult]:
    """A row for each metric that could not be evaluated, and for images that are not finite: the candidate fails by its
    own; those of the base decide nothing."""
    record = swap.run.read_json(RECORD, {})
    if side := record.get("not_finite"):
        return [not_finite(side, record["note"])]
    rows = record.get("rows", [])
    broken = {row["metric"]: row for row in rows if row["error"]}
    return [
        GateResult.could_not_be_evaluated(f"full/metric {name}", row["code"], row["error"])
        for name, row in broken.items()
    ]


def not_finite(side: str, told: str) -> GateResult:
    """The row for images of a side, base or candidate, that are not finite."""
    name, code = "full/images-finite", "SK0507"
    if side == "base":
        return GateResult.could_not_be_evaluated(name, code, f"the base's images: {told}")
    return GateResult(
        gate=name,
        code=code,
        metric="batches of drawn images that are not finite",
        value=1.0,
        ci_low=None,
        ci_high=None,
        threshold=0.0,
        verdict=Verdict.FAIL,
        hint=told,
        at_least=False,
    )
