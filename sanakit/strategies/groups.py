"""Strategies, cheapest first; each is a rule over parameter groups."""

from sanakit.core.dit import GROUPS
from sanakit.strategies.base import STRATEGIES, Strategy

ALL = dict.fromkeys(GROUPS, 1.0)
INTERFACE = {"input": 1.0, "output": 1.0, "caption": 1.0}


@STRATEGIES.register("reuse", title="the base's interface layers as they are, nothing trained", embedded=True)
class Reuse(Strategy):
    initialise = "reuse"
    scales = {}


@STRATEGIES.register("align", title="closed form only, no gradient step", embedded=True)
class Align(Strategy):
    scales = {}


@STRATEGIES.register("align-blocks", title="closed form of every block, no gradient step", embedded=True)
class AlignBlocks(Strategy):
    initialise = "align-blocks"
    scales = {}


@STRATEGIES.register("align+head", title="closed form, then the swapped interface layers", embedded=True)
class AlignHead(Strategy):
    follows_start = True
    scales = INTERFACE
    learning_rate = 2e-3


@STRATEGIES.register(
    "lora", title="closed form, then the interface layers and low-rank adapters of every attention", embedded=True
)
class LoRA(Strategy):
    follows_start = True
    scales = INTERFACE | {"lora": 1.0}
    learning_rate = 2e-3
    lora_rank = 16


@STRATEGIES.register("cross-attention", title="closed form, then caption layers and cross-attention", embedded=True)
class CrossAttention(Strategy):
    kinds = ("text_encoder",)
    scales = {"caption": 1.0, "cross_attention": 1.0}


@STRATEGIES.register("finetune", title="closed form, then every layer, deeper ones slower", embedded=True)
class Finetune(Strategy):
    follows_start = True
    scales = INTERFACE | {"cross_attention": 0.7, "core": 0.7}
    text_learning_rate = 2.5e-4  # experiments/studies/rate_study.py


@STRATEGIES.register(
    "naive", title="fresh interface layers, then every layer: the usual way, as a control", embedded=True
)
class Naive(Strategy):
    initialise = "naive"
    control = True
    scales = ALL


@STRATEGIES.register("scratch", title="everything fresh, as a control", embedded=True)
class Scratch(Strategy):
    initialise = "scratch"
    control = True
    scales = ALL
    learning_rate = 2e-3
