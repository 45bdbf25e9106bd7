"""Strategies, cheapest first; each is a rule over parameter groups."""

from sanakit.core.dit import GROUPS
from sanakit.swap.base import STRATEGIES, Strategy

ALL = dict.fromkeys(GROUPS, 1.0)


@STRATEGIES.register("align", title="closed form only, no gradient step", embedded=True)
class Align(Strategy):
    initialise = "align"
    scales = {}


@STRATEGIES.register("align+head", title="closed form, then the swapped joints", embedded=True)
class AlignHead(Strategy):
    initialise = "align"
    scales = {"input": 1.0, "output": 1.0, "caption": 1.0}
    learning_rate = 2e-3


@STRATEGIES.register("finetune", title="closed form, then every layer, deeper ones slower", embedded=True)
class Finetune(Strategy):
    initialise = "align"
    scales = {"input": 1.0, "output": 1.0, "caption": 1.0, "cross_attention": 0.7, "core": 0.7}
    learning_rate = 1e-3


@STRATEGIES.register("naive", title="fresh joints, then every layer: the usual way, as a control", embedded=True)
class Naive(Strategy):
    initialise = "naive"
    scales = ALL
    learning_rate = 1e-3


@STRATEGIES.register("scratch", title="everything fresh", embedded=True)
class Scratch(Strategy):
    initialise = "scratch"
    scales = ALL
    learning_rate = 2e-3
