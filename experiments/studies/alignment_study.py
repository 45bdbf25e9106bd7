"""Which closed form starts a swap best: input maps, heads and adapters on tiny-sana, distance and loss,
before and after training.

    python experiments/studies/alignment_study.py vae dc-f16c16       # one candidate; adds its rows
    python experiments/studies/alignment_study.py text wordllama
    python experiments/studies/alignment_study.py distill wordllama   # from the base instead of from images
    python experiments/studies/alignment_study.py blocks dc-f16c16    # every block's closed form, by draws
    python experiments/studies/alignment_study.py table               # the tables of docs/alignment.md

Rows go to experiments/results/alignment_study.json, one record a candidate and seed (--seed). Held-out images
throughout, in their random order. Distance: squared, relative, to the base's features with matched noise, after the
patch embedding and each block. Loss: mean over five sigmas. `over_reference`: how much a loss lies above that of the
REFERENCE of its table, and the standard error of that difference image by image.
"""

import argparse
import json
import platform
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.alignment import CrossMoments, align_caption, align_input, align_output, feature_distance, pair_captions
from sanakit.alignment.text import Captions
from sanakit.alignment.vae import head_rows, input_moments
from sanakit.assembly import LatentDiffusion, evaluating
from sanakit.config import make_config
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.held_out import averaged, held_out
from sanakit.flow import EVAL_SIGMAS, interpolate, sample_sigmas
from sanakit.loading import load_base
from sanakit.run import RunFolder
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.distill import Teacher
from sanakit.swap.early import decide_image_size
from sanakit.swap.plan import build, swap_core
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.training.loop import TrainOptions, fit, new_state

RESULTS = Path("experiments/results/alignment_study.json")
IMAGES = 256
BLOCKS_HELD_OUT = 128
TIMED_STEPS = 5
INPUTS = ("naive", "random input", "procrustes", "ridge", "independent", "coupled", "blend")
ADAPTERS = {"conv-latents": "blend", "mlp-latents": "blend"}
REFERENCE = {"vae": "blend", "text": "tokens", "distill": "align"}  # what `align` does


def open_swap(kind: str, candidate: str, seed: int, held_out_images: int = IMAGES) -> Swap:
    key = "vae" if kind == "vae" else "text_encoder"
    judged = {"held_out": held_out_images}
    values = {"base": "tiny-sana", key: {"name": candidate}, "train": {"seed": seed}, "smoke": judged}
    config = decide_image_size(make_config(values), load_base("tiny-sana").card["image_size"])
    return Swap(config=config, run=RunFolder(Path(), config))


def losses_of(system: LatentDiffusion, data: LatentDataset, prompt: str = "own") -> Tensor:
    """Held-out loss of every image, mean over sigmas. (IMAGES,)"""
    return held_out(system, data, count=IMAGES, prompt=prompt).losses.mean(0)


def trained_losses(system: LatentDiffusion, swap: Swap, steps: int, seed: int) -> dict[str, Tensor]:
    """Held-out losses after half of the steps and all of them: every layer, 32 images, the strategy's own rate."""
    strategy = STRATEGIES.get("finetune")
    options = TrainOptions(
        max_steps=steps,
        batch_size=32,
        learning_rate=strategy.learning_rate,
        schedule="constant",
        ema_decay=0.95,
        seed=seed,
        warmup=10,
    )
    state = new_state(system.core, strategy.parameter_groups(system.core), options)
    losses = {}
    for until in (steps // 2, steps):
        fit(system, swap.candidate_data[0], options, state, until=until)
        with averaged(system.core, state.ema):
            losses[str(until)] = losses_of(system, swap.candidate_data[1])
    return losses


def summed_up(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Rows with means in place of losses by image, and how far each lies above the row named `reference`."""
    by_method = {row["method"]: row["images"] for row in rows}
    for row in rows:
        images = row.pop("images")
        row["loss"] = {name: round(losses.mean().item(), 4) for name, losses in images.items()}
        above = {
            name: losses - by_method[reference][name] for name, losses in images.items() if name in by_method[reference]
        }
        row["over_reference"] = {
            name: [round(over.mean().item(), 4), round(over.std().item() / len(over) ** 0.5, 4)]
            for name, over in above.items()
        }
    return rows


def distances(system: LatentDiffusion, swap: Swap) -> dict[str, list[float]]:
    candidate_test, theirs = swap.candidate_data[1], swap.base_data[1]
    rows = torch.arange(64)
    prompts = candidate_test.evaluation_prompts(rows), theirs.evaluation_prompts(rows)
    return {
        f"{sigma:g}": feature_distance(
            system, swap.base_system, candidate_test.latents[rows, 0], theirs.latents[rows, 0], *prompts, sigma=sigma
        )
        for sigma in EVAL_SIGMAS
    }


def means(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(values.mean().item(), 4) for name, values in losses.items()}


def vae_study(swap: Swap, args: argparse.Namespace) -> dict[str, Any]:
    base, (train, test), (base_train, base_test) = swap.base_system, swap.candidate_data, swap.base_data
    plain = swap_core(base, swap.candidate, args.seed)
    rows = []
    for method in (*INPUTS, *ADAPTERS):
        core = swap_core(base, swap.candidate, args.seed, method if method in ADAPTERS else None)
        system = LatentDiffusion(
            vae=swap.candidate, text_encoder=base.text_encoder, core=core, image_size=base.image_size
        )
        row: dict[str, Any] = {"method": method}
        start = time.process_time()
        if method not in ("naive", "random input"):
            row |= align_input(
                core, base.core, train.latents, base_train.latents, method=ADAPTERS.get(method, method), count=4096
            )
        row["input_seconds"] = time.process_time() - start
        if method != "random input":
            row["distance"] = distances(system, swap)
        start = time.process_time()
        if method != "naive":
            align_output(system, train)
        row["head_seconds"] = time.process_time() - start
        result = held_out(system, test, count=IMAGES)
        row |= {"images": {"0": result.losses.mean(0)}, "by_sigma": result.by_sigma}
        if method == "blend" and args.heads:
            row["heads"] = head_variants(system, swap)
        start = time.process_time()
        if method in args.train:
            row["images"] |= trained_losses(system, swap, args.steps, args.seed)
            row["seconds_per_step"] = (time.process_time() - start) / args.steps
        rows.append(row)
        print(method, flush=True)
    return {
        "context_r2": {
            f"{size} x {size}": context_r2(plain, base.core, (train, base_train), (test, base_test), size)
            for size in (1, 3)
        },
        "base_loss": held_out(base, base_test, count=IMAGES).loss,
        "rows": summed_up(rows, REFERENCE["vae"]),
    }


def context_r2(core: Any, base_core: Any, train: tuple, test: tuple, size: int) -> float:
    """Held-out R2 of the base's patch from size x size of the candidate's, clean regression."""
    projection, patch = deepcopy(core.patch_embed.proj), core.config.patch_size
    projection.kernel_size, projection.padding = (size * patch,) * 2, (size // 2 * patch,) * 2

    def chunks(data):
        return iter(data.latents[:2048, 0].split(256))

    weight, offset = input_moments(projection, base_core.patch_embed.proj, *map(chunks, train)).ridge()
    unseen = input_moments(projection, base_core.patch_embed.proj, *map(chunks, test))
    return unseen.r2(weight, offset)


def head_variants(system: LatentDiffusion, swap: Swap) -> dict[str, float]:
    """Held-out loss, mean over sigmas, of other heads on the same features."""
    train, test = swap.candidate_data
    draws = {
        "as used (2,048 draws)": (2048, 1e-3, None),
        "6,144 draws": (6144, 1e-3, None),
        "little ridge": (2048, 1e-6, None),
        "uniform sigmas": (2048, 1e-3, "uniform"),
        "a head for each sigma, a bound": (2048, 1e-3, "each"),
    }
    seen = {s: draw(system, test, IMAGES, s, seed=9) for s in EVAL_SIGMAS}
    losses = {}
    for name, (count, penalty, sigmas) in draws.items():
        if sigmas == "each":
            heads = {s: head_of(draw(system, train, count // 2, s), penalty) for s in EVAL_SIGMAS}
        else:
            heads = dict.fromkeys(EVAL_SIGMAS, head_of(draw(system, train, count, sigmas), penalty))
        wrong = [(goals - x @ heads[s][0].T - heads[s][1]).square().mean() for s, (x, goals) in seen.items()]
        losses[name] = float(torch.stack(wrong).mean())
    return losses


def head_of(rows: tuple[Tensor, Tensor], penalty: float) -> tuple[Tensor, Tensor]:
    x, y = (t.flatten(0, 1) for t in rows)
    moments = CrossMoments.empty(x.shape[1], y.shape[1])
    moments.add(x, y)
    return moments.ridge(penalty)


def draw(
    system: LatentDiffusion, data: Any, count: int, sigma: float | str | None, seed: int = 3
) -> tuple[Tensor, Tensor]:
    """Last features (N, T, H) and velocities (N, T, out) of `count` draws. sigma: None draws it as training does."""
    features: list[Tensor] = []
    goals = []
    handle = system.core.proj_out.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    generator = torch.Generator().manual_seed(seed)
    with evaluating(system.core):
        for start in range(0, count, 128):
            rows = torch.arange(start, min(start + 128, count)) % len(data)
            latents = data.latents[rows, 0]
            noise = torch.randn(latents.shape, generator=generator)
            levels = sample_sigmas(len(rows), shift=float(system.flow_shift or 1), generator=generator)
            if sigma == "uniform":
                levels = torch.rand(len(rows), generator=generator)
            elif sigma is not None:
                levels = torch.full((len(rows),), sigma)
            prompt = data.prompts(rows, torch.randint(1 << 30, (len(rows),), generator=generator))
            system.velocity(interpolate(latents, noise, levels), levels, prompt)
            goals.append(head_rows(noise - latents, system.core.config.patch_size))
    handle.remove()
    return torch.cat(features), torch.cat(goals)


def text_study(swap: Swap, args: argparse.Namespace) -> dict[str, Any]:
    base, (train, test), (base_train, base_test) = swap.base_system, swap.candidate_data, swap.base_data
    paired = pair_captions(train.captions, base_train.captions, train.texts, swap.candidate, base.text_encoder)
    pooled = Captions(candidate=train.captions, base=base_train.captions)

    def losses(system: LatentDiffusion, data: LatentDataset) -> dict[str, Tensor]:
        return {prompt: losses_of(system, data, prompt) for prompt in ("own", "shuffled")}

    rows = []
    for method in ("random", "mean tokens", "tokens", "tokens, scale matched", *args.adapters):
        core = swap_core(base, swap.candidate, args.seed, method if method in args.adapters else None)
        system = LatentDiffusion(
            vae=base.vae,
            text_encoder=swap.candidate,
            core=core,
            image_size=base.image_size,
            flow_shift=base.flow_shift,
        )
        row: dict[str, Any] = {"method": method}
        start = time.process_time()
        if method != "random":
            captions = pooled if method == "mean tokens" else paired
            row |= align_caption(core, base.core, captions, nulls=(system.null, base.null))
        row["seconds"] = time.process_time() - start
        if method == "tokens, scale matched":
            match_scale(core, base.core, train.captions, base_train.captions)
        row["images"] = losses(system, test)
        if method in args.train or method in ("random", "tokens", "mean tokens", *args.adapters):
            row["images"] |= trained_losses(system, swap, args.steps, args.seed)
        rows.append(row)
        print(method, flush=True)
    return {"base_loss": means(losses(base, base_test)), "rows": summed_up(rows, REFERENCE["text"])}


def distill_study(swap: Swap, args: argparse.Namespace) -> dict[str, Any]:
    """Caption layers alone, equal steps: from images (align+head), through the frozen core, to the base's features."""
    base, (train, test), (base_train, base_test) = swap.base_system, swap.candidate_data, swap.base_data
    teacher = Teacher(base=base, data=base_train, seed=args.seed)
    prompts = ("own", "shuffled", "null")

    def losses(system: LatentDiffusion, data: LatentDataset) -> dict[str, Tensor]:
        return {prompt: losses_of(system, data, prompt) for prompt in prompts}

    rows = []
    for method in ("align", "embedding-mse", "align+head", "distill", "finetune"):
        strategy = STRATEGIES.get(method)
        start = time.process_time()
        system, scores = build(base, swap.candidate, strategy, train, base_train, seed=args.seed)
        row: dict[str, Any] = {"method": method, **scores, "start_seconds": time.process_time() - start}
        groups = strategy.parameter_groups(system.core)
        if groups:
            start = time.process_time()
            options = TrainOptions(
                max_steps=args.steps,
                batch_size=32,
                learning_rate=strategy.learning_rate,
                schedule="constant",
                ema_decay=0.95,
                seed=args.seed,
                warmup=10,
            )
            state = new_state(system.core, groups, options)
            draw = teacher.draws(system, train, options) if strategy.teacher else None
            if strategy.teacher:
                row["teacher_seconds"] = time.process_time() - start
            fit(system, train, options, state, draw=draw)
            with averaged(system.core, state.ema):
                row["images"] = losses(system, test)
            row["seconds"] = time.process_time() - start
        else:
            row["images"] = losses(system, test)
        rows.append(row)
        print(method, flush=True)
    return {"base_loss": means(losses(base, base_test)), "rows": summed_up(rows, REFERENCE["distill"])}


def blocks_study(candidate: str, args: argparse.Namespace) -> dict[str, Any]:
    """Relative error before any step on BLOCKS_HELD_OUT images: align, and align-blocks by the number of draws."""
    kind = "text" if candidate in TEXT_ENCODERS.names() else "vae"
    swap = open_swap(kind, candidate, args.seed, BLOCKS_HELD_OUT)
    train, test = swap.splits
    swap.splits = train.subset(range(min(args.images, len(train)))), test.subset(range(BLOCKS_HELD_OUT))
    base, data, base_data = swap.base_system, swap.candidate_data[0], swap.base_data[0]
    rows, aligned = [], np.empty(0)
    for name, draws in [("align", None), *(("align-blocks", count) for count in args.draws)]:
        start = time.process_time()
        options = {"draws": draws} if draws else {}
        system, scores = build(base, swap.candidate, STRATEGIES.get(name), data, base_data, seed=args.seed, **options)
        row: dict[str, Any] = {"method": name, "draws": draws, "seconds": round(time.process_time() - start, 2)}
        result = held_out(system, swap.candidate_data[1], count=BLOCKS_HELD_OUT)
        errors = swap.target.relative(result)
        aligned = errors if draws is None else aligned
        fewer = errors - aligned
        row |= {"relative_error": float(errors.mean()), "less_than_align": -float(fewer.mean())}
        row["standard_error"] = float(fewer.std() / len(fewer) ** 0.5)  # of the difference, image by image
        row |= {"loss": result.loss, "by_sigma": result.by_sigma, "note": scores.get("start_note", "")}
        rows.append(row)
        print(json.dumps(row), flush=True)
    strategy = STRATEGIES.get("finetune")
    options = {"max_steps": TIMED_STEPS, "batch_size": 32, "learning_rate": strategy.learning_rate, "seed": args.seed}
    state = new_state(system.core, strategy.parameter_groups(system.core), TrainOptions(**options))
    start = time.process_time()
    fit(system, data, TrainOptions(**options), state)
    return {
        "training_images": len(data),
        "held_out_images": BLOCKS_HELD_OUT,
        "unit": swap.target.measure,
        "seconds_per_step": round((time.process_time() - start) / TIMED_STEPS, 3),
        "rows": rows,
    }


@torch.no_grad()
def match_scale(core: Any, base_core: Any, candidate_data: Any, base: Any) -> None:
    """Spread of the first layer's outputs set to the base's: what ridge takes away is given back."""

    def spread(layer, prompt):
        return layer(prompt.embeds[:2000].float())[prompt.mask[:2000]]

    layer, goal = core.caption_projection.linear_1, spread(base_core.caption_projection.linear_1, base)
    mine = spread(layer, candidate_data)
    ratio = goal.std(0).norm() / mine.std(0).norm()
    layer.weight.mul_(ratio)
    layer.bias.copy_(mine.mean(0) + ratio * (layer.bias - mine.mean(0)))


def table(results: dict[str, Any]) -> None:
    if blocks := {name: study for name, study in results.items() if study["kind"] == "blocks"}:
        blocks_table(blocks)
    for name, study in results.items():
        if study["kind"] == "blocks":
            continue
        context = ", ".join(f"{k} {v:.3f}" for k, v in study.get("context_r2", {}).items())
        base_loss = study["base_loss"]
        print(f"\n**{name}** (base {base_loss}" + (f"; clean R2 from {context})\n" if context else ")\n"))
        columns = list(dict.fromkeys(key for row in study["rows"] for key in row["loss"]))
        vae = study["kind"] == "vae"
        heads = [*(["distance at sigma .1 / .5 / .9, patch embedding", "last block"] if vae else []), *columns]
        print("| method | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
        for row in study["rows"]:
            cells = [distance_cell(row, depth) for depth in (0, -1)] if vae else []
            print("| " + " | ".join([f"`{row['method']}`", *cells, *(loss_cell(row, key) for key in columns)]) + " |")


def distance_cell(row: dict[str, Any], depth: int) -> str:
    if "distance" not in row:
        return ""
    return " / ".join(f"{row['distance'][sigma][depth]:.3f}" for sigma in ("0.1", "0.5", "0.9"))


def loss_cell(row: dict[str, Any], key: str) -> str:
    """A loss, and in brackets how far it lies above the reference's."""
    if key not in row["loss"]:
        return ""
    over, error = row["over_reference"].get(key, (0.0, 0.0))
    return f"{row['loss'][key]:.4f}" + (f" ({over:+.4f} +- {error:.4f})" if error else "")


def blocks_table(results: dict[str, Any]) -> None:
    print(
        "| candidate, seed | start | draws | relative error before any step | less than `align` | CPU seconds | in "
        "steps |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, study in results.items():
        for row in study["rows"]:
            less = f"{row['less_than_align']:.3f} +- {row['standard_error']:.3f}" if row["draws"] else ""
            start = f"| {name.removeprefix('blocks ')} | `{row['method']}` | {row['draws'] or ''}"
            cost = f"{row['seconds']:.1f} | {row['seconds'] / study['seconds_per_step']:.0f}"
            print(f"{start} | {row['relative_error']:.3f} | {less} | {cost} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["vae", "text", "distill", "blocks", "table"])
    parser.add_argument("candidate", nargs="?")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs="*", default=["naive", "procrustes", "ridge", "blend", "conv-latents"])
    parser.add_argument("--heads", action="store_true", help="other heads too, on the features of blend")
    parser.add_argument("--adapters", nargs="*", default=["mlp-caption", "resampler-caption", "timestep-caption"])
    parser.add_argument("--draws", nargs="*", type=int, default=[512, 1024], help="of blocks")
    parser.add_argument("--images", type=int, default=1 << 30, help="training images of blocks, by default all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    if args.kind != "table":
        if args.kind == "blocks":
            measured = blocks_study(args.candidate, args)
        else:
            swap = open_swap(args.kind, args.candidate, args.seed)
            measured = {"vae": vae_study, "text": text_study, "distill": distill_study}[args.kind](swap, args)
        facts = {"kind": args.kind, "base": "tiny-sana", "seed": args.seed, "steps": args.steps}
        facts["machine"] = f"{platform.machine()}, one thread, shared"
        facts["command"] = "python experiments/studies/alignment_study.py " + " ".join(sys.argv[1:])
        results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}  # another candidate may have finished
        name = f"{args.kind} {args.candidate}, seed {args.seed}"
        results[name] = facts | measured
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    table(results)


if __name__ == "__main__":
    main()
