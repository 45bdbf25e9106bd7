"""False alarms, power and detection delay of the drift tests on real pictures, beside other tools.

python experiments/drift_study.py [--peers PYTHON]    writes experiments/results/drift_study.json

PYTHON is an interpreter of an environment of its own with evidently and alibi-detect; without it they are null.
Latents are those of the packaged pictures (OpenMoji and openclipart, 96 px) under the PCA autoencoder f16c16.
"""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "results" / "drift_study.json"
COUNT = 256
ALPHA = 0.05
SIZE = 96
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
    """What breaks in a collection of pictures, a third each: blank frames, decoders that lost their blocks, noise."""
    generator = np.random.default_rng(0)
    frames = []
    for kind in range(count):
        edge = (SIZE, 16, 1)[kind % 3]
        cells = generator.integers(0, 256, (SIZE // edge, SIZE // edge, 3), dtype=np.uint8)
        frames.append(cells.repeat(edge, 0).repeat(edge, 1))
    return np.stack(frames)


def prepare() -> dict[str, np.ndarray]:
    """Latents of all training pictures, and of their altered versions, in the same order."""
    from sanakit.data import load_pictures

    images = load_pictures("embedded").split(False).pixels(SIZE)
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
PICTURE_SHIFTS = {"JPEG-recompressed data": "jpeg", "crop changed": "crop", "colour order swapped": "colour"}
OUTLIERS = "1% outlier pictures"
SHIFTS = [*LATENT_SHIFTS, OUTLIERS, *PICTURE_SHIFTS]


def draw(data: dict[str, np.ndarray], shift: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Reference and shifted current latents of disjoint pictures, 256 each; shift "none" is clean."""
    order = generator.permutation(len(data["clean"]))
    first, second = order[:COUNT], order[COUNT : 2 * COUNT]
    reference = data["clean"][first]
    if shift in PICTURE_SHIFTS:
        return reference, data[PICTURE_SHIFTS[shift]][second]
    current = data["clean"][second].copy()
    if shift == OUTLIERS:
        count = round(0.01 * COUNT)
        current[:count] = data["outliers"][generator.choice(len(data["outliers"]), count, replace=False)]
    elif shift in LATENT_SHIFTS:
        current = LATENT_SHIFTS[shift](current)
    return reference, current


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
                    found = alarms(sides[f"{shift}/reference"], sides[f"{shift}/current"])
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"shift": shift, "repeat": int(path.stem), "alarms": found}) + "\n")


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
    found = {
        "sanakit/verdict": compare(*sides, alpha=ALPHA).verdict == "drift",
        "raw_mmd/flat": DRIFT.get("mmd")(*flat, ALPHA).alarm,
    }
    for label, (first, second) in (("flat", flat), ("channel means", [x.mean((2, 3)) for x in (reference, current)])):
        lowest = float(stats.ks_2samp(first, second, axis=0, method="asymp").pvalue.min())
        found[f"ks/{label}"] = lowest <= ALPHA / first.shape[1]
    return found
