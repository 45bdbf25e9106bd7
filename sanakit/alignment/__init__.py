"""Closed-form initialisation of the swapped layers, from streaming second moments."""

from sanakit.alignment.blocks import align_blocks
from sanakit.alignment.carried import carry_rest
from sanakit.alignment.cross_moments import CrossMoments
from sanakit.alignment.distance import feature_distance
from sanakit.alignment.layers import rank_layers
from sanakit.alignment.text import align_caption, pair_captions
from sanakit.alignment.vae import INPUT_METHODS, align_input, align_output

__all__ = [
    "INPUT_METHODS",
    "CrossMoments",
    "align_blocks",
    "align_caption",
    "align_input",
    "align_output",
    "carry_rest",
    "feature_distance",
    "pair_captions",
    "rank_layers",
]
