"""Does a text encoder mean by words what the base's does: do both find the same words alike (representational
similarity analysis, Kriegeskorte et al. 2008)?

Words are encoded one by one. Captions would not do: two that share a word, a style or a length are alike to any
encoder, one with random weights included.
"""

import re
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sanakit.alignment.text import pool
from sanakit.text_encoders import TextEncoder

WORDS = 256
CHUNK = 128


def frequent_words(captions: list[str], count: int = WORDS) -> list[str]:
    """The words of at least three letters that stand in most captions, ties by the alphabet."""
    seen = Counter(word for text in captions for word in set(re.findall(r"[^\W\d_]{3,}", text.lower())))
    return [word for word, _ in sorted(seen.items(), key=lambda row: (-row[1], row[0]))[:count]]


def word_features(encoder: TextEncoder, words: list[str]) -> Tensor:
    """Mean token of every word, centred over the words, of length 1. (N, D)"""
    parts = [words[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
    features = torch.cat([pool(encoder.encode(part, instruction=False)) for part in parts]).double()
    return F.normalize(features - features.mean(0), dim=1)


def agreement(candidate: Tensor, base: Tensor) -> np.ndarray:
    """Correlation of two encoders' cosines over all pairs of words, as one term for each word: their mean is the
    correlation. candidate (N, D), base (N, E) -> (N,)"""
    count = len(candidate)
    pairs = ~torch.eye(count, dtype=torch.bool)
    standard = []
    for features in (candidate, base):
        cosines = features @ features.T
        chosen = cosines[pairs]
        standard.append((cosines - chosen.mean()) / chosen.std(unbiased=False).clamp_min(1e-12) * pairs)
    return ((standard[0] * standard[1]).sum(1) / (count - 1)).numpy()
