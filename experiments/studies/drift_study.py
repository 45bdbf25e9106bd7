"""False alarms, power and detection delay of the drift tests on real images, beside other tools.

python experiments/studies/drift_study.py [--peers PYTHON]    writes experiments/results/drift_study.json

PYTHON is an interpreter of an environment of its own with evidently and alibi-detect; without it their rates stay as
the file has them, which are of the same draws. Latents are those of the packaged images (OpenMoji and openclipart, 96
px) under the PCA autoencoder f16c16; those of part `detail` are synthetic (drift_detail.py). Every part is resumable.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parents[1] / "results" / "drift_study.json"
COUNT = 256
ALPHA = 0.05
SIZE = 96
RUN_STEPS = 400  # of the training run that the monitors' cost is spread over
SEED = 2025  # of the draws that are reported; the statistics were chosen on others
WORK = Path(tempfile.gettempdir()) / "sanakit-drift-study"

Shift = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def encode(images: np.ndarray) -> np.ndarray:
    """(N, S, S, 3) uint8 -> normalised latents (N, 16, 6, 6)."""
    import torch

    from sanakit.data.cache import to_images
    from sanakit.vaes import VAES

    vae = VAES.get("pca-f16c16").load()
    chunks = [vae.encode(to_images(images[i : i + 256])) for i in range(0, len(images), 256)]
    return torch.cat(chunks).numpy()


def jpeg(images: np.ndarray) -> np.ndarray:
    """Recompressed at quality 75."""
    from PIL import Image

    out = np.empty_like(images)
    for i, pixels in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
        out[i] = np.asarray(Image.open(buffer))
    return out


def crop(images: np.ndarray) -> np.ndarray:
    """The middle 88 pixels, scaled back to 96."""
    from PIL import Image

    box = (4, 4, SIZE - 4, SIZE - 4)
    return np.stack(
        [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)) for p in images]
    )


def corrupt(count: int = 96) -> np.ndarray:
    """What breaks in a collection of images, a third each: blank frames, decoders that lost their blocks, noise."""
    generator = np.random.default_rng(0)
    frames = []
    for kind in range(count):
        edge = (SIZE, 16, 1)[kind % 3]
        cells = generator.integers(0, 256, (SIZE // edge, SIZE // edge, 3), dtype=np.uint8)
        frames.append(cells.repeat(edge, 0).repeat(edge, 1))
    return np.stack(frames)


def prepare() -> dict[str, np.ndarray]:
    """Latents of all training images, and of their altered versions, in the same order."""
    from sanakit.data import load_images

    images = load_images("embedded").split(False).pixels(SIZE)
    return {
        "clean": encode(images),
        "jpeg": encode(jpeg(images)),
        "crop": encode(crop(images)),
        "colour": encode(images[..., ::-1].copy()),
        "outliers": encode(corrupt()),
    }


def mean_shift(z: np.ndarray) -> np.ndarray:
    z[:, 3] += 0.15
    return z


def high_frequency(z: np.ndarray) -> np.ndarray:
    """The upper half of radial frequencies 5% larger."""
    height, width = z.shape[-2:]
    radius = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width)[None] * width)
    gain = np.where(radius.round() > min(height, width) // 4, 1.05, 1.0)
    return np.fft.ifft2(np.fft.fft2(z) * gain).real.astype(np.float32)


def correlate(z: np.ndarray) -> np.ndarray:
    z[:, 1] = np.sqrt(1 - 0.1**2) * z[:, 1] + 0.1 * z[:, 0]
    return z


def swap_channels(z: np.ndarray) -> np.ndarray:
    z[:, [7, 8]] = z[:, [8, 7]]
    return z


def flip_sign(z: np.ndarray) -> np.ndarray:
    z[:, 5] *= -1
    return z


LATENT_SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean .15 sd in one channel": mean_shift,
    "scale 3%": lambda z: z * np.float32(1.03),
    "high frequency 5%": high_frequency,
    "correlation 0.1": correlate,
    "channel permutation": swap_channels,
    "sign flip of one channel": flip_sign,
}
IMAGE_SHIFTS = {"JPEG-recompressed data": "jpeg", "crop changed": "crop", "colour order swapped": "colour"}
OUTLIERS = "1% outlier images"
SHIFTS = [*LATENT_SHIFTS, OUTLIERS, *IMAGE_SHIFTS]


def draw(data: dict[str, np.ndarray], shift: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reference and shifted current latents of disjoint images, 256 each; shift "none" is clean."""
    order = generator.permutation(len(data["clean"]))
    first, second = order[:COUNT], order[COUNT : 2 * COUNT]
    return data["clean"][first], shifted(data, shift, second, generator)


def shifted(data: dict[str, np.ndarray], shift: str, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Latents of these images after the shift."""
    if shift in IMAGE_SHIFTS:
        return data[IMAGE_SHIFTS[shift]][rows]
    current = data["clean"][rows].copy()
    if shift == OUTLIERS:
        count = round(0.01 * len(rows))
        current[:count] = data["outliers"][generator.choice(len(data["outliers"]), count, replace=False)]
    elif shift in LATENT_SHIFTS:
        current = LATENT_SHIFTS[shift](current)
    return current


def write_draws(data: dict[str, np.ndarray], repeats: int) -> None:
    """WORK/draws/REPEAT.npz: both sides of every shift, for all tools; floating-point rounding is theirs in common."""
    (WORK / "draws").mkdir(parents=True, exist_ok=True)
    for repeat in range(repeats):
        path = WORK / "draws" / f"{repeat:03}.npz"
        if not path.is_file():
            sides = {}
            for number, shift in enumerate(["none", *SHIFTS]):
                pair = draw(data, shift, np.random.default_rng([SEED, number, repeat]))
                sides |= {f"{shift}/{side}": x for side, x in zip(("reference", "current"), pair, strict=True)}
            np.savez(path.with_suffix(".tmp.npz"), **sides)
            path.with_suffix(".tmp.npz").replace(path)


def run_draws(out: Path, alarms: Callable[[np.ndarray, np.ndarray], dict[str, bool]]) -> None:
    """Append a row a draw to `out`, shift by shift inside a repeat; what is there already is not done again."""
    done = {(row["shift"], row["repeat"]) for row in read_rows(out)}
    for path in sorted((WORK / "draws").glob("???.npz")):
        with np.load(path) as sides:
            for shift in ("none", *SHIFTS):
                if (shift, int(path.stem)) not in done:
                    alarmed = alarms(sides[f"{shift}/reference"], sides[f"{shift}/current"])
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"shift": shift, "repeat": int(path.stem), "alarms": alarmed}) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def own_alarms(reference: np.ndarray, current: np.ndarray) -> dict[str, bool]:
    """sanakit's verdict, plain KS with Bonferroni, and MMD of the latents as they are (no features)."""
    import torch
    from scipy import stats

    from sanakit.drift import DRIFT
    from sanakit.drift.compare import compare
    from sanakit.drift.sample import sample_latents

    sides = [{"latents": sample_latents(torch.from_numpy(x))} for x in (reference, current)]
    flat = [x.reshape(len(x), -1) for x in (reference, current)]
    alarmed = {
        "sanakit/verdict": compare(*sides, alpha=ALPHA).verdict == "drift",
        "raw_mmd/flat": DRIFT.get("mmd")(*flat, ALPHA).alarm,
    }
    for label, (first, second) in (("flat", flat), ("channel means", [x.mean((2, 3)) for x in (reference, current)])):
        lowest = float(stats.ks_2samp(first, second, axis=0, method="asymp").pvalue.min())
        alarmed[f"ks/{label}"] = lowest <= ALPHA / first.shape[1]
    return alarmed


STREAMS, NUM_EVALUATIONS, ROWS, REFERENCE = 200, 100, 32, 1024
DELAY_RUNS, CHANGE = 20, 30


def columns(latents: np.ndarray) -> np.ndarray:
    """The structured features that the monitors watch, (N, d)."""
    import torch

    from sanakit.drift.compare import STRUCTURED
    from sanakit.drift.features import latent_blocks

    blocks = latent_blocks(torch.from_numpy(latents))
    return torch.cat([blocks[name] for name in STRUCTURED if name in blocks], 1).numpy()


def calibrated(features: np.ndarray) -> float:
    """CUSUM threshold at which 5% of clean streams alarm in 100 evaluations, by simulation."""
    from drift_cusum import calibrate

    rows = np.random.default_rng([SEED, 3]).permutation(len(features))[:REFERENCE]
    return calibrate(features[rows], ROWS, NUM_EVALUATIONS / -np.log(1 - ALPHA))


def over_processes(work: Callable[[int], Any], count: int) -> list[Any]:
    """work(0) to work(count - 1), forked, as many at once as there are cores; WORK keeps what is done."""
    path = WORK / f"{work.__name__}.jsonl"
    done = {row["number"]: row["found"] for row in read_rows(path)}
    left = [number for number in range(count) if number not in done]
    with multiprocessing.get_context("fork").Pool(SHARED.get("processes")) as pool:
        for number, result in zip(left, pool.imap(work, left), strict=True):
            done[number] = result
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"number": number, "found": result}) + "\n")
    return [done[number] for number in range(count)]


SHARED: dict[str, Any] = {}  # what the forked processes read


def clean_stream(number: int) -> dict[str, bool]:
    """Does a clean stream of other images than the reference's alarm at any of its evaluations?"""
    from drift_cusum import Cusum

    from sanakit.drift.sequential import EProcess

    clean = SHARED["clean"]
    order = np.random.default_rng([SEED, 1, number]).permutation(len(clean))
    blocks = np.split(order[REFERENCE : REFERENCE + NUM_EVALUATIONS * ROWS], NUM_EVALUATIONS)
    process = EProcess(clean[order[:REFERENCE]])
    cusum = Cusum(clean[order[:REFERENCE]], ROWS, NUM_EVALUATIONS, threshold=SHARED["wide"])
    for block in blocks:
        process.add(clean[block])
    return {
        "e-process": process.highest >= 1 / ALPHA,
        "cusum": any(cusum.add(clean[block])[0] for block in blocks),
    }


def stream_delays(number: int) -> dict[str, dict[str, float | None]]:
    """Evaluations from the change (after evaluation 30 of 100) to the alarm, by shift and test; 0 for an alarm before
    it, null for none. `cusum on the mean` watches channel means alone, calibrated alike."""
    from drift_cusum import Cusum

    from sanakit.drift.sequential import EProcess

    data, clean = SHARED["data"], SHARED["clean"]
    channels = data["clean"].shape[1]
    order = np.random.default_rng([SEED, 2, number]).permutation(len(clean))
    reference, stream = clean[order[:REFERENCE]], order[REFERENCE : REFERENCE + NUM_EVALUATIONS * ROWS]
    delays_by_shift: dict[str, dict[str, float | None]] = {}
    for shift in SHIFTS:
        generator = np.random.default_rng([SEED, 4, number])
        moved = generator.permutation(columns(shifted(data, shift, stream[CHANGE * ROWS :], generator)))
        blocks = np.split(np.concatenate([clean[stream[: CHANGE * ROWS]], moved]), NUM_EVALUATIONS)
        process = EProcess(reference)
        wide = Cusum(reference, ROWS, NUM_EVALUATIONS, threshold=SHARED["wide"])
        narrow = Cusum(reference[:, :channels], ROWS, NUM_EVALUATIONS, threshold=SHARED["narrow"])
        watch: dict[str, Callable[[np.ndarray], bool]] = {
            "sanakit e-process": lambda rows, test=process: test.add(rows).value >= 1 / ALPHA,
            "sanakit cusum": lambda rows, test=wide: test.add(rows)[0],
            "cusum on the mean": lambda rows, test=narrow: test.add(rows[:, :channels])[0],
        }
        first = {
            name: next((k for k, rows in enumerate(blocks) if alarms(rows)), None) for name, alarms in watch.items()
        }
        delays_by_shift[shift] = {
            name: None if k is None else float(max(0, k - CHANGE + 1)) for name, k in first.items()
        }
    return delays_by_shift


def delays(runs: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """Median of the runs that had no alarm before the change; null where most of them end first."""
    medians: dict[str, dict[str, float | None]] = {}
    for shift in SHIFTS:
        medians[shift] = {}
        for name in runs[0][shift]:
            waits = [np.inf if (wait := run[shift][name]) is None else wait for run in runs]
            median = float(np.median([wait for wait in waits if wait > 0]))
            medians[shift][name] = median if np.isfinite(median) else None
    return medians


def powers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Alarm rates of every way on the draws that all tools have seen; a tool's power at a shift is that of its best way
    among those that hold their level: false alarms on clean draws not above alpha,
    by a one-sided binomial test at .05."""
    from scipy.stats import binom

    seen: dict[tuple[str, int], dict[str, bool]] = {}
    for row in rows:
        seen.setdefault((row["shift"], row["repeat"]), {}).update(row["alarms"])
    ways = sorted({way for alarmed in seen.values() for way in alarmed})
    complete = {key: alarmed for key, alarmed in seen.items() if len(alarmed) == len(ways)}
    count = {shift: sum(key[0] == shift for key in complete) for shift in ("none", *SHIFTS)}
    rate = {
        way: {
            shift: sum(alarmed[way] for key, alarmed in complete.items() if key[0] == shift) / max(1, count[shift])
            for shift in ("none", *SHIFTS)
        }
        for way in ways
    }
    holds = {way: bool(binom.sf(rate[way]["none"] * count["none"] - 1, count["none"], ALPHA) > 0.05) for way in ways}
    power = {}
    for shift in SHIFTS:
        power[shift] = {}
        for tool in ("sanakit", "evidently", "alibi_detect", "ks", "raw_mmd"):
            tool_rates = [rate[way][shift] for way in ways if way.startswith(tool + "/") and holds[way]]
            power[shift][tool] = max(tool_rates) if tool_rates else None
    return {
        "power": power,
        "draws": count,
        "ways": {way: {"holds_level": holds[way], "alarm_rate": rate[way]} for way in ways},
    }


def overhead(steps: int = 110) -> dict[str, float]:
    """Seconds of all monitors over those of the training steps between, in the embedded world: observing is timed in
    every step, an evaluation as often as a run of RUN_STEPS steps has one by default; both in one process."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from bench_all import OPTIONS, trainer

    from sanakit.config import Config
    from sanakit.training.loop import draw_batch
    from sanakit.training.monitors import make_monitors

    step, system, data = trainer()
    options = replace(OPTIONS, max_steps=RUN_STEPS)
    monitors = make_monitors(Config().monitors, system, data, (system, data), options)
    every = options.max_steps // Config().monitors.num_evaluations
    step()
    spent, watched = [], []
    for number in range(steps):
        batch = draw_batch(system, data, options, number)
        predicted = batch.noise - batch.latents
        begin = time.perf_counter()
        step()
        middle = time.perf_counter()
        monitors.observe(batch, predicted)
        if (number + 1) % every == 0:
            monitors.report(number + 1)
        spent.append(middle - begin)
        watched.append(time.perf_counter() - middle)
    monitors.close()
    num_evaluations = [w for number, w in enumerate(watched, 1) if number % every == 0]
    rest = [w for number, w in enumerate(watched, 1) if number % every]
    per_step = float(np.mean(rest)) + float(np.median(num_evaluations)) / every  # rows are kept in some steps only
    return {
        "ratio": per_step / float(np.median(spent)),
        "step_ms": 1e3 * float(np.median(spent)),
        "observe_ms": 1e3 * float(np.mean(rest)),
        "evaluation_ms": 1e3 * float(np.median(num_evaluations)),
    }


PARTS = ("detail", "false_alarms", "delay", "overhead", "power")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--peers", help="Python of an environment with evidently and alibi-detect[torch]")
    parser.add_argument("--repeats", type=int, default=100, help="draws a shift")
    parser.add_argument("--detail-repeats", type=int, nargs=2, default=(10, 20), help="draws a shift, and clean ones")
    parser.add_argument("--streams", type=int, default=STREAMS, help="clean streams of part false_alarms")
    parser.add_argument("--processes", type=int, help="at once, in the parts on streams; default: one a core")
    parser.add_argument("--only", choices=PARTS, action="append", help="parts to measure; the others stay as they are")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    WORK.mkdir(exist_ok=True)
    parts = options.only or PARTS
    if set(parts) - {"detail", "overhead"} and not (WORK / "data.npz").is_file():
        np.savez(WORK / "data.npz", **prepare())
    data = dict(np.load(WORK / "data.npz")) if (WORK / "data.npz").is_file() else {}
    for part in parts:
        results = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
        if part in ("false_alarms", "delay") and not SHARED:
            clean = columns(data["clean"])
            channels = data["clean"].shape[1]
            SHARED.update(data=data, clean=clean, wide=calibrated(clean), narrow=calibrated(clean[:, :channels]))
            SHARED["processes"] = options.processes
        if part == "detail":
            from drift_detail import run, summary

            run(WORK / "detail.jsonl", *options.detail_repeats)
            results |= summary(read_rows(WORK / "detail.jsonl"))
        elif part == "false_alarms":
            runs = over_processes(clean_stream, options.streams)
            rates = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
            results |= {
                "false_alarm_rate": rates["e-process"],
                "false_alarm_rate_cusum": rates["cusum"],
                "runs": len(runs),
            }
        elif part == "delay":
            results |= {"delay": delays(over_processes(stream_delays, DELAY_RUNS)), "delay_runs": DELAY_RUNS}
        elif part == "overhead":
            measured = overhead()
            results |= {"monitor_overhead_ratio": measured["ratio"], "monitor_overhead": measured}
        else:
            results |= measure_power(data, options.repeats, options.peers, results)
        results |= {
            "alpha": ALPHA,
            "num_evaluations": NUM_EVALUATIONS,
            "rows_per_evaluation": ROWS,
            "samples_a_side": COUNT,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread",
            "command": "python experiments/studies/drift_study.py --peers PEERS/bin/python",
        }
        OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure_power(
    data: dict[str, np.ndarray], repeats: int, peers: str | None, known: dict[str, Any]
) -> dict[str, Any]:
    """Resumable: what WORK holds is not measured again. known: the results so far,
    whose peers stay where none run now."""
    write_draws(data, repeats)
    script = Path(__file__).with_name("drift_peers.py")
    other = subprocess.Popen([peers, script, WORK / "peers.jsonl"]) if peers else None
    run_draws(WORK / "own.jsonl", own_alarms)
    if other and other.wait():
        raise SystemExit(f"{script.name} failed in {peers}")
    measured = powers(read_rows(WORK / "own.jsonl") + read_rows(WORK / "peers.jsonl"))
    for tool in ("evidently", "alibi_detect"):
        if any(way.startswith(tool + "/") for way in measured["ways"]):
            continue
        measured["ways"] |= {way: rates for way, rates in known.get("ways", {}).items() if way.startswith(tool + "/")}
        for shift in SHIFTS:
            measured["power"][shift][tool] = known.get("power", {}).get(shift, {}).get(tool)
    return measured


if __name__ == "__main__":
    main()
