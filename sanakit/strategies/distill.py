"""Text encoders learnt from the base instead of from images: prompts only."""

from sanakit.strategies.base import STRATEGIES, Strategy


@STRATEGIES.register("distill", title="closed form, then caption layers through the frozen core", embedded=True)
class Distill(Strategy):
    """The loss is the distance to the base's velocity on the base's own trajectories."""

    kinds = ("text_encoder",)
    scales = {"caption": 1.0}
    teacher = "trajectories"


@STRATEGIES.register(
    "embedding-mse", title="closed form, then caption layers to the base's caption features, no core", embedded=True
)
class EmbeddingMSE(Strategy):
    """Its steps belong to the start, like the closed form: they pass no core."""

    kinds = ("text_encoder",)
    initialise = "embedding-mse"
    scales = {}
