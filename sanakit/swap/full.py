"""Stage full: train the recommended strategy to the end, watched, resumable, and write the model."""

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor

from sanakit.adapters import adapters_of, attach, fresh_core
from sanakit.assembly import LatentDiffusion
from sanakit.checkpoint import Saver, checkpoint_bytes, latest, load_checkpoint, preflight, set_aside
from sanakit.config import Config
from sanakit.core.dit import save_core
from sanakit.data.cache import LatentDataset
from sanakit.distributed import barrier, exit_code, is_main, local, whole
from sanakit.drift.features import embedding_blocks
from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut, conditional_gain, held_out
from sanakit.interop.folder import save_null
from sanakit.interop.lora import save_lora
from sanakit.monitors import STILL, MonitorRequest, make_monitors
from sanakit.sampling import sample_images
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.swap.distill import Teacher
from sanakit.swap.figures import save_grid, to_uint8
from sanakit.swap.gradual import SETTLED, join_gradually
from sanakit.swap.joint import as_encoded_now, encoder_group, save_encoder, trainable_copy
from sanakit.swap.moving import MovingMonitor
from sanakit.swap.plan import build
from sanakit.text_encoders import TextEncoder
from sanakit.tracking import Trackers
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
from sanakit.watch import Watch

if TYPE_CHECKING:
    from sanakit.run import RunFolder
    from sanakit.swap.context import Swap

REFERENCE = 1024  # pictures or captions that a stream is compared with
SAMPLES = 4  # pictures of a grid while training
MOVED_BY = 10  # steps after which a trained parameter that stands still is an error
# what may change between two parts of one run: it does not touch the trajectory
FREE = (
    "train.checkpoint_every",
    "train.parallel",
    "train.async_checkpoints",
    "train.hang_timeout",
    "train.log_every",
    "train.sample_every",
    "train.report_to",
    "data.cache",
    "data.workers",
)


def strategy_of(config: Config, raced: dict[str, Any]) -> type[Strategy]:
    """The configured strategy, the race's recommendation, or finetune, at the learning rate that its race found best;
    `train.rates` and `train.lora_rank` applied. raced: strategy.json, empty where no race was run."""
    name = config.train.strategy if config.train.strategy != "auto" else raced.get("recommended") or "finetune"
    strategy = STRATEGIES.get(name)
    rate = next((c["learning_rate"] for c in raced.get("candidates", []) if c["name"] == name), strategy.learning_rate)
    rank = config.train.lora_rank if strategy.lora_rank else 0
    own = {"scales": strategy.scales | config.train.rates, "lora_rank": rank, "learning_rate": rate}
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
        optimizer=own.optimizer,
        compile=own.compile,
        workers=config.data.workers,
    )


def starting_system(swap: "Swap", strategy: type[Strategy]) -> LatentDiffusion:
    """The swapped system as the strategy starts it; without a candidate the base goes on with its own weights, an adapter
    added as the identity."""
    if swap.config.candidate is None and strategy.initialise != "scratch":
        system, name = swap.base.system(), swap.config.adapter.name
        if name and name not in adapters_of(system.core):
            attach(system.core, name, seed=swap.config.train.seed)
        return system
    train, base_train = swap.candidate_data[0], swap.base_data[0]
    options = {"seed": swap.config.train.seed, "adapter": swap.config.adapter.name}
    return build(swap.base_system, swap.candidate, strategy, train, base_train, **options)[0]


def resume_facts(swap: "Swap", strategy: str) -> dict[str, Any]:
    """Everything that determines a run's trajectory, flat; a checkpoint that differs is refused field by field."""
    flat = {"strategy": strategy, "candidate": swap.candidate.fingerprint(), "pictures": swap.pictures.fingerprint}
    flat |= flat_config(swap.config)
    return {key: value for key, value in flat.items() if key not in FREE and not key.startswith("smoke.")}


def train_full(swap: "Swap") -> dict[str, Any]:
    """Train to train.max_steps; returns the evidence of stage full. swap.resume: auto, never, or a checkpoint folder.

    A signal saves at the next step border and exits with 143, or 130 for Ctrl-C.
    """
    config, run = swap.config, swap.run
    strategy = strategy_of(config, run.read_json("strategy.json") or {})
    name = strategy.name
    train, test = swap.candidate_data
    system = starting_system(swap, strategy)
    encoder_rate = config.text_encoder.learning_rate
    encoder: TextEncoder | None = None
    if encoder_rate:
        encoder = trainable_copy(system.text_encoder, gradient_checkpointing=config.text_encoder.gradient_checkpointing)
        system.text_encoder = encoder

    count = swap.num_held_out

    def evaluate() -> HeldOut:
        now = as_encoded_now(system, test, count) if encoder else test
        return held_out(system, now, count=count)

    start = evaluate()
    with torch.random.fork_rng():  # adapters are drawn
        torch.manual_seed(config.train.seed)
        groups = strategy.parameter_groups(system.core)
    groups = layer_groups(system.core, groups, config.train.layer_decay)
    share, steps = config.train.gradual, config.train.max_steps
    groups = join_gradually(system.core, groups, kind=config.kind, share=share, max_steps=steps)
    drift_alarms = 0
    if encoder and (strategy.teacher or not groups):
        what = "learns from the base's own pictures" if strategy.teacher else "trains no core beside it"
        raise SanakitError("SK0104", f"text_encoder.learning_rate: strategy {name} {what}", fix="Use finetune.")
    if groups:
        options = replace(options_of(config, strategy), live_captions=encoder is not None)
        if encoder and encoder_rate:
            groups.append(encoder_group(encoder, encoder_rate, options.learning_rate))
        state = new_state(system.core, groups, options, encoder)
        untouched = parameter_digests(state.module)
        facts = resume_facts(swap, name)
        checkpoints = run.path / "checkpoints"
        pick_up(checkpoints, swap.resume, state, facts)
        for row in state.history:
            run.append(row["file"], [row["row"]])
        drop_later(run, state.step)
        preflight(checkpoints, checkpoint_bytes(state.module, state))
        stream = swap.stream(system)
        base = (swap.base_system, swap.base_data[0])
        reference = reference_latents(stream) if stream.members else None
        monitors = make_monitors(
            config.monitors, system, train, base, options, latents=reference, frozen_text=encoder is None
        )
        monitors.restore(state.extras)
        moving = None
        if encoder:
            total = len(train.captions)  # the captions as the encoder gave them at the start
            rows = torch.linspace(0, total - 1, min(REFERENCE, total)).long()
            blocks = embedding_blocks(train.captions.embeds[rows].float(), train.captions.mask[rows])
            moving = MovingMonitor("embeddings", blocks)
            moving.restore(state.extras)
        drift_alarms = sum(bool(r["row"].get("alarm")) and r["row"]["name"] in STILL for r in state.history)
        losses = state.extras.get("losses", torch.empty(0)).tolist()
        look_every = max(1, options.max_steps // config.monitors.looks)
        trackers = Trackers(config.train.report_to, run.path, flat_config(config))
        saver = Saver(checkpoints, asynchronous=config.train.async_checkpoints)
        watch = Watch(checkpoints.resolve().parent / ".ranks", config.train.hang_timeout)
        clock = time.perf_counter()

        def record(file: str, rows: list[dict[str, Any]]) -> None:
            run.append(file, rows)
            state.history += [{"file": file, "row": row} for row in rows]

        def save() -> None:
            own = moving.tensors() if moving else {}
            state.extras = monitors.tensors() | own | {"losses": torch.tensor(losses, dtype=torch.float64)}
            saver.save(state.module, state, facts)

        def after_step(step: int, loss: float, batch: Batch, predicted: Tensor) -> None:
            nonlocal drift_alarms, losses, clock
            swap.progress(f"training {name}", step, options.max_steps)
            if step - 1 in state.skipped:
                record("ledger.jsonl", [{"name": f"step {step - 1}", "reason": f"loss {loss}: step left out"}])
            else:
                losses.append(loss)
                if not strategy.teacher:  # what the base draws is no sample of the data
                    monitors.observe(batch, predicted)
                if moving:
                    said = torch.tensor([text != "" for text in batch.texts])
                    moving.observe(embedding_blocks(batch.prompt.embeds.cpu()[said], batch.prompt.mask.cpu()[said]))
            if step == min(MOVED_BY, options.max_steps) >= 3:
                late = [
                    p for g in state.optimizer.param_groups if g.get("joins", 0) > step - SETTLED for p in g["params"]
                ]
                check_movement(state.module, untouched, late)
            if step % config.train.log_every == 0:
                now = time.perf_counter()
                values = {
                    "loss": loss,
                    "learning_rate": state.learning_rate,
                    "grad_norm": state.grad_norm,
                    "seconds": (now - clock) / config.train.log_every,
                    "trained_parameters": sum(
                        p.numel() for g in state.optimizer.param_groups if g.get("joins", 0) < step for p in g["params"]
                    ),
                }
                clock = now
                run.append("steps.jsonl", [{"step": step} | values])
                trackers.log({f"train/{key}": value for key, value in values.items()}, step)
            if step % look_every == 0:
                readings = [] if strategy.teacher else monitors.report(step)
                drift_alarms += sum(r.alarm and r.name in STILL for r in readings)
                request = monitors.act(readings)
                readings += moving.report(step) if moving else []
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
                found = evaluate()
                record("metrics.jsonl", [row, _held_out_row(name, step, found)])
                trackers.log({f"monitor/{r.name} {r.where}".strip(): r.value for r in readings}, step)
                trackers.log({"held_out/loss": found.loss}, step)
                if request:
                    raise request
            if config.train.sample_every and step % config.train.sample_every == 0:
                if encoder:
                    system.null = encoder.null()
                drawn = sample_images(system, swap.sample_prompts()[:SAMPLES], seed=config.train.seed)
                save_grid(run.path, f"samples-step-{step:08d}", drawn, "samples", f"step {step}", "")
                trackers.images("samples", to_uint8(drawn), step)
            if step % config.train.checkpoint_every == 0 or step == options.max_steps:
                save()

        draw = None
        if strategy.teacher:
            teacher = Teacher(base=swap.base_system, data=swap.base_data[0], seed=config.train.seed)
            draw = teacher.draws(system, train, options)
        rate = lambda step, options: monitors.factor * learning_rate_at(step, options)
        go_on = lambda: fit(system, stream, options, state, after_step=after_step, rate=rate, draw=draw, watch=watch)
        try:
            try:
                go_on()
            except MonitorRequest as request:
                saver.close()
                load_checkpoint(good_checkpoint(checkpoints, request), state.module, state, facts)
                saver = Saver(checkpoints, asynchronous=config.train.async_checkpoints)
                monitors.restore(state.extras)
                monitors.factor *= 0.5
                print(f"monitor: back to step {state.step}, learning rate times {monitors.factor:g}", file=sys.stderr)
                try:
                    go_on()
                except MonitorRequest as again:
                    raise SanakitError("SK0511", f"after a roll-back: {again}") from again
            if state.stopped and state.step % config.train.checkpoint_every and state.step != options.max_steps:
                save()
        finally:
            watch.close()
            saver.close()
            trackers.close()
            monitors.close()
        barrier()
        if state.stopped:
            print(
                f"{signal.Signals(state.stopped).name}: stopped at step {state.step} of {options.max_steps}, saved in "
                f"{checkpoints}; the same command with --resume auto goes on",
                file=sys.stderr,
            )
            sys.exit(exit_code(state.stopped))
        if options.max_steps >= 3:
            check_movement(state.module, untouched)
        if state.ema is not None:
            for key, value in state.module.state_dict().items():
                local(value).copy_(state.ema[key])
        system.core = gathered(system.core, strategy)
        if strategy.lora_rank and is_main():
            save_lora(system.core, run.path / "lora")
        strategy.finish(system.core)
        if encoder:
            encoder.eval().requires_grad_(False)
    end = evaluate()
    now = as_encoded_now(system, test, count) if encoder else test
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
    write_model(swap, system, name, end, joint=encoder is not None)
    return {
        "start_losses": start.losses.mean(0).numpy(),
        "end_losses": end.losses.mean(0).numpy(),
        "conditional_gain": conditional_gain(system, now, count=count).numpy(),
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


def write_model(swap: "Swap", system: Any, strategy: str, result: HeldOut, *, joint: bool = False) -> None:
    """`model/`: the core as diffusers saves it, and a card that `--base path:DIR` and `sample` read.

    joint: with the text encoder that was trained beside it.
    """
    folder = swap.run.path / "model"
    save_core(system.core, folder)
    save_null(system.text_encoder, folder)
    encoder = swap.text_encoder_name or swap.base.card["text_encoder"]
    if joint:
        shutil.rmtree(folder / "text", ignore_errors=True)
        encoder = save_encoder(system.text_encoder, folder)
    is_vae = swap.config.kind == "vae"
    card = {
        "recipe": f"sanakit, strategy {strategy}, {swap.config.train.max_steps} steps",
        "seed": swap.config.train.seed,
        "base": swap.base.name,
        "vae": swap.config.vae.name or swap.base.card["vae"],
        "scaling_factor": swap.config.vae.scaling_factor if is_vae else swap.base.card.get("scaling_factor"),
        "text_encoder": encoder,
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
    plain = fresh_core(core)
    strategy.parameter_groups(plain)
    plain.load_state_dict({k: whole(v) for k, v in core.state_dict().items()})
    return plain


def reference_latents(stream: LatentDataset) -> list[Tensor]:
    """Normalised latents that a stream in buckets is compared with, a part of every bucket."""
    share = REFERENCE / len(stream)
    chosen = [m[torch.linspace(0, len(m) - 1, max(1, round(share * len(m)))).long()] for m in stream.members]
    return [stream.latents[rows, torch.zeros_like(rows)] for rows in chosen]


def flat_config(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}".rstrip("."): value
        for section, values in config.model_dump(mode="json").items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def drop_later(run: "RunFolder", step: int) -> None:
    """Leave out rows of steps.jsonl after the step that the run goes on from."""
    path = run.path / "steps.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        run.write_text("steps.jsonl", "".join(kept))


def good_checkpoint(checkpoints: Path, request: MonitorRequest) -> Path:
    """The newest checkpoint from before the drift. Raises SK0511 where the action is to stop, or there is none."""
    if request.action == "stop":
        raise SanakitError("SK0511", str(request)) from request
    whole_ones = [path.parent for path in sorted(checkpoints.glob("step-*/manifest.json"))]
    found = [path for path in whole_ones if int(path.name.removeprefix("step-")) <= request.since]
    if not found:
        raise SanakitError("SK0511", f"{request}; no checkpoint from step {request.since} or before") from request
    return found[-1]


def pick_up(checkpoints: Path, resume: str, state: TrainState, facts: dict[str, Any]) -> None:
    if resume == "never":
        if is_main():
            set_aside(checkpoints)
        barrier()
        return
    found = latest(checkpoints) if resume == "auto" else Path(resume)
    if found is not None:
        load_checkpoint(found if resume == "auto" else latest(found) or found, state.module, state, facts)
