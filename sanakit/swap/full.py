"""Stage full: train the recommended strategy to the end, watched, resumable, and write the model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sanakit.checkpoint import latest, load_checkpoint, save_checkpoint
from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut, conditional_gain, held_out
from sanakit.interop.folder import save_null
from sanakit.monitors import LatentMonitor
from sanakit.sampling import sample_images
from sanakit.swap.base import STRATEGIES
from sanakit.swap.figures import save_grid
from sanakit.swap.plan import build
from sanakit.train import Batch, TrainOptions, fit, new_state

if TYPE_CHECKING:
    from sanakit.swap.stages import Swap

LOOKS = 8


def train_full(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps; returns the evidence of stage full. swap.resume: auto, never, or a checkpoint folder."""
    config, run, resume = swap.config, swap.run, swap.resume
    recommended = (run.read_json("strategy.json") or {}).get("recommended")
    name = config.train.strategy if config.train.strategy != "auto" else recommended or "finetune"
    strategy = STRATEGIES.get(name)
    train, test = swap.candidate_data
    system, _ = build(swap.base_system, swap.candidate, strategy, train, swap.base_data[0], seed=config.train.seed)

    count = len(swap.test_images)
    evaluate = lambda: held_out(system, test, images=swap.test_images, count=count)
    start = evaluate()
    groups = strategy.parameter_groups(system.core)
    drift_alarms = 0
    if groups:
        options = TrainOptions(
            max_steps=config.train.max_steps,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            learning_rate=config.train.learning_rate or strategy.learning_rate,
        )
        state = new_state(system.core, groups, options)
        facts = {"key": run.key, "strategy": name}
        checkpoints = run.path / "checkpoints"
        found = latest(checkpoints) if resume == "auto" else None if resume == "never" else Path(resume)
        if found is not None:
            load_checkpoint(found, system.core, state, facts)
        monitor = LatentMonitor(reference=train.latents[:1024, 0], looks=LOOKS)
        look_every = max(1, options.max_steps // LOOKS)
        losses: list[float] = []

        def after_step(step: int, loss: float, batch: Batch, predicted: Tensor) -> None:
            nonlocal drift_alarms
            losses.append(loss)
            monitor.observe(batch, predicted)
            swap.progress(f"training {name}", step, options.max_steps)
            if step % look_every == 0:
                readings = monitor.report(step)
                drift_alarms += sum(r.alarm for r in readings)
                run.append("readings.jsonl", [r.as_dict() | {"stage": "full"} for r in readings])
                row = {
                    "stage": "full",
                    "strategy": name,
                    "step": step,
                    "split": "train",
                    "loss": float(np.mean(losses[-look_every:])),
                    "by_sigma": None,
                }
                run.append("metrics.jsonl", [row, _held_out_row(name, step, evaluate())])
                system.core.train()
            if step % config.train.checkpoint_every == 0 or step == options.max_steps:
                save_checkpoint(checkpoints, system.core, state, facts)

        fit(system, train, options, state, after_step=after_step)
    end = evaluate()
    swap.progress("sampling", 0, 2)
    prompts = swap.sample_prompts()
    images = {
        "base": sample_images(swap.base_system, prompts, seed=config.train.seed),
        "candidate": sample_images(system, prompts, seed=config.train.seed),
    }
    swap.add_figures(
        "full",
        [
            save_grid(
                run.path,
                f"samples-full-{label}",
                grid,
                "samples",
                f"{label}, after full training with {name}" if label == "candidate" else label,
                "; ".join(prompts),
            )
            for label, grid in images.items()
        ],
    )
    write_model(swap, system, name, end)
    return {
        "start_losses": start.losses.mean(0).numpy(),
        "end_losses": end.losses.mean(0).numpy(),
        "conditional_gain": conditional_gain(system, test, count=count).numpy(),
        "one_step": _errors(end),
        "base_one_step": _errors(swap.base_held_out),
        "sample_std": images["candidate"].std((1, 2, 3)).numpy(),
        "base_sample_std": images["base"].std((1, 2, 3)).numpy(),
        "drift_alarms": drift_alarms,
    }


def _errors(result: HeldOut) -> np.ndarray:
    if result.one_step is None:
        raise SanakitError("SK0207", "one-step errors were not measured")
    return result.one_step.numpy()


def _held_out_row(strategy: str, step: int, result: HeldOut) -> dict[str, Any]:
    return {
        "stage": "full",
        "strategy": strategy,
        "step": step,
        "split": "held_out",
        "loss": result.loss,
        "by_sigma": result.by_sigma,
    }


def write_model(swap: "Swap", system: Any, strategy: str, result: HeldOut) -> None:
    """`model/`: the core as diffusers saves it, and a card that `--base path:DIR` and `sample` read."""
    folder = swap.run.path / "model"
    system.core.save_pretrained(folder)
    save_null(system.text_encoder, folder)
    is_vae = swap.config.kind == "vae"
    card = {
        "recipe": f"sanakit, strategy {strategy}, {swap.config.train.max_steps} steps",
        "seed": swap.config.train.seed,
        "base": swap.base.name,
        "vae": swap.config.vae.name or swap.base.card["vae"],
        "scaling_factor": swap.config.vae.scaling_factor if is_vae else swap.base.card.get("scaling_factor"),
        "text_encoder": swap.config.text_encoder.name or swap.base.card["text_encoder"],
        "image_size": system.image_size,
        "flow_shift": system.flow_shift,
        "data": {"source": swap.pictures.source, "fingerprint": swap.pictures.fingerprint},
        "quality": {"held_out_loss": result.loss, "one_step_error": float(torch.as_tensor(result.one_step).mean())},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
