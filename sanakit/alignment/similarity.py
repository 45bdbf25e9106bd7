"""Does a text encoder say what the base's does: do both find the same captions alike (representational similarity
analysis, Kriegeskorte et al. 2008)?

Captions that share a word are alike to any encoder, one with random weights included. So only pairs without a common word
count: there, likeness has to come from what the words mean.
"""

import re

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.text import pool
from sanakit.errors import SanakitError
from sanakit.text_encoders import TextEncoder

FEWEST = 16  # captions
CHUNK = 128


def caption_features(encoder: TextEncoder, texts: list[str]) -> Tensor:
    """Mean token of every caption, centred over the captions, of length 1. (N, D)"""
    found = [pool(encoder.encode(texts[start : start + CHUNK])) for start in range(0, len(texts), CHUNK)]
    features = torch.cat(found).double()
    return F.normalize(features - features.mean(0), dim=1)


def unlike_words(texts: list[str]) -> Tensor:
    """(N, N) bool: captions that share no word. Raises SK0403 for too few captions or pairs."""
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    number = {word: i for i, word in enumerate(sorted(set().union(*words)))}
    present = torch.zeros(len(texts), max(1, len(number)))
    for row, own in zip(present, words, strict=True):
        row[[number[word] for word in own]] = 1
    apart = present @ present.T == 0
    if len(texts) < FEWEST or int(apart.sum()) < FEWEST**2:
        raise SanakitError(
            "SK0403",
            f"{len(texts)} captions, {int(apart.sum()) // 2} pairs without a common word: too few to compare encoders",
        )
    return apart


def agreement(own: Tensor, base: Tensor, apart: Tensor) -> np.ndarray:
    """Correlation of the two encoders' cosines over the pairs of `apart`, as one term for each caption: their mean is the
    correlation. own (N, D), base (N, E), apart (N, N) -> (N,)"""
    cosines = [features @ features.T for features in (own, base)]
    standard = []
    for values in cosines:
        chosen = values[apart]
        standard.append(torch.where(apart, (values - chosen.mean()) / chosen.std(unbiased=False).clamp_min(1e-12), 0.0))
    products = standard[0] * standard[1]
    return (products.sum(1) * len(apart) / apart.sum()).numpy()
