"""A race on disk while it runs: the same command goes on with the arm and the rung where a signal ended it.

`RUN/race/STRATEGY-RATE/` holds a checkpoint of an arm (weights, optimiser, average, curve) from its last rung or
signal; of an arm that does not go on (a learning rate that lost, a run that diverged) only `curve.json`. The stage
removes the folder when it is evaluated.
"""

import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sanakit.distributed import barrier, is_main, sum_over_ranks
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import HeldOut
from sanakit.swap.arm import Arm
from sanakit.training.checkpoint import Saver, latest, load_checkpoint

CURVE = "curve.json"


@dataclass(kw_only=True)
class RaceStore:
    """folder: of the race. facts: what must agree for an arm to go on; an arm of other facts starts anew.

    restored: arms that go on, in words. lost: why nothing is kept any more; empty while everything is.
    """

    folder: Path
    facts: dict[str, Any]
    restored: list[str] = field(default_factory=list)
    lost: str = ""

    def save(self, arm: Arm) -> None:
        """Keep an arm as it is now. A full disk ends the keeping with one line on standard error, not the race."""
        if self.lost or arm.state is None:
            return
        arm.state.history = [{"curve": curve_of(arm)}]
        try:
            Saver(self._folder_of(arm), keep=1).save(arm.state.module, arm.state, self._facts_of(arm))
        except SanakitError as error:
            self._lose(error)
            barrier()  # behind the write, where the other ranks wait
        self._agree()

    def settle(self, arm: Arm) -> None:
        """Keep the curve of an arm that trains no further, and not its weights."""
        if self.lost or arm.state is None:
            return
        folder = self._folder_of(arm)
        if is_main():
            record = {"facts": _plain(self._facts_of(arm)), "curve": curve_of(arm)}
            try:
                folder.mkdir(parents=True, exist_ok=True)
                aside = folder / f"{CURVE}.tmp"
                aside.write_text(json.dumps(record), encoding="utf-8")
                aside.replace(folder / CURVE)
                for path in folder.glob("step-*"):
                    shutil.rmtree(path)
            except OSError as error:
                self._lose(SanakitError("SK0903", f"{folder}: {error}"))
        self._agree()

    def restore(self, arm: Arm) -> bool:
        """Put an arm where it was kept, in place; False where nothing was kept, or nothing that fits."""
        folder = self._folder_of(arm)
        barrier()
        try:
            curve = self._read(folder, arm)
        except (SanakitError, OSError, ValueError, KeyError) as error:
            told = error.found if isinstance(error, SanakitError) else f"{type(error).__name__}: {error}"
            _say(f"race: {arm.strategy.name} starts anew, what was kept does not fit: {told}")
            barrier()
            if is_main():
                shutil.rmtree(folder, ignore_errors=True)
            return False
        if curve is None:
            return False
        put_curve(arm, curve)
        self.restored.append(f"{arm.strategy.name} at {arm.options.learning_rate:g} from step {_step_of(arm)}")
        return True

    def clear(self) -> None:
        """Remove everything that was kept."""
        barrier()
        if is_main():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, folder: Path, arm: Arm) -> dict[str, Any] | None:
        assert arm.state is not None
        settled, kept = folder / CURVE, latest(folder)
        if settled.is_file():  # written before the weights are removed
            record = json.loads(settled.read_text(encoding="utf-8"))
            if record["facts"] != _plain(self._facts_of(arm)):
                raise ValueError("another configuration, base, candidate or data set")
            return dict(record["curve"])
        if kept is None:
            return None
        load_checkpoint(kept, arm.state.module, arm.state, self._facts_of(arm))
        return dict(arm.state.history[0]["curve"])

    def _folder_of(self, arm: Arm) -> Path:
        return self.folder / f"{arm.strategy.name}-{arm.options.learning_rate:g}"

    def _facts_of(self, arm: Arm) -> dict[str, Any]:
        arm_facts = {"strategy": arm.strategy.name, "scales": arm.strategy.scales, "lora_rank": arm.strategy.lora_rank}
        return self.facts | arm_facts | {"options": asdict(arm.options)}

    def _lose(self, error: SanakitError) -> None:
        if error.code != "SK0903":
            raise error
        self.lost = error.found
        shutil.rmtree(self.folder, ignore_errors=True)
        _say(f"race: not kept from here on, an interruption would start it anew: {error.found}")

    def _agree(self) -> None:
        """Every rank stops keeping when one of them does."""
        if sum_over_ranks(torch.zeros(()), int(bool(self.lost)))[1]:
            self.lost = self.lost or "rank 0 could not write"


def curve_of(arm: Arm) -> dict[str, Any]:
    """What was measured of an arm, JSON-able; floats keep every bit."""
    return {
        "steps": arm.steps,
        "sigmas": [list(result.sigmas) for result in arm.results],
        "losses": [result.losses.tolist() for result in arm.results],
        "errors": [errors.tolist() for errors in arm.errors_by_evaluation],
        "extra_steps": arm.extra_steps,
        "extra_losses": arm.extra_losses,
        "extra_errors": [errors.tolist() for errors in arm.extra_errors],
        "train_loss": arm.train_loss,
        "recent": arm.recent,
        "seconds": arm.seconds,
        "seconds_at": {str(step): seconds for step, seconds in arm.seconds_at.items()},
        "seconds_once": arm.seconds_once,
        "diverged": arm.diverged,
    }


def put_curve(arm: Arm, curve: dict[str, Any]) -> None:
    """The inverse of `curve_of`."""
    arm.steps = list(curve["steps"])
    arm.results = [
        HeldOut(tuple(sigmas), torch.tensor(losses))
        for sigmas, losses in zip(curve["sigmas"], curve["losses"], strict=True)
    ]
    arm.errors_by_evaluation = [np.asarray(errors) for errors in curve["errors"]]
    arm.extra_steps, arm.extra_losses = list(curve["extra_steps"]), list(curve["extra_losses"])
    arm.extra_errors = [np.asarray(errors) for errors in curve["extra_errors"]]
    arm.train_loss = [(int(step), float(loss)) for step, loss in curve["train_loss"]]
    arm.recent = list(curve["recent"])
    arm.seconds, arm.seconds_once = float(curve["seconds"]), float(curve["seconds_once"])
    arm.seconds_at = {int(step): float(seconds) for step, seconds in curve["seconds_at"].items()}
    arm.diverged = str(curve["diverged"])


def _step_of(arm: Arm) -> int:
    assert arm.state is not None
    return max([arm.state.step, *arm.steps])


def _plain(facts: dict[str, Any]) -> Any:
    return json.loads(json.dumps(facts))


def _say(text: str) -> None:
    if is_main():
        print(text, file=sys.stderr)
