"""How good are the images that a system draws? Metrics on held-out prompts, each with its features and its interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sanakit.api.load import load_base, load_images, system_in
from sanakit.api.options import as_callback, as_count, as_names, as_number, as_seed
from sanakit.api.session import Device
from sanakit.assembly import LatentDiffusion
from sanakit.data.cache import Progress, silent
from sanakit.evaluation.clip import DEFAULT_CLIP
from sanakit.evaluation.drawing import FEWEST, Drawn, ask, draw
from sanakit.evaluation.image_features import AUTO, features_named
from sanakit.evaluation.scores import DEFAULT_METRICS, Score, require_metrics, scores_of
from sanakit.limits import LARGEST_BATCH
from sanakit.placement import choose
from sanakit.reporting.notebook import fragment

if TYPE_CHECKING:
    import pandas as pd

SHOWN = ("title", "value", "ci_low", "ci_high", "of_true_images", "features")


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """scores: of every metric. prompts: N held-out captions, each drawn with num_seeds seeds. data: what they are of.
    model: the base's name, empty for a system that was put together."""

    scores: tuple[Score, ...]
    prompts: tuple[str, ...]
    num_seeds: int
    seed: int
    num_steps: int
    guidance_scale: float
    model: str
    data: str
    data_fingerprint: str = ""

    @property
    def failed(self) -> list[Score]:
        """Metrics that raised an error: they have no value."""
        return [score for score in self.scores if score.error]

    def __getitem__(self, metric: str) -> Score:
        """The first score of a metric, or the one of a label such as `kid (EffLite0)`. Raises KeyError."""
        for score in self.scores:
            if metric in (score.metric, score.label):
                return score
        raise KeyError(f"{metric}; known: {', '.join(score.label for score in self.scores)}")

    def as_dict(self) -> dict[str, Any]:
        names = ("model", "data", "num_seeds", "seed", "num_steps", "guidance_scale", "data_fingerprint")
        record = {name: getattr(self, name) for name in names}
        return record | {"num_prompts": len(self.prompts), "scores": [score.as_dict() for score in self.scores]}

    def to_frame(self) -> "pd.DataFrame":
        """One row a score."""
        import pandas as pd

        return pd.DataFrame([score.as_dict() for score in self.scores])

    def __repr__(self) -> str:
        values = [f"{s.label} {'failed' if s.value is None else format(s.value, '.4g')}" for s in self.scores]
        return f"<Evaluation: {', '.join(values)}; {len(self.prompts)} prompts of {self.data}>"

    def _repr_html_(self) -> str:
        told = f"{len(self.prompts)} held-out prompts of {self.data}, {self.num_seeds} samples each; 90% intervals"
        notes = [f"{score.label}: {score.error or score.note}" for score in self.scores if score.error or score.note]
        rows = [{key: getattr(score, key) for key in SHOWN} for score in self.scores]
        return fragment("Evaluation", "", [told, *dict.fromkeys(notes)], rows)


def evaluate(
    system: Any,
    data: Any,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    count: int = 64,
    num_seeds: int = 2,
    seed: int = 0,
    num_steps: int = 24,
    guidance_scale: float = 3.0,
    features: str | Sequence[str] = AUTO,
    clip: str = DEFAULT_CLIP,
    on_step: Progress | None = None,
    device: "Device | None" = None,
    base_captions: bool = False,
) -> Evaluation:
    """Draw images for held-out prompts of `data` and score them.

    system: what `load_base` takes, a result of `swap` too. data: what `load_images` takes. metrics: names of `sanakit
    ls metrics`; a metric of a plugin that raises is a score with `error`. count: held-out prompts, at most all of them.
    num_seeds: samples of a prompt. features: names in which distances are taken, in a list or with commas; auto is
    those that need no network. clip: the model of clip-score and clip-recovery, `path:DIR` or `hub:owner/repo`.
    on_step: called with (label, done, total). device: as `--device`; by default auto for a name, and where a system
    that was put together computes already. base_captions: the system reads `captions_base`, as the base of a swap does,
    where the data has them; by default it reads `captions`.

    Raises SK0101 for a metric that is not known, SK0104 for other options, SK0403 for fewer than 8 held-out prompts,
    SK0507 for images that are not finite, SK0902 at once for weights that cannot be had.
    """
    names, guidance_scale = as_names("metrics", metrics), as_number("guidance_scale", guidance_scale)
    count, num_seeds = as_count("count", count, FEWEST), as_count("num_seeds", num_seeds, most=LARGEST_BATCH)
    num_steps, seed = as_count("num_steps", num_steps, most=LARGEST_BATCH), as_seed(seed)
    progress = as_callback("on_step", on_step) or silent
    within = features_named(",".join(as_names("features", features)))
    require_metrics(names, within, clip)
    drawing, images = load_base(system), load_images(data)
    if device is not None or not isinstance(system_in(system), LatentDiffusion):
        drawing = replace(drawing, placement=choose(str(device or "auto")))
    asked = ask(images, count, drawing.image_size)
    prompts = asked.prompts if base_captions else asked.candidate_prompts
    options: dict[str, Any] = {"num_seeds": num_seeds, "seed": seed}
    options |= {"num_steps": num_steps, "guidance_scale": guidance_scale}
    drawn = draw(drawing, prompts, progress=progress, **options)
    sides = Drawn(asked=asked, images=drawn, clip=clip, placement=drawing.placement)
    return Evaluation(
        scores=tuple(scores_of(sides, names, within)),
        prompts=tuple(prompts),
        **options,
        model=drawing.name,
        data=images.source,
        data_fingerprint=images.fingerprint,
    )
