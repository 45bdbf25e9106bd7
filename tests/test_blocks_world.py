"""The closed form of every block on the embedded world: never worse than `align` before any step."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from sanakit.alignment import align_blocks, align_input, align_output
from sanakit.config import make_config
from sanakit.evaluation.held_out import held_out
from sanakit.run import RunFolder
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.plan import build


def open_swap(candidate, images, held_out_images, kind="vae"):
    """tiny-sana with another component, on the first images of the training split and of the held-out ones."""
    values = {kind: {"name": candidate}, "smoke": {"held_out": held_out_images}, "data": {"image_size": 96}}
    config = make_config(values)
    swap = Swap(config=config, run=RunFolder(Path(), config))
    train, test = swap.splits
    swap.splits = train.subset(range(images)), test.subset(range(held_out_images))
    return swap


def error(swap, system):
    return float(swap.target.relative(held_out(system, swap.candidate_data[1], count=swap.num_held_out)).mean())


@pytest.mark.parametrize("candidate", ["pca-f16c32", "pca-f8c4"])  # the second reads patches of 2
def test_few_draws_start_nearer_to_the_base_than_align_does_from_as_many(candidate):
    swap, draws = open_swap(candidate, 128, 32), 128
    base, (data, _), (base_data, _) = swap.base_system, swap.candidate_data, swap.base_data
    aligned = build(base, swap.candidate, STRATEGIES.get("naive"), data, base_data, seed=0)[0]
    align_input(aligned.core, base.core, data.latents, base_data.latents, flow_shift=float(aligned.flow_shift))
    solved = replace(aligned, core=deepcopy(aligned.core))
    align_output(aligned, data, count=draws)
    align_blocks(solved, base, data, base_data, swapped="vae", draws=draws)
    assert error(swap, solved) < error(swap, aligned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "candidate"),
    [("vae", name) for name in ("dc-f16c16", "kl-f8c4", "pca-f16c16", "pca-f16c32", "pca-f8c4", "pca-f32c64")]
    + [("text_encoder", "wordllama")],
)
def test_it_is_never_worse_than_align(kind, candidate):
    swap = open_swap(candidate, 512, 128, kind)
    data, base_data = swap.candidate_data[0], swap.base_data[0]
    errors, notes = {}, {}
    for name in ("align", "align-blocks"):
        system, notes[name] = build(swap.base_system, swap.candidate, STRATEGIES.get(name), data, base_data, seed=0)
        errors[name] = error(swap, system)
    if candidate == "pca-f32c64":  # 3 x 3 tokens where the base has 6 x 6
        assert errors["align-blocks"] == errors["align"] and "36 tokens" in notes["align-blocks"]["start_note"]
    else:
        assert errors["align-blocks"] < errors["align"]
