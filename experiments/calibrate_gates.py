"""A/A runs: what component gates read of clean systems on random halves of the same pictures or prompts, against their
thresholds. Writes experiments/results/gate_calibration.json.

python experiments/calibrate_gates.py [--count 128] [--halves 8]    then python experiments/write_docs.py
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanakit.gates import run_gates
from sanakit.gates.policy import THRESHOLDS
from sanakit.swap.probe_text import text_evidence
from sanakit.swap.probe_vae import evidence_of

OUT = Path(__file__).parent / "results" / "gate_calibration.json"
VAES = ("dc-f16c16", "dc-f16c32", "kl-f8c4", "pca-f8c4", "pca-f16c16", "pca-f16c32", "pca-f32c64")
ENCODERS = ("wordllama", "minilm")
RESAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=128, help="pictures and prompts")
    parser.add_argument("--halves", type=int, default=8, help="random halves of each system's pictures")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from faults import World

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    readings: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for system, results in halves(World(Path(folder), arguments.count), arguments.halves, generator):
            print(system, flush=True)
            for r in results:
                row = readings.setdefault(r.gate, {"at_least": r.at_least, "values": {}})
                row["values"].setdefault(system, []).append(r.value)
    gates = [calibrated(gate, row, generator) for gate, row in readings.items()]
    command = f"python experiments/calibrate_gates.py --count {arguments.count} --halves {arguments.halves}"
    OUT.write_text(json.dumps({"gates": gates, "systems": [*VAES, *ENCODERS], "command": command}, indent=1) + "\n")
    print(OUT)


def halves(world: Any, count: int, generator: np.random.Generator) -> Iterator[tuple[str, list[Any]]]:
    """Each VAE encodes all pictures once; each half is judged by itself."""
    choose = lambda total: np.sort(generator.permutation(total)[: total // 2])
    images = world.images
    for name in VAES:
        vae = world.vae(name)
        raw = torch.cat([vae.encode_raw(chunk) for chunk in images.split(16)])
        reconstructed = torch.cat([vae.decode_raw(chunk) for chunk in raw.split(16)])
        for _ in range(count):
            rows = torch.from_numpy(choose(len(images)))
            yield name, run_gates("component", evidence_of(vae, images[rows], raw[rows], reconstructed[rows]))
    for name in ENCODERS:
        encoder = world.encoder(name)
        for _ in range(count):
            prompts = [world.prompts[i] for i in choose(len(world.prompts))]
            yield name, run_gates("component", text_evidence(encoder, prompts))


def calibrated(gate: str, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    """The reading nearest to the threshold, of the worst system: mean over halves with its 95% bootstrap interval, and
    the single worst half."""
    sign = 1 if row["at_least"] else -1
    worst = min(row["values"], key=lambda system: sign * np.mean(row["values"][system]))
    values = np.array(row["values"][worst])
    means = values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    every = np.concatenate([np.array(v) for v in row["values"].values()])
    default, strict = THRESHOLDS[gate]
    extreme = float(every.min() if row["at_least"] else every.max())
    return {
        "gate": gate,
        "at_least": row["at_least"],
        "default": default,
        "strict": strict,
        "worst_system": worst,
        "worst": float(values.mean()),
        "ci_low": float(np.quantile(means, 0.025)),
        "ci_high": float(np.quantile(means, 0.975)),
        "worst_half": extreme,
        "clean_within_default": bool(sign * (extreme - default) >= 0),
        "clean_within_strict": bool(sign * (extreme - strict) >= 0),
        "runs": len(every),
    }


if __name__ == "__main__":
    main()
