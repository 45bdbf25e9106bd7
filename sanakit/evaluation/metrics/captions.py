"""Does a sample show its prompt? Recovery of the caption among the captions of all other prompts, and the CLIP score.

Without a model of images and captions, a caption stands for the image that it describes: a sample is nearer to the
image of its own caption than to another caption's, or not.
"""

import torch
from torch import Tensor

from sanakit.evaluation.drawing import Drawn
from sanakit.evaluation.metrics.base import METRICS, Measured, metric
from sanakit.evaluation.metrics.distances import unit_rows

CHANCE = "0.5 is chance, 1 the caption's own image before all others"


@METRICS.register("caption-recovery", title="captions recovered by the images that they describe", embedded=True)
@metric(better="higher")
def caption_recovery(drawn: Drawn) -> Measured:
    """Share of the other captions whose image is less like the sample than the image of its own caption."""
    centre = drawn.of_reference().mean(0)
    likeness = unit_rows(drawn.of_samples(), centre) @ unit_rows(drawn.of_truth(), centre).T  # (S, N, N)
    return Measured(values=recovered(likeness).numpy(), features=drawn.label, note=CHANCE)


@METRICS.register("clip-recovery", title="captions recovered by CLIP", embedded=False)
@metric(better="higher", clip=True)
def clip_recovery(drawn: Drawn) -> Measured:
    """Share of the other captions that CLIP finds less like the sample than its own caption."""
    texts = drawn.clip_texts()
    return Measured(
        values=recovered(drawn.clip_images() @ texts.T).numpy(),
        features=drawn.clip_model().label,
        of_true_images=float(recovered(drawn.clip_truth() @ texts.T).mean()),
        note="0.5 is chance, 1 the own caption before all others",
    )


@METRICS.register("clip-score", title="CLIP score", embedded=False)
@metric(better="higher", clip=True)
def clip_score(drawn: Drawn) -> Measured:
    """100 max(cosine of sample and caption, 0), as torchmetrics counts it (arXiv 2104.08718 without its factor)."""
    texts = drawn.clip_texts()
    cosines = (drawn.clip_images() * texts).sum(-1).clamp_min(0)
    return Measured(
        values=(100 * cosines).numpy(),
        features=drawn.clip_model().label,
        of_true_images=float(100 * (drawn.clip_truth() * texts).sum(-1).clamp_min(0).mean()),
    )


def recovered(likeness: Tensor) -> Tensor:
    """likeness (..., N, N) of samples to captions -> (..., N), the share of other captions that are less like; a tie
    counts half."""
    of_its_caption = likeness.diagonal(dim1=-2, dim2=-1)[..., None]
    below = (likeness < of_its_caption).sum(-1).double() + ((likeness == of_its_caption).sum(-1) - 1).double() / 2
    count: int = likeness.shape[-1]
    return torch.as_tensor(below / (count - 1))
