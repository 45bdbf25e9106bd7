"""What stage full draws to compare candidate and base (sanakit/evaluation/drawing.py)."""

from sanakit.evaluation.drawing import BATCH
from sanakit.needs.records import Phase
from sanakit.needs.swap import Outlines, core_bytes

SAMPLER_STEPS = 24  # sampling.sample_euler


def scored_samples(outlines: Outlines) -> list[Phase]:
    """BATCH samples at once, with guidance; the base's are counted as the candidate's. Empty where none are asked
    for."""
    asked = outlines.config.evaluate
    total = 2 * asked.num_prompts * asked.num_seeds
    if not total:
        return []
    core, mode = outlines.core()
    at_once = min(BATCH, total // 2)
    drawn, flops = outlines.forward(core, mode, 2 * at_once, "fp32")
    return [
        Phase(
            stage="full",
            name="draw images to score",
            device={"core": core_bytes(core), "activations": drawn},
            at_once=2 * at_once,
            flops=SAMPLER_STEPS * flops * -(-total // at_once),
        )
    ]
