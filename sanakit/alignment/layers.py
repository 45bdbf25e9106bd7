"""Which hidden layer of a text encoder says most of the base's caption features: the closed form of every layer,
evaluated on captions that it was not solved from (arXiv 2506.08210 finds the normalised average of all layers best for
generation).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.alignment.text import PENALTY, Captions, pair_captions, paired_rows
from sanakit.data.cache import Progress, silent
from sanakit.errors import SanakitError
from sanakit.text_encoders import TextEncoder
from sanakit.text_encoders.transformer import TransformerEncoder, depth_of

CHUNK = 16  # captions whose hidden states are held at once
FEWEST = 16  # captions
HELD_OUT = 4  # one caption in so many is held out, drawn by SEED
SEED = 0
CLEAR = 2.0  # standard errors by which a layer must beat the record's own to be picked

Layer = int | str


@dataclass
class Trial:
    """One layer's map, solved from most captions and evaluated on the others. errors: of each of those; power: its
    variance."""

    layer: Layer
    moments: CrossMoments
    map: tuple[Tensor, Tensor] | None = None
    errors: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)
    finite: bool = True

    def see(self, pairs: Captions, base_layer: nn.Module, *, evaluated: bool) -> None:
        self.finite = self.finite and bool(pairs.candidate[:].embeds.isfinite().all())
        if not self.finite:
            return
        if not evaluated:
            self.moments.add(*_rows(pairs, slice(None), base_layer))
            return
        self.map = self.map or self.moments.ridge(PENALTY)
        weight, offset = self.map
        centre = (self.moments.y / self.moments.count).float()
        for row in range(len(pairs.candidate)):
            x, y = (rows.cpu() for rows in _rows(pairs, slice(row, row + 1), base_layer))
            self.errors.append(float((y - x @ weight.T - offset).square().sum()))
            self.power.append(float((y - centre).square().sum()))

    def row(self, declared: "Trial") -> dict[str, Any]:
        """Against the record's own layer, caption by caption."""
        if not self.finite:
            return {"layer": self.layer, "error": None, "more": None, "noise": None, "note": "not finite"}
        total = max(sum(declared.power), 1e-12)
        more = (np.array(self.errors) - np.array(declared.errors)) / total
        noise = float(more.std(ddof=1) * len(more) ** 0.5)
        return {"layer": self.layer, "error": sum(self.errors) / total, "more": float(more.sum()), "noise": noise}


def layers_to_try(encoder: TransformerEncoder) -> list[Layer]:
    """The record's own layer, the last, the last but one, three quarters and half of the depth, the average of all."""
    depth = depth_of(encoder.model)
    inner = [layer for layer in (depth - 1, round(0.75 * depth), depth // 2) if layer > 0]
    return list(dict.fromkeys([encoder.spec.layer, "last", *inner, "mean"]))


def rank_layers(
    encoder: TextEncoder,
    texts: list[str],
    base_core: SanaTransformer2DModel,
    base_encoder: TextEncoder,
    *,
    layers: Sequence[Layer] = (),
    base_texts: Sequence[str] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """{"layers": rows, "used", "best", "pairing", "captions"}; every row {"layer", "error", "more", "noise"}.

    error: of the linear map from the layer to the base's caption features on one caption in HELD_OUT, over the
    features' variance there; more: that less the error of the layer that the record names, noise its standard error.
    best: the layer of the smallest error among those that are better than the record's own by CLEAR times the noise,
    else the record's own. A layer that is not finite has a note in their place. Raises SK0306 for an encoder without a
    choice of layers, SK0403 for fewer than FEWEST texts, SK0204 where the record's own layer is not finite.
    """
    if not isinstance(encoder, TransformerEncoder):
        raise SanakitError("SK0306", f"{encoder.name or type(encoder).__name__} has no layers to choose from")
    if len(texts) < FEWEST:
        raise SanakitError("SK0403", f"{len(texts)} captions, layers are told apart on at least {FEWEST}")
    base_layer = base_core.caption_projection.linear_1

    def empty() -> CrossMoments:
        return CrossMoments.empty(encoder.spec.embed_dim, base_layer.out_features)

    names = list(dict.fromkeys([encoder.spec.layer, *(layers or layers_to_try(encoder))]))
    trials = [Trial(layer, empty()) for layer in names]
    both = list(zip(texts, texts if base_texts is None else base_texts, strict=True))
    order = np.random.default_rng(SEED).permutation(len(both))  # the captions of an image take turns along the places
    evaluated = [both[i] for i in sorted(order[: len(both) // HELD_OUT])]
    solving = [both[i] for i in sorted(order[len(both) // HELD_OUT :])]
    parts = [
        (split[i : i + CHUNK], split is evaluated)
        for split in (solving, evaluated)
        for i in range(0, len(split), CHUNK)
    ]
    for number, (part, held_out) in enumerate(parts, 1):
        some, read = (list(side) for side in zip(*part, strict=True))
        encoded = encoder.encode_layers(some, names)
        pairs = pair_captions(encoded[0], base_encoder.encode(read), some, encoder, base_encoder, read)
        for trial, embeds in zip(trials, encoded, strict=True):
            trial.see(replace(pairs, candidate=embeds), base_layer, evaluated=held_out)
        progress("measuring layers", number, len(parts))
    declared = trials[0]
    if not declared.finite:
        raise SanakitError("SK0204", f"layer {declared.layer} of {encoder.name} is not finite")
    rows = [trial.row(declared) for trial in trials]
    better = [row for row in rows if row["error"] is not None and row["more"] + CLEAR * row["noise"] < 0]
    best = min(better, key=lambda row: row["error"])["layer"] if better else declared.layer
    pairing = "tokens" if pairs.paired_spans else "mean tokens"
    return {"layers": rows, "used": declared.layer, "best": best, "pairing": pairing, "captions": len(texts)}


def _rows(pairs: Captions, rows: slice, base_layer: nn.Module) -> tuple[Tensor, Tensor]:
    spans = tuple(s[rows] for s in pairs.paired_spans) if pairs.paired_spans else None
    return paired_rows(pairs.candidate[rows], pairs.base[rows], base_layer, spans)
