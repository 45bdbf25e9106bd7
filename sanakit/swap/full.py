"""Stage full: train the recommended strategy to the end, watched, resumable, and write the model."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.checkpoint import checkpoint_bytes, latest, load_checkpoint, preflight, save_checkpoint, set_aside
from sanakit.config import Config
from sanakit.core.dit import new_core
from sanakit.distributed import barrier, exit_code, is_main, local, whole
from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut, conditional_gain, held_out
from sanakit.interop.folder import save_null
from sanakit.monitors import STILL, MonitorRequest, make_monitors
from sanakit.sampling import sample_images
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.swap.figures import save_grid
from sanakit.swap.plan import build
from sanakit.train import (
    Batch,
    TrainOptions,
    TrainState,
    check_movement,
    fit,
    layer_groups,
    learning_rate_at,
    new_state,
    parameter_digests,
)

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

MOVED_BY = 10  # steps after which a trained parameter that stands still is an error
# what may change between two parts of one run: it does not touch the trajectory
FREE = ("train.checkpoint_every", "train.parallel", "data.cache")


def strategy_of(config: Config, recommended: str | None) -> type[Strategy]:
    """The configured strategy, the race's recommendation, or finetune; `train.rates` and `train.lora_rank` applied."""
    name = config.train.strategy if config.train.strategy != "auto" else recommended or "finetune"
    strategy = STRATEGIES.get(name)
    rank = config.train.lora_rank if strategy.lora_rank else 0
    own = {"scales": strategy.scales | config.train.rates, "lora_rank": rank}
    return type(strategy.__name__, (strategy,), own)


def options_of(config: Config, strategy: type[Strategy]) -> TrainOptions:
    own = config.train
    return TrainOptions(
        max_steps=own.max_steps,
        batch_size=own.batch_size,
        seed=own.seed,
        learning_rate=own.learning_rate or strategy.learning_rate,
        weight_decay=own.weight_decay,
        warmup=own.warmup,
        decay=own.schedule == "cosine",
        max_grad_norm=own.max_grad_norm,
        prompt_dropout=own.prompt_dropout,
        sigmas=own.sigmas,
        ema_decay=own.ema_decay,
        accumulate=own.accumulate,
        precision=own.precision,
        parallel=own.parallel,
        gradient_checkpointing=own.gradient_checkpointing,
        max_skipped=own.max_skipped,
    )


def starting_system(swap: "Swap", strategy: type[Strategy]) -> LatentDiffusion:
    """The swapped system as the strategy starts it; without a candidate the base goes on with its own weights."""
    if swap.config.candidate is None and strategy.initialise != "scratch":
        return swap.base.system()
    train, base_train = swap.candidate_data[0], swap.base_data[0]
    return build(swap.base_system, swap.candidate, strategy, train, base_train, seed=swap.config.train.seed)[0]


def resume_facts(swap: "Swap", strategy: str) -> dict[str, Any]:
    """Everything that determines a run's trajectory, flat; a checkpoint that differs is refused field by field."""
    sections = swap.config.model_dump(mode="json")
    flat = {"strategy": strategy, "candidate": swap.candidate.fingerprint(), "pictures": swap.pictures.fingerprint}
    for section, values in sections.items():
        inner = values.items() if isinstance(values, dict) else [("", values)]
        flat |= {f"{section}.{key}".rstrip("."): value for key, value in inner if section != "smoke"}
    return {key: value for key, value in flat.items() if key not in FREE}


def train_full(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps; returns the evidence of stage full. swap.resume: auto, never, or a checkpoint folder.

    A signal saves at the next step border and exits with 143, or 130 for Ctrl-C.
    """
    config, run = swap.config, swap.run
    strategy = strategy_of(config, (run.read_json("strategy.json") or {}).get("recommended"))
    name = strategy.name
    train, test = swap.candidate_data
    system = starting_system(swap, strategy)

    count = swap.num_held_out
    evaluate = lambda: held_out(system, test, count=count)
    start = evaluate()
    with torch.random.fork_rng():  # adapters are drawn
        torch.manual_seed(config.train.seed)
        groups = strategy.parameter_groups(system.core)
    groups = layer_groups(system.core, groups, config.train.layer_decay)
    drift_alarms = 0
    if groups:
        options = options_of(config, strategy)
        state = new_state(system.core, groups, options)
        untouched = parameter_digests(system.core)
        facts = resume_facts(swap, name)
        checkpoints = run.path / "checkpoints"
        _resume(checkpoints, swap.resume, system, state, facts)
        for row in state.history:
            run.append(row["file"], [row["row"]])
        preflight(checkpoints, checkpoint_bytes(system.core, state))
        base = (swap.base_system, swap.base_data[0])
        monitors = make_monitors(config.monitors, system, train, base, options)
        monitors.restore(state.extras)
        drift_alarms = sum(bool(r["row"].get("alarm")) and r["row"]["name"] in STILL for r in state.history)
        losses = state.extras.get("losses", torch.empty(0)).tolist()
        look_every = max(1, options.max_steps // config.monitors.looks)

        def record(file: str, rows: list[dict[str, Any]]) -> None:
            run.append(file, rows)
            state.history += [{"file": file, "row": row} for row in rows]

        def save(step: int) -> None:
            state.extras = monitors.tensors() | {"losses": torch.tensor(losses, dtype=torch.float64)}
            save_checkpoint(checkpoints, system.core, state, facts)

        def after_step(step: int, loss: float, batch: Batch, predicted: Tensor) -> None:
            nonlocal drift_alarms, losses
            swap.progress(f"training {name}", step, options.max_steps)
            if step - 1 in state.skipped:
                record("ledger.jsonl", [{"name": f"step {step - 1}", "reason": f"loss {loss}: step left out"}])
            else:
                losses.append(loss)
                monitors.observe(batch, predicted)
            if step == min(MOVED_BY, options.max_steps) >= 3:
                check_movement(system.core, untouched)
            if step % look_every == 0:
                readings = monitors.report(step)
                drift_alarms += sum(r.alarm and r.name in STILL for r in readings)
                request = monitors.act(readings)
                record("readings.jsonl", [r.as_dict() | {"stage": "full"} for r in readings])
                row = {
                    "stage": "full",
                    "strategy": name,
                    "step": step,
                    "split": "train",
                    "loss": float(np.mean(losses)),
                    "by_sigma": None,
                }
                losses = []
                record("metrics.jsonl", [row, _held_out_row(name, step, evaluate())])
                system.core.train()
                if request:
                    raise request
            if step % config.train.checkpoint_every == 0 or step == options.max_steps:
                save(step)

        rate = lambda step, options: monitors.factor * learning_rate_at(step, options)
        try:
            fit(system, train, options, state, after_step=after_step, rate=rate)
        except MonitorRequest as request:
            found = good_checkpoint(checkpoints, request)
            load_checkpoint(found, system.core, state, facts)
            monitors.restore(state.extras)
            monitors.factor *= 0.5
            print(f"monitor: back to step {state.step}, learning rate times {monitors.factor:g}", file=sys.stderr)
            try:
                fit(system, train, options, state, after_step=after_step, rate=rate)
            except MonitorRequest as again:
                raise SanakitError("SK0511", f"after a roll-back: {again}") from again
        finally:
            monitors.close()
        if state.stopped:
            if state.step % config.train.checkpoint_every and state.step != options.max_steps:
                save(state.step)
            print(
                f"{signal.Signals(state.stopped).name}: stopped at step {state.step} of {options.max_steps}, saved in "
                f"{checkpoints}; the same command with --resume auto goes on",
                file=sys.stderr,
            )
            sys.exit(exit_code(state.stopped))
        if options.max_steps >= 3:
            check_movement(system.core, untouched)
        if state.ema is not None:
            for key, value in system.core.state_dict().items():
                local(value).copy_(state.ema[key])
        system.core = gathered(system.core, strategy)
        strategy.finish(system.core)
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
        "relative_error": swap.target.relative(end),
        "base_relative_error": swap.target.base,
        "sample_std": images["candidate"].std((1, 2, 3)).numpy(),
        "base_sample_std": images["base"].std((1, 2, 3)).numpy(),
        "drift_alarms": drift_alarms,
    }


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
        "quality": {"held_out_loss": result.loss, "relative_error": float(swap.target.relative(result).mean())},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def gathered(core: SanaTransformer2DModel, strategy: type[Strategy]) -> SanaTransformer2DModel:
    """A core whose parameters are whole again after sharded training; any other core as it is."""
    if not any(hasattr(p, "full_tensor") for p in core.parameters()):
        return core
    plain = new_core({k: v for k, v in core.config.items() if not k.startswith("_")}, seed=0)
    strategy.parameter_groups(plain)
    plain.load_state_dict({k: whole(v) for k, v in core.state_dict().items()})
    return plain


def good_checkpoint(checkpoints: Path, request: MonitorRequest) -> Path:
    """The newest checkpoint from before the drift. Raises SK0511 where the action is to stop, or there is none."""
    if request.action == "stop":
        raise SanakitError("SK0511", str(request)) from request
    whole_ones = [path.parent for path in sorted(checkpoints.glob("step-*/manifest.json"))]
    found = [path for path in whole_ones if int(path.name.removeprefix("step-")) <= request.since]
    if not found:
        raise SanakitError("SK0511", f"{request}; no checkpoint from step {request.since} or before") from request
    return found[-1]


def _resume(checkpoints: Path, resume: str, system: LatentDiffusion, state: TrainState, facts: dict[str, Any]) -> None:
    if resume == "never":
        if is_main():
            set_aside(checkpoints)
        barrier()
        return
    found = latest(checkpoints) if resume == "auto" else Path(resume)
    if found is not None:
        load_checkpoint(found if resume == "auto" else latest(found) or found, system.core, state, facts)
