"""How good a swapped system is, in the one unit that holds across latent spaces: errors relative to the base's."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sanakit.api.load import load_base
from sanakit.api.session import Device, opened_swap, placed
from sanakit.assembly import LatentDiffusion
from sanakit.checks.base import interval
from sanakit.contracts import Verdict, decide
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import held_out
from sanakit.reporting.notebook import fragment
from sanakit.swap.context import Swap

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, repr=False)
class Quality:
    """value: mean relative error of the held-out images, 1 = the base. ci_low, ci_high: of its 90% interval
    over images. threshold: up to which the base's quality counts as reached. per_image: (N,). measure: what is
    compared."""

    value: float
    ci_low: float
    ci_high: float
    threshold: float
    per_image: np.ndarray
    measure: str

    @property
    def verdict(self) -> Verdict:
        """pass: as good as the base; fail: not; inconclusive: the interval straddles the threshold."""
        return decide(self.value, self.threshold, at_least=False, ci_low=self.ci_low, ci_high=self.ci_high)

    def as_dict(self) -> dict[str, Any]:
        names = ("value", "ci_low", "ci_high", "threshold", "measure")
        return {name: getattr(self, name) for name in names} | {
            "verdict": str(self.verdict),
            "images": len(self.per_image),
        }

    def to_frame(self) -> "pd.DataFrame":
        """One row a held-out image."""
        import pandas as pd

        return pd.DataFrame({"relative_error": self.per_image})

    def __repr__(self) -> str:
        told = f"{self.value:.3f} ({self.ci_low:.3f} to {self.ci_high:.3f}) of the base's error"
        return f"<Quality {self.verdict}: {told}, {len(self.per_image)} held-out images>"

    def _repr_html_(self) -> str:
        return fragment("Relative error, base = 1", str(self.verdict), [self.measure], [self.as_dict()])


def relative_error(system: Any, data: Any, *, base: Any, device: Device = "auto") -> Quality:
    """The error of a system relative to the base that it was swapped from, on the held-out images of `data`.

    system, base: what `load_base` takes, or `Swapped.system`. Which component was replaced is told by their weights.
    device: as `--device`. Raises SK0104 for another image size, or where both components were replaced, SK0503 where
    the base's prompts have no effect.
    """
    candidate, reference = load_base(system), load_base(base)
    kind = replaced_component(candidate, reference)
    with opened_swap(reference, kind, getattr(candidate, kind), data, device=device) as swap:
        return quality_of(swap, placed(candidate, swap.placement))


def replaced_component(candidate: LatentDiffusion, base: LatentDiffusion) -> str:
    """vae or text_encoder; vae where neither was replaced. Raises SK0104 where both were."""
    vae, base_vae = candidate.vae, base.vae
    other_vae = vae.fingerprint() != base_vae.fingerprint() or vae.applied_stats != base_vae.applied_stats
    other_encoder = candidate.text_encoder.fingerprint() != base.text_encoder.fingerprint()
    if other_vae and other_encoder:
        raise SanakitError(
            "SK0104",
            "relative_error: the VAE and the text encoder are both others than the base's",
            cause="One error cannot tell two swaps apart.",
            fix="Measure one swap at a time, with the result of the previous one as base.",
        )
    return "text_encoder" if other_encoder else "vae"


def quality_of(swap: Swap, system: LatentDiffusion) -> Quality:
    """Of a system whose candidate and base are the swap's."""
    result = held_out(system, swap.candidate_data[1], count=swap.num_held_out)
    errors = swap.target.relative(result)
    value, (low, high) = interval(errors)
    return Quality(
        value=value,
        ci_low=low,
        ci_high=high,
        threshold=float(swap.target.tolerance * swap.target.base.mean()),
        per_image=errors,
        measure=swap.target.measure,
    )
