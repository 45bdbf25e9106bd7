"""What a candidate may gain or lose against the base: one record a measure."""

from dataclasses import dataclass

DIFFERENCE = "difference"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """metric: its name in component.json, or the gate that measured it. lower_is_better: the good side. unit: `dB`,
    `share` or DIFFERENCE for a change that is a difference, empty for one that is a share of the base's value. exact:
    counted, so that every difference is real. noise: the least change that counts, in the unit of the change. why: what
    it means for the swap."""

    metric: str
    lower_is_better: bool
    why: str
    unit: str = ""
    exact: bool = False
    noise: float = 0.0

    @property
    def change_unit(self) -> str:
        return self.unit or "share of the base's"


TIMING = 0.1  # two timings of one component on a machine that others use differ by this much
MEMORY = 0.05
PROMPTS = 0.01
DRAWN = 0.02

MEASURES: dict[str, Measure] = {
    "psnr": Measure(
        metric="PSNR",
        lower_is_better=False,
        unit="dB",
        why="reconstruction ceiling: no sample can be nearer to an image than its own reconstruction is",
    ),
    "ssim": Measure(metric="SSIM", lower_is_better=False, why="reconstruction ceiling: structure that decoding loses"),
    "perceptual-distance": Measure(
        metric="perceptual distance (EffLite0)",
        lower_is_better=True,
        why="reconstruction ceiling: detail that decoding loses",
    ),
    "tokens": Measure(
        metric="tokens per image",
        lower_is_better=True,
        exact=True,
        why="cost of every later step: training and sampling pay for each token",
    ),
    "latent-values": Measure(
        metric="latent values per image",
        lower_is_better=True,
        exact=True,
        why="size of the latent cache, and how much the core has to generate",
    ),
    "caption-tokens": Measure(
        metric="caption tokens per image",
        lower_is_better=True,
        exact=True,
        why="cost of every later step: cross-attention pays for each caption token, padding included",
    ),
    "truncated": Measure(
        metric="truncated prompts",
        lower_is_better=True,
        unit="share",
        exact=True,
        why="prompt following: words behind the cut are never read",
    ),
    "encode-speed": Measure(
        metric="encode", lower_is_better=False, noise=TIMING, why="time to fill the cache of latents or embeddings"
    ),
    "decode-speed": Measure(metric="decode", lower_is_better=False, noise=TIMING, why="time of every sample"),
    "weights": Measure(
        metric="weights in memory",
        lower_is_better=True,
        exact=True,
        noise=MEMORY,
        why="memory wherever the component is loaded",
    ),
    "denoising-error": Measure(
        metric="full/quality",
        lower_is_better=True,
        why="sample quality: the trained system's one-step error, where 1 is the base",
    ),
    "prompt-gain": Measure(
        metric="full/prompt-effect",
        lower_is_better=False,
        noise=PROMPTS,
        why="prompt following: what prompts are worth to the trained system, where 1 is the base",
    ),
    "kid": Measure(
        metric="KID",
        lower_is_better=True,
        unit=DIFFERENCE,
        noise=DRAWN,
        why="sample quality: how far what is drawn is from true images in content and texture",
    ),
    "colour-kid": Measure(
        metric="KID of colours",
        lower_is_better=True,
        unit=DIFFERENCE,
        noise=DRAWN,
        why="sample quality: how far what is drawn is from true images in colours and contrast",
    ),
    "caption-recovery": Measure(
        metric="captions recovered",
        lower_is_better=False,
        unit="share",
        noise=DRAWN,
        why="prompt following: how often a sample is nearer to what its caption shows than to what another one shows",
    ),
    "diversity": Measure(
        metric="variety of samples",
        lower_is_better=False,
        unit="share",
        noise=DRAWN,
        why="sample quality: whether different prompts give different images; 1 is the true images' variety",
    ),
}
# scores of evaluation.json: which metric, and whether in features of colours. A Frechet distance is reported and
# decides nothing: at these numbers of images it is mostly bias, which is less for samples that vary less.
SAMPLED = {
    "kid": ("kid", False),
    "colour-kid": ("kid", True),
    "caption-recovery": ("caption-recovery", None),
    "diversity": ("diversity", None),
}
COLOUR_FEATURES = "8x8 thumbnails"
RATIOS = ("denoising-error", "prompt-gain")  # measured as a ratio to the base, by a gate of stage full


def measure_names() -> list[str]:
    """Names that `allowed_loss` of a policy may use."""
    return list(MEASURES)
