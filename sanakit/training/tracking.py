"""Trackers beside the JSONL files: TensorBoard, Weights & Biases, trackio and MLflow, through accelerate's classes.

What they print goes to standard error: standard output belongs to `--json`.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sanakit.distributed import is_main
from sanakit.errors import SanakitError
from sanakit.placement import accelerator_kind

PROJECT = "sanakit"


def _finish(tracker: Any) -> None:
    tracker.finish()


@dataclass(frozen=True, kw_only=True)
class Record:
    """options: of accelerate's class, for a run folder. images: shows images
    (B, H, W, 3) uint8 under a name at a step."""

    package: str
    options: Callable[[Path], dict[str, Any]]
    images: Callable[[Any, str, np.ndarray, int], None]
    finish: Callable[[Any], None] = _finish


def _mlflow_options(folder: Path) -> dict[str, Any]:
    """In the run folder, as the others, unless a server is named."""
    options = {"experiment_name": PROJECT, "run_name": folder.name}
    if "MLFLOW_TRACKING_URI" in os.environ:
        return options
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
    return options | {"logging_dir": (folder.resolve() / "mlflow").as_uri()}


def _mlflow_images(tracker: Any, name: str, images: np.ndarray, step: int) -> None:
    import mlflow

    for number, image in enumerate(images):
        mlflow.log_image(image, key=f"{name}-{number}", step=step)


def _trackio_images(tracker: Any, name: str, images: np.ndarray, step: int) -> None:
    import trackio

    tracker.log({f"{name}/{number}": trackio.Image(image) for number, image in enumerate(images)}, step=step)


def _trackio_finish(tracker: Any) -> None:
    import trackio

    trackio.finish()  # the run's own leaves it to be finished again, aloud, when Python ends


TRACKERS: dict[str, Record] = {
    "tensorboard": Record(
        package="tensorboard",
        options=lambda folder: {"run_name": "tensorboard", "logging_dir": folder},
        images=lambda tracker, name, images, step: tracker.log_images({name: images}, step=step, dataformats="NHWC"),
    ),
    "wandb": Record(
        package="wandb",
        options=lambda folder: {
            "run_name": PROJECT,
            "name": folder.name,
            "dir": os.environ.get("WANDB_DIR", str(folder)),
        },
        images=lambda tracker, name, images, step: tracker.log_images({name: list(images)}, step=step),
    ),
    "trackio": Record(
        package="trackio",
        options=lambda folder: {"run_name": PROJECT, "name": folder.name},
        images=_trackio_images,
        finish=_trackio_finish,
    ),
    "mlflow": Record(package="mlflow", options=_mlflow_options, images=_mlflow_images),
}


class Trackers:
    """names: of TRACKERS. folder: the run's. Rank 0 reports, the others are silent. Raises SK0901 for a package."""

    def __init__(self, names: tuple[str, ...], folder: Path, config: dict[str, Any]) -> None:
        require(names)
        with redirect_stdout(sys.stderr):
            self.started = [(TRACKERS[name], _start(name, folder, config)) for name in names] if is_main() else []

    def log(self, values: dict[str, float], step: int) -> None:
        """Names that every tracker takes: MLflow refuses brackets, commas and signs."""
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        for _, tracker in self.started:
            tracker.log(named, step=step)

    def images(self, name: str, images: np.ndarray, step: int) -> None:
        """(B, H, W, 3) uint8."""
        for record, tracker in self.started:
            record.images(tracker, name, images, step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            for record, tracker in self.started:
                record.finish(tracker)


def require(names: tuple[str, ...]) -> None:
    """Raises SK0901 where a tracker's package is missing, before anything is computed."""
    for name in names:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is None:
            fix = f"pip install {package}, or leave {name} out of train.report_to."
            raise SanakitError("SK0901", f"train.report_to {name} needs the package {package}", fix=fix)


def _start(name: str, folder: Path, config: dict[str, Any]) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=not accelerator_kind())  # accelerate's trackers log by it; the engine's own where one runs
    tracker = LOGGER_TYPE_TO_CLASS[name](**TRACKERS[name].options(folder))
    tracker.start()
    tracker.store_init_configuration({k: v if isinstance(v, int | float | bool) else str(v) for k, v in config.items()})
    return tracker
