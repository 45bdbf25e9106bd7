"""Closed form of every block: the swapped core's stream brought to the base's, branch by branch, front to back.

Base and swapped core read the same images, captions, sigmas and coupled noise. Behind every self-attention,
cross-attention and mix-FFN the branch's output layer takes the ridge step that brings the swapped stream to the base's;
the output projection is solved last, from the same draws. No gradient step is taken, and the result is a plain core.

Two streams are kept on the host, the base's and the swapped core's. Features are never kept: a branch runs once for its
normal equations and once more, solved, to move the stream on.
"""

from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor

from sanakit.alignment.cross_moments import CrossMoments
from sanakit.alignment.draws import PairedDraws, Side, draw_pairs, same_captions
from sanakit.alignment.layer_step import LayerStep
from sanakit.alignment.vae import align_output, head_rows, write_head
from sanakit.alignment.walk import BRANCHES, Branch, Walk, last_layer
from sanakit.assembly import LatentDiffusion, core_at_work
from sanakit.data.dataset import LatentDataset

DRAWS = 512
PENALTY = 1e-2  # of a branch's output layer
TEXT_PENALTY = 0.3  # the same where the text encoder is swapped: captions are far fewer than tokens
CHUNK = 64  # draws that are in memory at once


def align_blocks(
    system: LatentDiffusion,
    base: LatentDiffusion,
    data: LatentDataset,
    base_data: LatentDataset,
    *,
    swapped: str,
    draws: int = DRAWS,
    seed: int = 0,
    chunk_size: int = CHUNK,
) -> dict[str, object]:
    """Solve the blocks of `system.core` in place; its patch embedding or caption projection is aligned already.

    data, base_data: the same images in both encodings. swapped: "vae" or "text_encoder". Behind another text encoder
    the streams part in cross-attention alone: its output layers are solved, and the output projection stays the base's.
    Where both sides read the same numbers, the base's own layers are taken over and nothing is left to solve. Returns
    start_draws; or start_note where the token grids are unequal, and the output projection alone was solved, as `align`
    does. Raises SK0204 for values that are not finite.
    """
    is_text = swapped == "text_encoder"
    if note := unequal_grids(system, base):
        return align_output(system, data, seed=seed) | {"start_note": note}
    own_side, base_side = Side(system=system, data=data), Side(system=base, data=base_data)
    pairs = draw_pairs(own_side, base_side, count=draws, seed=seed, chunk_size=chunk_size)
    if is_text and same_captions(data, base_data):
        take_over(system, base, "caption_projection")
    same_interface = not is_text and pairs.rotation is None and take_over(system, base, "patch_embed", "proj_out")
    notes: dict[str, object] = {}
    solved, penalty = (("attn2",), TEXT_PENALTY) if is_text else (BRANCHES, PENALTY)
    with core_at_work(system, base, exact=True):
        candidate_walk, base_walk = enter(pairs)
        for number in range(len(system.core.transformer_blocks)):
            for name in BRANCHES:
                move_on(pairs, base_walk, pairs.base, number, name)
                if name in solved:
                    solve_branch(pairs, candidate_walk, base_walk, number, name, penalty)
                move_on(pairs, candidate_walk, pairs.candidate, number, name)
        if not is_text and not same_interface:
            notes = solve_head(pairs, candidate_walk)
    return {"start_draws": draws} | notes


def unequal_grids(system: LatentDiffusion, base: LatentDiffusion) -> str:
    """Why the blocks cannot be solved; empty where they can."""
    if system.num_tokens == base.num_tokens:
        return ""
    return (
        f"{base.num_tokens} tokens an image -> {system.num_tokens}: no stream to bring to the base's, started by align"
    )


def enter(pairs: PairedDraws) -> tuple[Walk, Walk]:
    """Both cores' streams behind the patch embedding."""
    walks = tuple(Walk(side.system.core, side.system.timestep_scale) for side in (pairs.candidate, pairs.base))
    for rows in pairs.chunks:
        for walk, noisy in zip(walks, pairs.noisy(rows), strict=True):
            walk.enter(noisy)
    return walks  # type: ignore[return-value]


def move_on(pairs: PairedDraws, walk: Walk, side: Side, number: int, name: str) -> None:
    """A core's stream over one branch, as its layers are."""
    for chunk in range(len(pairs.chunks)):
        walk.add(chunk, run_branch(pairs, walk, side, chunk, number, name).addition)


def solve_branch(
    pairs: PairedDraws, candidate_walk: Walk, base_walk: Walk, number: int, name: str, penalty: float
) -> None:
    """Solve the output layer of a branch of the swapped core, whose stream is before it; the base's is behind it
    already."""
    height, width = candidate_walk.grid
    step = LayerStep(
        last_layer(candidate_walk.core.transformer_blocks[number], name),
        all_gates(pairs, candidate_walk, number, name),
        draws=len(pairs),
        tokens=height * width,
        where=f"{name} of block {number}",
    )
    for chunk, rows in enumerate(pairs.chunks):
        seen = run_branch(pairs, candidate_walk, pairs.candidate, chunk, number, name)
        goal, stream = (walk.streams[chunk].to(seen.output) for walk in (base_walk, candidate_walk))
        step.add(seen.features, goal - (stream + seen.addition), rows)  # zero to the bit between equal cores
    step.apply(step.solve(penalty))


def run_branch(pairs: PairedDraws, walk: Walk, side: Side, chunk: int, number: int, name: str) -> Branch:
    """A branch on one chunk; captions are read where it is cross-attention."""
    rows = pairs.chunks[chunk]
    prompt = pairs.prompt(side, rows) if name == "attn2" else None
    return walk.branch(chunk, number, name, pairs.sigmas[rows], prompt)


def all_gates(pairs: PairedDraws, walk: Walk, number: int, name: str) -> Tensor | None:
    """A branch's gates at every draw (N, H); None where it has none."""
    gates = [walk.gates(number, name, pairs.sigmas[rows]) for rows in pairs.chunks]
    return None if gates[0] is None else torch.cat(gates)


def solve_head(pairs: PairedDraws, walk: Walk) -> dict[str, object]:
    """The output projection: ridge of the velocity on the last features of the same draws."""
    head = walk.core.proj_out
    read = getattr(head, "read", lambda features: features)  # a head that reads its neighbours too
    moments: CrossMoments | None = None
    for chunk, rows in enumerate(pairs.chunks):
        features = read(walk.last_features(chunk, pairs.sigmas[rows])).flatten(0, 1).cpu()
        goals = head_rows(pairs.velocity(rows), walk.core.config.patch_size).flatten(0, 1)
        moments = moments or CrossMoments.empty(features.shape[1], goals.shape[1])
        moments.add(features, goals)
    assert moments is not None
    return write_head(head, moments)


def take_over(system: LatentDiffusion, base: LatentDiffusion, *names: str) -> bool:
    """Copy layers of the base's core, where all of them have the same shapes."""
    layers = [(getattr(system.core, name), getattr(base.core, name)) for name in names]

    def shapes(layer: Any) -> dict[str, Any]:
        return {key: value.shape for key, value in layer.state_dict().items()}

    if any(shapes(layer) != shapes(base_layer) for layer, base_layer in layers):
        return False
    for layer, base_layer in layers:
        layer.load_state_dict(base_layer.state_dict())
    return True


def bytes_needed(core: SanaTransformer2DModel, num_tokens: int, draws: int) -> tuple[int, int]:
    """Of host memory: both streams of all draws, and the normal equations of the widest layer, which no number of draws
    changes."""
    widest = max((last_layer(core.transformer_blocks[0], name).weight for name in BRANCHES), key=lambda w: w[0].numel())
    hidden, features = len(widest), widest[0].numel() + 1
    streams = 2 * draws * num_tokens * hidden * widest.element_size()
    return streams, 8 * features * (2 * features + hidden)  # float64; the solver works on a copy
