"""Trackers beside the JSONL files: TensorBoard, Weights & Biases, trackio and MLflow, through accelerate's classes.

What they print goes to standard error: standard output belongs to `--json`.
"""

import importlib.util
import os
import re
import sys
from contextlib import redirect_stdout
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
        with redirect_stdout(sys.stderr):
            self.trackers = [_start(name, folder, config) for name in names] if is_main() else []

    def log(self, values: dict[str, float], step: int) -> None:
        """Names that every tracker takes: MLflow refuses brackets, commas and signs."""
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
        for tracker in self.trackers:
            tracker.log(named, step=step)

    def images(self, name: str, pictures: np.ndarray, step: int) -> None:
        """(B, H, W, 3) uint8."""
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pictures}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: list(pictures)}, step=step)
            elif tracker.name == "trackio":
                import trackio

                shown = [trackio.Image(picture) for picture in pictures]
                tracker.log({f"{name}/{number}": picture for number, picture in enumerate(shown)}, step=step)
            elif tracker.name == "mlflow":
                import mlflow

                for number, picture in enumerate(pictures):
                    mlflow.log_image(picture, key=f"{name}-{number}", step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            for tracker in self.trackers:
                if tracker.name == "trackio":
                    import trackio

                    trackio.finish()  # the run's own leaves it to be finished again, aloud, when Python ends
                else:
                    tracker.finish()


def require(names: tuple[str, ...]) -> None:
    """Raises SK0901 where a tracker's package is missing, before anything is computed."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            fix = f"pip install {PACKAGES[name]}, or leave {name} out of train.report_to."
            raise SanakitError("SK0901", f"train.report_to {name} needs the package {PACKAGES[name]}", fix=fix)


def _start(name: str, folder: Path, config: dict[str, Any]) -> Any:
    import torch
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=not torch.cuda.is_available())  # accelerate's trackers log by it; the engine's own where one runs
    kind = LOGGER_TYPE_TO_CLASS[name]
    options: dict[str, Any] = {"run_name": PROJECT, "name": folder.name}
    if name == "tensorboard":
        options = {"run_name": "tensorboard", "logging_dir": folder}
    elif name == "wandb":
        options["dir"] = os.environ.get("WANDB_DIR", str(folder))
    elif name == "mlflow":
        options = {"experiment_name": PROJECT, "run_name": folder.name}
        if "MLFLOW_TRACKING_URI" not in os.environ:  # no server: in the run folder, as the others
            import mlflow

            mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
            options["logging_dir"] = (folder.resolve() / "mlflow").as_uri()
    tracker = kind(**options)
    tracker.start()
    tracker.store_init_configuration({k: v if isinstance(v, int | float | bool) else str(v) for k, v in config.items()})
    return tracker
