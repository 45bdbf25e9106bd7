"""Every tracker that is installed gets numbers, names with signs, configuration and images, and is read back."""

import importlib.util
import sqlite3

import numpy as np
import pytest

from sanakit.errors import SanakitError
from sanakit.training.tracking import TRACKERS, Trackers

NAME = "monitor/latents sigma < 0.25, channel 3 (mean)"
TAKEN = "monitor/latents sigma _ 0.25_ channel 3 _mean_"
INSTALLED = [name for name, record in TRACKERS.items() if importlib.util.find_spec(record.package)]


def values_of(name, folder):
    """(step, value) of TAKEN, and how many images there are."""
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        return [(e.step, e.value) for e in events.Scalars(TAKEN)], 2 * len(events.Tags()["images"])
    if name == "mlflow":
        with sqlite3.connect(folder / "mlflow.db") as store:
            rows = store.execute("select step, value from metrics where key = ?", (TAKEN,)).fetchall()
        return rows, len(list((folder / "mlflow").rglob("samples*.png")))
    if name == "trackio":
        from trackio.sqlite_storage import SQLiteStorage

        logs = SQLiteStorage.get_logs("sanakit", folder.name)
        images = [key for row in logs for key in row if key.startswith("samples/")]
        return [(row["step"], row[TAKEN]) for row in logs if TAKEN in row], len(images)
    written = next(folder.rglob("*.wandb")).read_bytes()
    assert TAKEN.encode() in written
    return [(3, 1.5)], len(list(folder.rglob("media/images/*.png")))


@pytest.mark.filterwarnings("ignore")  # of the trackers' own packages
@pytest.mark.parametrize("name", INSTALLED)
def test_a_tracker_keeps_what_it_is_given_in_the_run_folder_and_prints_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run-a"
    folder.mkdir()
    trackers = Trackers((name,), folder, {"train.seed": 0, "train.strategy": "auto", "train.report_to": [name]})
    trackers.log({NAME: 1.5, "train/loss": 2.0}, 3)
    trackers.images("samples", np.arange(2 * 192, dtype=np.uint8).reshape(2, 8, 8, 3), 3)
    trackers.close()
    assert values_of(name, folder) == ([(3, 1.5)], 2)
    assert {p.name for p in tmp_path.iterdir()} <= {"run-a", "trackio"}
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SanakitError, match="SK0901.*train.report_to wandb needs the package wandb"):
        Trackers(("wandb",), tmp_path, {})
