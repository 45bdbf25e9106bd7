"""One check of experiments/gpu_check.sh: measured on the accelerator, or reduced on a CPU; writes OUT/CHECK.json when
it ends.

    python experiments/benchmarks/gpu_check.py kernels|memory|syncs|encode|loop|tests --out DIR [--cpu]

Random weights and random images: seconds and bytes say something, quality does not. --cpu: small shapes, to see that it
runs.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402

from sanakit.needs.published import SANA_600M  # noqa: E402
from sanakit.placement import choose  # noqa: E402

TINY = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 32,
}
WAITS = ("Synchronize", "_local_scalar_dense")  # of the profiler's events: the host waits for the device
STEPS = 8


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls after one that is not counted."""
    work()
    synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def trainer(cpu: bool, *, micro: int = 8, checkpointing: bool = False) -> tuple[Any, ...]:
    """System, state, options and a batch of a core with random weights: Sana-0.6B at 512 px, or a tiny one."""
    from diffusers import SanaTransformer2DModel

    from sanakit.assembly import LatentDiffusion
    from sanakit.strategies.base import STRATEGIES
    from sanakit.text_encoders import PromptEmbeds
    from sanakit.training.batches import Batch
    from sanakit.training.loop import TrainOptions, new_state

    shapes, side, length = (SANA_600M | TINY, 4, 16) if cpu else (SANA_600M, 16, 300)
    placement = choose("cpu" if cpu else "auto")
    core = SanaTransformer2DModel(**shapes)
    options = TrainOptions(
        max_steps=10**6,
        batch_size=micro,
        precision="fp32" if cpu else "bf16",
        gradient_checkpointing=checkpointing,
        ema_decay=0.98,
        workers=0,
    )
    batch = Batch(
        latents=torch.randn(micro, 32, side, side),
        noise=torch.randn(micro, 32, side, side),
        sigmas=torch.rand(micro),
        prompt=PromptEmbeds(
            torch.randn(micro, length, shapes["caption_channels"]), torch.ones(micro, length, dtype=torch.bool)
        ),
    )
    state = new_state(core, STRATEGIES.get("finetune").parameter_groups(core), options, placement=placement)
    system = object.__new__(LatentDiffusion)  # `fit` asks it for velocities alone; the batches are drawn here
    system.core, system.timestep_scale, system.placement = core, 1000.0, placement
    return system, state, options, batch, shapes, (32, side, side), length


def advance(parts: tuple[Any, ...], steps: int) -> None:
    from sanakit.training.loop import fit

    system, state, options, batch, *_ = parts
    fit(system, None, options, state, until=state.step + steps, draw=lambda step, rows: batch)


def check_kernels(cpu: bool) -> dict[str, Any]:
    """Triton kernels against torch.compile and eager, forward and backward; with --cpu eager alone."""
    if cpu:
        import bench_kernels

        query, key, value = (torch.randn(1, 16, 2, 32, requires_grad=True) for _ in range(3))
        bench_kernels.diffusers_attention(query, key, value).sum().backward()
        return {"measured": False, "reason": "kernels are timed on a GPU"}
    import dataclasses

    import bench_kernels

    bench_kernels.SIZES = {512: 32, 1024: 8}
    return {"measured": True, "rows": [dataclasses.asdict(row) for row in bench_kernels.run(11)]}


def check_memory(cpu: bool) -> dict[str, Any]:
    """Peak of two steps against the dry run, with and without checkpointing."""
    from sanakit.strategies.base import STRATEGIES
    from sanakit.training.estimate import estimate, fake_core

    rows = []
    for checkpointing in (False, True):
        parts = trainer(cpu, checkpointing=checkpointing)
        _, state, options, _, shapes, latent_shape, length = parts
        core, mode = fake_core(shapes)
        sizes = {"latent_shape": latent_shape, "caption_length": length, "world_size": 1}
        said = estimate(core, mode, STRATEGIES.get("finetune"), options, **sizes).peak
        peak = None
        if torch.accelerator.is_available():
            torch.accelerator.reset_peak_memory_stats()
            advance(parts, 2)
            peak = torch.accelerator.max_memory_allocated()
        else:
            advance(parts, 2)
        rows.append(
            {"checkpointing": checkpointing, "predicted": said, "measured": peak, "ratio": peak and said / peak}
        )
        state.accelerator.free_memory()
        del parts, state, core
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
    return {"rows": rows}


def check_syncs(cpu: bool) -> dict[str, Any]:
    """Events of the profiler in which the host waits, a step."""
    from torch.profiler import ProfilerActivity, profile

    parts = trainer(cpu)
    advance(parts, 2)
    activities = [ProfilerActivity.CPU, *([] if cpu else [ProfilerActivity.CUDA])]
    with profile(activities=activities) as recorded:
        advance(parts, STEPS)
    events = {e.key: e.count for e in recorded.key_averages() if any(name in e.key for name in WAITS)}
    return {"steps": STEPS, "events": events, "per_step": {key: count / STEPS for key, count in events.items()}}


def check_encode(cpu: bool) -> dict[str, Any]:
    """Images a second of DC-AE f32c32 at 512 px, prompts a second of Gemma-2-2b's geometry at 300 tokens."""
    from sanakit.text_encoders import TEXT_ENCODERS
    from sanakit.vaes import VAES

    device, rates = choose("cpu" if cpu else "auto").device, {}
    vae_class, text_class = VAES.get("dc-ae-f32c32-sana-1.0"), TEXT_ENCODERS.get("gemma-2-2b-it")
    size, tokens, repeats = (64, 16, 1) if cpu else (512, 300, 5)
    vae = vae_class.tiny().model if cpu else vae_class.build(vae_class.published).eval()
    vae = vae.to(device)
    for images in (1, 8):
        pixels = torch.rand(images, 3, size, size, device=device)
        with torch.no_grad():
            spent = seconds(lambda pixels=pixels: vae_class.run_encoder(vae, pixels), repeats)
        rates[f"images a second, batch {images}, fp32"] = images / spent
    vae.to("cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if cpu else torch.bfloat16)
    try:
        with device:
            model = text_class.tiny().model if cpu else text_class.build(text_class.published).eval()
    finally:
        torch.set_default_dtype(before)
    model = model.to(device)
    for prompts in (1, 16):
        ids = torch.ones(prompts, tokens, dtype=torch.long, device=device)
        with torch.no_grad():
            spent = seconds(lambda ids=ids: model(input_ids=ids, attention_mask=torch.ones_like(ids)), repeats)
        rates[f"prompts a second, batch {prompts}"] = prompts / spent
    return {"image_size": size, "tokens": tokens, "rates": rates}


def check_loop(cpu: bool) -> dict[str, Any]:
    """`fit` over a bare loop (forward, loss, backward, clip, AdamW, average) of the same batch, in turn."""
    from sanakit.flow import interpolate, velocity_loss

    parts = trainer(cpu)
    _, state, options, batch, *_ = parts
    device, trained = state.placement.device, [p for g in state.optimizer.param_groups for p in g["params"]]

    def bare() -> None:
        on_device = batch.map(lambda t: t.to(device))
        for _ in range(STEPS):
            predicted = state.model(
                hidden_states=interpolate(on_device.latents, on_device.noise, on_device.sigmas),
                encoder_hidden_states=on_device.prompt.embeds,
                encoder_attention_mask=on_device.prompt.mask,
                timestep=on_device.sigmas * 1000,
                return_dict=False,
            )[0]
            velocity_loss(predicted.float(), on_device.latents, on_device.noise).mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            torch._foreach_lerp_(list(state.ema.values()), list(state.module.state_dict().values()), 0.02)

    pairs = []
    for _ in range(2 if cpu else 7):
        pairs.append((seconds(bare, 1) / STEPS, seconds(lambda: advance(parts, STEPS), 1) / STEPS))
    ratios = sorted(ours / theirs for theirs, ours in pairs)
    return {"seconds_per_step": sorted(ours for _, ours in pairs)[len(pairs) // 2], "loop over bare loop": ratios}


def check_tests(cpu: bool) -> dict[str, Any]:
    """`pytest -m gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_kernels.py"]
    if cpu:
        command.insert(3, "--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, "command": " ".join(command[1:]), "last_lines": done.stdout.splitlines()[-5:]}


CHECKS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "tests": check_tests,
    "memory": check_memory,
    "syncs": check_syncs,
    "loop": check_loop,
    "kernels": check_kernels,
    "encode": check_encode,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=list(CHECKS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() and not asked.cpu else None
    )
    start = time.perf_counter()
    result = {
        "check": asked.check,
        "device": "cpu" if accelerator is None else str(accelerator),
        "name": torch.cuda.get_device_name(0)
        if accelerator is not None and accelerator.type == "cuda"
        else platform.machine(),
        "torch": torch.__version__,
        **CHECKS[asked.check](asked.cpu),
    }
    result["seconds"] = round(time.perf_counter() - start, 1)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{asked.check}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
