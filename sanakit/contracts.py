"""The records that every part of sanakit speaks in. Imports no torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

MOST_TOKENS = 2**20  # of a prompt


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @classmethod
    def worst(cls, verdicts: Sequence["Verdict"]) -> "Verdict":
        """fail > inconclusive > pass; nothing measured is inconclusive."""
        for verdict in (cls.FAIL, cls.INCONCLUSIVE, cls.PASS):
            if verdict in verdicts:
                return verdict
        return cls.INCONCLUSIVE


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Geometry of a VAE's latents: images (B, 3, H, W) become (B, latent_channels, H/r, W/r)."""

    latent_channels: int
    spatial_compression_ratio: int

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        ratio = self.spatial_compression_ratio
        return self.latent_channels, height // ratio, width // ratio

    @property
    def label(self) -> str:
        return f"f{self.spatial_compression_ratio}c{self.latent_channels}"


@dataclass(frozen=True, kw_only=True)
class LatentStats:
    """Per-channel affine `latents = (raw - mean) / std`; one value serves all channels."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def from_scaling(cls, scaling_factor: float, shift_factor: float = 0.0) -> "LatentStats":
        """The convention `(raw - shift) * scale` of the SD and DC-AE families."""
        return cls(mean=(float(shift_factor),), std=(1.0 / float(scaling_factor),))


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Shape of prompt embeddings (B, L, embed_dim) and how they are read; padded right, attention mask 1 = keep.

    instruction: put before every prompt but the null one. select: "first" keeps the first max_tokens, instruction
    included; "first-last" reads instruction + max_tokens - 2 tokens, then keeps token 0 and the last max_tokens - 1
    (Sana, arXiv 2410.10629). layer: "last", as the model returns it; an index of its hidden states; or "mean" of all
    layers' outputs, layer-normalised (arXiv 2506.08210). attend_padding: the encoder sees no mask, as where it was
    trained without one; the core's mask is of the prompt's own tokens all the same.
    """

    embed_dim: int
    max_tokens: int
    instruction: str = ""
    select: str = "first"
    layer: int | str = "last"
    attend_padding: bool = False
    lower_case: bool = False  # prompts are lower-cased and stripped

    def __post_init__(self) -> None:
        if self.embed_dim < 1 or self.max_tokens < 2:
            raise ValueError(f"embed_dim {self.embed_dim}, max_tokens {self.max_tokens}; expected at least 1 and 2")
        if self.max_tokens > MOST_TOKENS:
            raise ValueError(f"max_tokens {self.max_tokens}; expected at most {MOST_TOKENS:,}")
        if self.select not in ("first", "first-last"):
            raise ValueError(f"select is {self.select!r}, expected first or first-last")
        if not isinstance(self.layer, int) and self.layer not in ("last", "mean"):
            raise ValueError(f"layer is {self.layer!r}, expected last, mean or an index")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One number at one step. `where` names the channel, sigma bin or layer."""

    name: str
    value: float
    step: int = 0
    where: str = ""
    title: str = ""
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    alarm: bool = False
    error: str = ""  # the statistic raised: whose it is and what was raised; value is NaN

    def as_dict(self) -> dict[str, Any]:
        return _without_empty_error(asdict(self))


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """A rule applied to a measurement with its interval. value and threshold are None where `error` says why."""

    gate: str
    code: str
    metric: str
    value: float | None
    ci_low: float | None
    ci_high: float | None
    threshold: float | None
    verdict: Verdict
    hint: str = ""
    at_least: bool | None = None  # the good side of the threshold
    above: bool = False  # with at_least: the threshold itself is on the bad side, as no gain is no gain
    samples: int | None = None  # images or prompts behind the interval
    samples_needed: int | None = None  # where inconclusive: about how many would decide
    error: str = ""  # the gate, or what it evaluates, raised: whose it is and what was raised
    decidable: bool = True  # False: the measurement shows nothing, so every policy leaves it inconclusive
    advisory: bool = False  # True: a value on the bad side shows nothing, so every policy leaves it inconclusive

    def as_dict(self) -> dict[str, Any]:
        return _without_empty_error(asdict(self) | {"verdict": str(self.verdict)})

    @classmethod
    def could_not_be_evaluated(cls, gate: str, code: str, error: str) -> "GateResult":
        """The row of a gate that raised: no verdict, and never a pass."""
        return cls(
            gate=gate,
            code=code,
            metric="could not be evaluated",
            value=None,
            ci_low=None,
            ci_high=None,
            threshold=None,
            verdict=Verdict.INCONCLUSIVE,
            hint=error,
            error=error,
        )

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "GateResult":
        return cls(**record | {"verdict": Verdict(record["verdict"])})


def _without_empty_error(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "error" or value}


def decide(
    value: float,
    threshold: float,
    *,
    at_least: bool,
    above: bool = False,
    ci_low: float | None = None,
    ci_high: float | None = None,
) -> Verdict:
    """Compare a value (or its interval) with a threshold; an interval that straddles it decides nothing. above: with
    at_least, the threshold itself fails.

    A value that is not a number fails: nothing broken may pass by being incomparable.
    """
    low = value if ci_low is None else ci_low
    high = value if ci_high is None else ci_high
    if not low <= high:  # NaN on either side
        return Verdict.FAIL
    if at_least and above:
        good, bad = low > threshold, high <= threshold
    else:
        good, bad = (low >= threshold, high < threshold) if at_least else (high <= threshold, low > threshold)
    return Verdict.PASS if good else Verdict.FAIL if bad else Verdict.INCONCLUSIVE


def samples_to_decide(
    value: float, threshold: float, *, ci_low: float | None, ci_high: float | None, samples: int | None
) -> int | None:
    """How many samples would move the interval off the threshold if the value stayed: its width falls with the root of
    the count. None where there is no interval, or where the value is the threshold itself."""
    if ci_low is None or ci_high is None or not samples or value == threshold:
        return None
    half = ci_high - value if threshold > value else value - ci_low
    ratio = half / abs(threshold - value)
    return max(samples + 1, int(samples * ratio**2) + 1) if ratio < 1e4 else None
