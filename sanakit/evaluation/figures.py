"""Small images for reports: grids, reconstruction pairs with an error map."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

COLUMNS = 8
SHOWN = 256  # pixels a side of an image that is shown beside others


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


def grid_of(images: Tensor, columns: int = COLUMNS) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] row by row on white: (height, width, 3) uint8."""
    pixels = to_uint8(images)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 4) - 4, min(count, columns) * (width + 4) - 4, 3), 255, np.uint8)
    for i, pixels_of_one in enumerate(pixels):
        top, left = (i // columns) * (height + 4), (i % columns) * (width + 4)
        canvas[top : top + height, left : left + width] = pixels_of_one
    return canvas


def save_grid(
    run_dir: Path, name: str, images: Tensor, section: str, title: str, caption: str, columns: int = COLUMNS
) -> dict[str, str]:
    """Write figures/<name>.png and return its row of figures.json."""
    path = run_dir / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid_of(images, columns)).save(path, optimize=True)
    return {"section": section, "title": title, "caption": caption, "file": f"figures/{name}.png"}


def save_compared(
    run_dir: Path, stage: str, prompts: Sequence[tuple[str, str]], sides: dict[str, Tensor]
) -> list[dict[str, str]]:
    """Images that a page shows side by side, one row of figures.json a prompt. prompts: with the split that each comes
    from. sides: (B, 3, H, W) in [-1, 1] by name; images of more than SHOWN pixels a side are shrunk."""
    folder = run_dir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (prompt, split) in enumerate(prompts):
        row = {"section": "compared", "stage": stage, "prompt": prompt, "split": split, "title": prompt, "caption": ""}
        for side, images in sides.items():
            image = Image.fromarray(to_uint8(images[number : number + 1])[0])
            image.thumbnail((SHOWN, SHOWN))
            row[side] = f"figures/compared-{stage}-{number}-{side}.png"
            image.save(run_dir / row[side], optimize=True)
        rows.append(row | {"file": row["candidate"]})
    return rows


def error_map(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Absolute error as a pixels_of_one: white = none, dark red = half the range or more."""
    error = (images - reconstructed).abs().mean(1, keepdim=True).clamp(0, 1)
    return 1 - 2 * torch.cat([error * 0.4, error, error], 1)
