"""`sanakit swap-vae --stages component,smoke --force` at Sana-0.6B's width with random weights, and what it needed.

    python experiments/benchmarks/real_size.py --out DIR [--device auto|fake|cpu] [--small]

A base of 4 blocks at full width with DC-AE f32c32 and a text encoder of Gemma-2-2b's width, a FLUX.1-shaped VAE as the
candidate, 64 images, the arms `align` and `lora`, 8 steps. Gates of quality fail on random weights and say nothing
here. Checked is that every stage ends, that models computed on the device, and its peak of memory against the dry run.
`--device fake` is the fake accelerator of tests/ on the host's memory. --small: small widths, minutes instead of an
hour.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).resolve().parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from diffusers import AutoencoderKL  # noqa: E402
from real_parts import DC_AE_F32C32, FLUX_1, build_base, write_images  # noqa: E402

from sanakit.needs.published import SANA_600M  # noqa: E402
from sanakit.vaes.dc_ae import small  # noqa: E402

TINY_CORE = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 64,
    "caption_channels": 64,
}
TINY_TEXT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "pad_token_id": 0,
}
TINY_VAE = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
SETTINGS = {
    "data.image_size": 256,
    "component.num_images": 16,
    "smoke.strategies": "[align,lora]",
    "smoke.held_out": 16,
    "smoke.samples": 8,
    "smoke.rates": "[1.0]",
    "train.batch_size": 4,
    "train.start": "align",
    "train.learning_rate": 1e-4,
}
ENDED = (0, 1, 4)  # passed, a gate failed, inconclusive: the command ran to its end


def build(folder: Path, asked: argparse.Namespace) -> list[str]:
    """The parts on disk, once; the options of swap-vae that name them."""
    size = SETTINGS["data.image_size"]
    if not (folder / "base" / "model_index.json").is_file():
        core = SANA_600M | {"num_layers": asked.blocks} | (TINY_CORE if asked.small else {})
        vae = small(32, 32, levels=6, scaling_factor=0.41407) if asked.small else DC_AE_F32C32
        build_base(folder / "base", int(size), core=core, vae=vae, text=TINY_TEXT if asked.small else None)
        AutoencoderKL(**FLUX_1 | (TINY_VAE if asked.small else {})).save_pretrained(folder / "vae")
        write_images(folder / "images", asked.images, int(size))
    options = [
        "--base",
        f"path:{folder / 'base'}",
        "--candidate",
        f"path:{folder / 'vae'}",
        "--data",
        str(folder / "images"),
    ]
    return options + [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


@contextmanager
def counted(device: str) -> Iterator[dict[str, Any]]:
    """Peak of device memory, and what ran there, while the block runs."""
    counts: dict[str, Any] = {}
    with ExitStack() as stack:
        trace = None
        if device == "fake":
            import fake_accelerator

            fake_accelerator.install()
            stack.enter_context(fake_accelerator.present())
            trace = stack.enter_context(fake_accelerator.Trace("/sanakit/"))
        elif torch.accelerator.is_available() and device != "cpu":
            torch.accelerator.reset_peak_memory_stats()
        yield counts
    if trace is not None:
        counts |= {
            name: getattr(trace, name) for name in ("peak", "operators", "syncs", "to_device_bytes", "to_host_bytes")
        }
    elif torch.accelerator.is_available() and device != "cpu":
        counts["peak"] = torch.accelerator.max_memory_allocated()


def command(*arguments: str) -> int:
    """`sanakit ...` in this process; its exit code."""
    from sanakit.cli import main

    before, sys.argv = sys.argv, ["sanakit", *arguments]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 5
    finally:
        sys.argv = before
    return 0


def dry_run(options: list[str], stages: list[str], device: str) -> dict[str, Any]:
    """What --dry-run says of the same command."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        command("swap-vae", *options, *stages, "--dry-run", "--json", "--device", device)
    return json.loads(output.getvalue())["needs"]


def checks(run: Path, code: int, counts: dict[str, Any], predicted: int, device: str) -> dict[str, bool]:
    validation = json.loads((run / "validation.json").read_text()) if (run / "validation.json").is_file() else {}
    stages = validation.get("stages", {})
    raced = json.loads((run / "strategy.json").read_text()) if (run / "strategy.json").is_file() else {"candidates": []}
    arms = {arm["name"]: arm["steps"][-1] if arm["steps"] else 0 for arm in raced["candidates"]}
    result = {
        "the command ended": code in ENDED,
        "every stage ended": set(stages) == {"component", "smoke"},
        "both arms were evaluated": {"align", "lora"} <= set(arms),
        "lora trained to the end": arms.get("lora") == 8,
    }
    if device == "fake":
        result["models computed on the device"] = counts["operators"] > 10_000
    if counts.get("peak"):
        result["peak is at most what the dry run said, by a tenth"] = counts["peak"] <= 1.1 * predicted
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--device", default="auto", help="auto: the accelerator that is there, else the fake one; fake; cpu"
    )
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    device = asked.device
    if device == "auto" and not torch.accelerator.is_available():
        device = "fake"
    asked.out.mkdir(parents=True, exist_ok=True)
    options, run = build(asked.out, asked), asked.out / "run"
    stages = ["--stages", "component,smoke", "--budget-steps", "8"]
    chosen = "cpu" if device == "cpu" else "auto"
    start = time.perf_counter()
    with counted(device) as counts:
        told = dry_run(options, stages, chosen)
        code = command("swap-vae", *options, *stages, "--force", "--run-dir", str(run), "--device", chosen)
    passed = checks(run, code, counts, told["device"], device)
    facts = {
        "seconds": round(time.perf_counter() - start, 1),
        "device": device if device in ("fake", "cpu") else str(torch.accelerator.current_accelerator()),
        "torch": torch.__version__,
        "small": asked.small,
        "blocks": asked.blocks,
        "exit_code": code,
        "predicted_peak": told["device"],
        **counts,
        "checks": passed,
    }
    (asked.out / "real_size.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
