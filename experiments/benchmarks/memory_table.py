"""Device memory of a training step: the dry run's figure against the fake accelerator's peak, and full depth computed.

    python experiments/benchmarks/memory_table.py [--small] [--out FILE]

Sana-0.6B's full width with 2 and 4 blocks, 256 px, one and two images, fp32 and bf16, with and without gradient
checkpointing: `fit` takes two steps on the fake accelerator (tests/fake_accelerator), which counts every byte that is
alive on it. All of it runs on the host's memory and needs a C++ compiler. --small: a core of width 64.
"""

import argparse
import gc
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fake_accelerator  # noqa: E402
from diffusers import SanaTransformer2DModel  # noqa: E402

from sanakit.assembly import LatentDiffusion  # noqa: E402
from sanakit.needs.published import SANA_600M, SANA_1600M  # noqa: E402
from sanakit.placement import choose  # noqa: E402
from sanakit.strategies.base import STRATEGIES  # noqa: E402
from sanakit.text_encoders import PromptEmbeds  # noqa: E402
from sanakit.training.batches import Batch  # noqa: E402
from sanakit.training.estimate import estimate, fake_core  # noqa: E402
from sanakit.training.loop import TrainOptions, fit, new_state  # noqa: E402

SMALL = SANA_600M | {
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": 32,
}
FULL = [  # core, image size, batch, precision, most bytes
    ("Sana-0.6B", SANA_600M, 512, 8, "bf16", 24e9),
    ("Sana-1.6B", SANA_1600M, 1024, 8, "bf16", 80e9),
]
WITHIN = 0.1


def options_for(batch: int, precision: str, checkpointing: bool) -> TrainOptions:
    return TrainOptions(
        max_steps=2,
        batch_size=batch,
        precision=precision,
        gradient_checkpointing=checkpointing,
        ema_decay=0.9,
        workers=0,
    )


def predicted_bytes(
    shapes: dict[str, Any],
    options: TrainOptions,
    latent_shape: tuple[int, int, int],
    length: int,
    *,
    fused: bool = False,
) -> int:
    """By the dry run. fused: as on CUDA; the fake accelerator keeps attention's matrices."""
    core, mode = fake_core(shapes)
    sizes = {"latent_shape": latent_shape, "caption_length": length, "world_size": 1, "fused_attention": fused}
    return estimate(core, mode, STRATEGIES.get("finetune"), options, **sizes).peak


def measured_bytes(
    shapes: dict[str, Any], options: TrainOptions, latent_shape: tuple[int, int, int], length: int
) -> int:
    """The fake accelerator's peak over two steps of `fit`, what was there before left out."""
    gc.collect()
    before = fake_accelerator.read()["allocated"]
    placement = choose("auto")
    core = SanaTransformer2DModel(**shapes)
    system = object.__new__(LatentDiffusion)  # `fit` asks a system for velocities alone; the batches are drawn below
    system.core, system.timestep_scale, system.placement = core, 1000.0, placement
    batch = Batch(
        latents=torch.randn(options.batch_size, *latent_shape),
        noise=torch.randn(options.batch_size, *latent_shape),
        sigmas=torch.rand(options.batch_size),
        prompt=PromptEmbeds(
            torch.randn(options.batch_size, length, shapes["caption_channels"]),
            torch.ones(options.batch_size, length, dtype=torch.bool),
        ),
    )
    state = new_state(core, STRATEGIES.get("finetune").parameter_groups(core), options, placement=placement)
    with fake_accelerator.Trace() as trace:
        fit(system, None, options, state, draw=lambda step, rows: batch)
    assert state.accelerator is not None and state.step == options.max_steps
    state.accelerator.free_memory()
    return trace.peak - before


def rows_of(shapes: dict[str, Any], side: int, length: int, depths: tuple[int, ...], batches: tuple[int, ...]) -> list:
    rows = []
    latent_shape = (shapes["in_channels"], side, side)
    for depth, batch, precision, checkpointing in itertools.product(depths, batches, ("fp32", "bf16"), (False, True)):
        config, options = shapes | {"num_layers": depth}, options_for(batch, precision, checkpointing)
        predicted = predicted_bytes(config, options, latent_shape, length)
        with fake_accelerator.present():
            measured = measured_bytes(config, options, latent_shape, length)
        row = {"blocks": depth, "batch": batch, "precision": precision, "checkpointing": checkpointing}
        row |= {"predicted": predicted, "measured": measured, "ratio": round(predicted / measured, 4)}
        rows.append(row)
        print(
            f"{depth:>3} blocks  batch {batch:>2}  {precision}  {'checkpointing' if checkpointing else '':<13} "
            f"predicted {predicted / 1e6:>9,.1f} MB  measured {measured / 1e6:>9,.1f} MB  "
            f"ratio {predicted / measured:.3f}",
            flush=True,
        )
    return rows


def full_rows() -> list[dict[str, Any]]:
    """Whole cores, computed: every layer trained, moments and an average kept."""
    rows = []
    for (name, shapes, size, batch, precision, most), checkpointing in itertools.product(FULL, (False, True)):
        side = size // 32
        predicted = predicted_bytes(
            shapes | {"sample_size": side},
            options_for(batch, precision, checkpointing),
            (32, side, side),
            300,
            fused=True,
        )
        row = {"core": name, "image_size": size, "batch": batch, "precision": precision, "checkpointing": checkpointing}
        rows.append(row | {"predicted": predicted, "most": int(most)})
        print(
            f"{name} at {size} px, batch {batch}, {precision}{', checkpointing' if checkpointing else ''}: "
            f"{predicted / 1e9:.1f} GB of {most / 1e9:.0f} GB",
            flush=True,
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if reason := fake_accelerator.why_not():
        print(reason)
        return 3
    torch.set_num_threads(1)
    fake_accelerator.install()
    rows = rows_of(SMALL, 8, 24, (2,), (32,)) if asked.small else rows_of(SANA_600M, 8, 300, (2, 4), (1, 2))
    whole = [] if asked.small else full_rows()
    if asked.out:
        asked.out.write_text(
            json.dumps({"torch": torch.__version__, "rows": rows, "full_depth": whole}, indent=1) + "\n"
        )
    wrong = [row for row in rows if abs(row["ratio"] - 1) > WITHIN]
    over = [row for row in whole if row["predicted"] > row["most"]]
    print(f"{len(rows) - len(wrong)} of {len(rows)} within {WITHIN:.0%}; {len(whole) - len(over)} of {len(whole)} fit")
    return 1 if wrong or over else 0


if __name__ == "__main__":
    sys.exit(main())
