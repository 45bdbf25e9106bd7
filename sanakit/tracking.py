"""Trackers beside the JSONL files: TensorBoard, Weights & Biases, trackio and MLflow, through accelerate's classes."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from sanakit.distributed import is_main
from sanakit.errors import SanakitError

PROJECT = "sanakit"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}


class Trackers:
    """names: of PACKAGES. folder: the run's. Rank 0 reports, the others are silent. Raises SK0901 for a package."""

    def __init__(self, names: tuple[str, ...], folder: Path, config: dict[str, Any]) -> None:
        require(names)
        self.trackers = [_start(name, folder, config) for name in names] if is_main() else []

    def log(self, values: dict[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def images(self, name: str, pictures: np.ndarray, step: int) -> None:
        """(B, H, W, 3) uint8, where the tracker shows pictures."""
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pictures}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: list(pictures)}, step=step)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.finish()


def require(names: tuple[str, ...]) -> None:
    """Raises SK0901 where a tracker's package is missing, before anything is computed."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            fix = f"pip install {PACKAGES[name]}, or leave {name} out of train.report_to."
            raise SanakitError("SK0901", f"train.report_to {name} needs the package {PACKAGES[name]}", fix=fix)


def _start(name: str, folder: Path, config: dict[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    options = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": folder},
        "mlflow": {"experiment_name": PROJECT, "logging_dir": str(folder / "mlflow"), "run_name": folder.name},
    }.get(name, {"run_name": PROJECT, "name": folder.name})
    tracker = kind(**options)
    tracker.start()
    tracker.store_init_configuration({k: v if isinstance(v, int | float | bool) else str(v) for k, v in config.items()})
    return tracker
