"""The checks of experiments/real_weights.sh: what is known in advance about a published Sana, on its own weights.

Each check writes OUT/real_weights.json anew when it ends, so that what ends early leaves what was found. With `--base
path:DIR` a folder on disk takes the place of the download (tests, or weights that were fetched before).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402

from sanakit.data import load_images  # noqa: E402
from sanakit.data.cache import to_images  # noqa: E402
from sanakit.hub import download  # noqa: E402
from sanakit.interop.pipeline import SanakitPipeline  # noqa: E402
from sanakit.loading import load_base, load_vae  # noqa: E402
from sanakit.placement import choose  # noqa: E402

STD = (0.8, 1.2)  # of normalised latents at the published scaling
GATES = ("smoke/base", "smoke/mask", "smoke/flow-shift")
PROMPT = "a red apple on a wooden table"
SAME = 2 / 255  # largest difference of two renderings of one seed, of 1


def check_latents(base: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Standard deviation of normalised latents."""
    card, placement = load_base(base).card, choose("auto")
    vae = load_vae(card["vae"])
    images = to_images(load_images(asked.data).subset(range(32)).pixels(card["image_size"]))
    with placement.holding(vae):
        std = float(torch.cat([vae.encode(part) for part in images.split(4)]).std())
    return {"std": std, "expected": STD, "passed": STD[0] <= std <= STD[1]}


def check_wiring(base: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The base validates itself: its wiring gates pass."""
    run = asked.out / "wiring"
    code = command(
        "validate",
        "--stage",
        "smoke",
        "--base",
        base,
        "--data",
        asked.data,
        "--run-dir",
        str(run),
        "--force",
        *common(base),
    )
    gates = json.loads((run / "validation.json").read_text())["stages"]["smoke"]["gates"]
    verdicts = {gate["gate"]: gate["verdict"] for gate in gates if gate["gate"] in GATES}
    return {"exit_code": code, "verdicts": verdicts, "passed": verdicts == dict.fromkeys(GATES, "pass")}


def check_reuse(base: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Its own VAE swapped in reads error 1 before any step under `reuse`."""
    run = asked.out / "reuse"
    candidate = load_base(base).card["vae"]
    options = ["--strategy", "reuse", "--stages", "smoke", "--budget-steps", "8", "--force", "--run-dir", str(run)]
    code = command("swap-vae", "--base", base, "--candidate", candidate, "--data", asked.data, *options, *common(base))
    arms = json.loads((run / "strategy.json").read_text())["candidates"]
    error = next(arm["relative_errors"][0] for arm in arms if arm["name"] == "reuse")
    return {"exit_code": code, "relative_error": error, "expected": 1.0, "passed": abs(error - 1) < 0.01}


def check_pipeline(base: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One seed gives SanaPipeline's image."""
    from diffusers import SanaPipeline

    folder, device = load_base(base).folder.parent, choose("auto").device
    ours = SanakitPipeline.from_pretrained(folder)
    theirs = SanaPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    theirs.scheduler = type(ours.scheduler).from_config(ours.scheduler.config)
    images = []
    for pipeline in (theirs, ours):
        pipeline.to(device)
        drawn = pipeline(
            PROMPT,
            num_inference_steps=asked.steps,
            guidance_scale=3.0,
            height=ours.image_size,
            width=ours.image_size,
            use_resolution_binning=False,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        images.append(drawn.float().cpu())
        pipeline.to("cpu")
    difference = float((images[0] - images[1]).abs().max())
    return {"largest_difference": difference, "passed": difference <= SAME}


def check_half(base: str, asked: argparse.Namespace) -> dict[str, Any]:
    """The BF16 repository loads, and its weights are those of the other one rounded."""
    if not asked.half:
        return {"passed": None, "reason": "no repository was named"}
    half, whole = load_base(f"hub:{asked.half}").system().core, load_base(base).system().core
    worst = max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-6))
        for a, b in zip(half.parameters(), whole.parameters(), strict=True)
    )
    return {"largest_relative_difference": worst, "passed": worst < 2**-7}


CHECKS: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    "latents": check_latents,
    "wiring": check_wiring,
    "reuse": check_reuse,
    "pipeline": check_pipeline,
    "half": check_half,
}


def common(base: str) -> list[str]:
    size = load_base(base).card["image_size"]
    settings = {"data.image_size": size, "smoke.held_out": 64, "train.batch_size": 8, "smoke.budget_steps": 8}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def command(*arguments: str) -> int:
    """`sanakit ...` in this process; its exit code."""
    from sanakit.cli import main as cli

    before, sys.argv = sys.argv, ["sanakit", *arguments]
    try:
        cli()
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 5
    finally:
        sys.argv = before
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", help="owner/repo of the pipeline")
    parser.add_argument("--base", help="path:DIR instead of a repository")
    parser.add_argument("--half", help="owner/repo of its BF16 weights")
    parser.add_argument("--data", default="openclipart")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(CHECKS), default=list(CHECKS))
    asked = parser.parse_args()
    if (asked.repository is None) == (asked.base is None):
        parser.error("name --repository or --base")
    asked.out.mkdir(parents=True, exist_ok=True)
    base = asked.base or f"path:{download(asked.repository)}"
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "repository": asked.repository or asked.base,
        "placement": choose("auto").as_dict(),
        "torch": torch.__version__,
        "checks": {},
    }
    for name in asked.only:
        start = time.perf_counter()
        try:
            outcome = CHECKS[name](base, asked)
        except Exception as error:  # every check has its line, whatever the ones before it met
            outcome = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        facts["checks"][name] = outcome | {"seconds": round(time.perf_counter() - start, 1)}
        (asked.out / "real_weights.json").write_text(json.dumps(facts, indent=1) + "\n")
        print(name, json.dumps(facts["checks"][name]), flush=True)
    return 0 if all(check["passed"] is not False for check in facts["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
