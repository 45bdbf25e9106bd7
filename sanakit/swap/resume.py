"""Going on with an earlier run: what must agree, which checkpoint is taken, and which rows are left out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sanakit.distributed import barrier, is_main
from sanakit.errors import SanakitError
from sanakit.hashing import hash_record
from sanakit.swap.settings import flat_config
from sanakit.training.checkpoint import Saver, latest, load_checkpoint, set_aside
from sanakit.training.loop import TrainState
from sanakit.training.monitors import MonitorRequest, Monitors
from sanakit.training.schedules import decay_start

if TYPE_CHECKING:
    from sanakit.run import RunFolder
    from sanakit.swap.context import Swap

ROLLED_BACK = "rolled_back"  # in the extras of a state
RATE = "the race's learning rate"
# what may change between two parts of one run: it does not touch the trajectory
FREE = (
    "train.micro_batch",
    "train.gradient_checkpointing",
    "train.checkpoint_every",
    "train.parallel",
    "train.async_checkpoints",
    "train.hang_timeout",
    "train.log_every",
    "train.sample_every",
    "train.report_to",
    "data.cache",
    "data.workers",
    "data.latents",  # live or ahead gives the same numbers
    "data.embeddings",
)


def resume_facts(swap: "Swap", strategy: str, rate: float | None = None) -> dict[str, Any]:
    """Everything that determines a run's trajectory, flat; a checkpoint that differs is refused field by field. rate:
    the strategy's, which another race may have chosen otherwise."""
    flat: dict[str, Any] = {"strategy": strategy, "candidate": swap.candidate_identity}
    flat |= {"images": swap.images.fingerprint}
    if not swap.trains_vae_alone:
        flat |= {f"base {part}": value for part, value in swap.base_fingerprint.items()}
    flat |= flat_config(swap.config) | ({} if rate is None else {RATE: rate})
    return {key: value for key, value in flat.items() if key not in FREE and not key.startswith("smoke.")}


def pick_up(checkpoints: Path, resume: str, state: TrainState, facts: dict[str, Any]) -> None:
    if resume == "never":
        if is_main():
            set_aside(checkpoints)
        barrier()
        return
    if resume == "auto":
        set_torn_aside(checkpoints)
    source = checkpoint_to_take(checkpoints, facts) if resume == "auto" else Path(resume)
    if source is not None:
        folder = source if resume == "auto" else latest(source) or source
        load_checkpoint(folder, state.module, state, facts_for(folder, facts))


def set_torn_aside(folder: Path) -> None:
    """Rename the newest checkpoints whose manifest is no manifest, as a crash of the machine leaves it, and say so:
    the run goes on from the one before. A sound manifest whose files are damaged is refused when it is loaded."""
    while is_main() and (newest := latest(folder)) is not None:
        try:
            manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
            if hash_record(manifest["record"]) == manifest["sha256"]:
                break
            why = "its hash is not its own"
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}"
        number = next(n for n in range(1, 10_000) if not folder.joinpath(f"torn-{newest.name}.{n}").exists())
        aside = newest.rename(folder / f"torn-{newest.name}.{number}")
        print(f"checkpoint {newest.name} has a torn manifest ({why}): set aside as {aside}", file=sys.stderr)
    barrier()


def checkpoint_to_take(checkpoints: Path, facts: dict[str, Any]) -> Path | None:
    """The newest checkpoint; where it lies beyond the step at which the rate began to fall and the run is to be longer,
    the newest one of the course that both share."""
    newest = latest(checkpoints)
    if newest is None or agrees(newest, facts):
        return newest
    older = sorted((path.parent for path in checkpoints.glob("step-*/manifest.json")), reverse=True)
    shared = next((folder for folder in older if folder != newest and agrees(folder, facts)), None)
    if shared is None:
        return newest  # load_checkpoint names every field that differs
    if is_main():
        told = f"goes on from {shared.name}, where the learning rate of the earlier run began to fall"
        print(f"train.max_steps is {facts['train.max_steps']} now: {told}", file=sys.stderr)
    return shared


def agrees(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a checkpoint is of this run's course."""
    try:
        other = json.loads((folder / "manifest.json").read_text())["record"]["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(other == json.loads(json.dumps(facts_for(folder, facts))))


def facts_for(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint's facts must agree with: those of the run, but `train.max_steps` is free where the checkpoint
    lies before the rate begins to fall, in its own run and in this one. Up to there both take the same course. A
    checkpoint that does not name the race's learning rate is older than that rule."""
    try:
        record = json.loads((folder / "manifest.json").read_text())["record"]
        other, step = record["facts"], int(record["step"])
        facts = {key: value for key, value in facts.items() if key != RATE or RATE in other}
        schedules = {run["train.schedule"] for run in (other, facts)}
        starts = [decay_start(run["train.schedule"], run["train.max_steps"]) for run in (other, facts)]
    except (OSError, ValueError, KeyError, TypeError):
        return facts  # load_checkpoint says what is wrong
    shared = len(schedules) == 1 and all(start is not None and step <= start for start in starts)
    gradual = other.get("train.gradual") or facts.get("train.gradual")  # blocks join at shares of the steps
    return facts | {"train.max_steps": other["train.max_steps"]} if shared and not gradual else facts


def good_checkpoint(checkpoints: Path, request: MonitorRequest, facts: dict[str, Any]) -> Path:
    """The newest checkpoint of this run's course from before the drift. Raises SK0511 where the action is to stop, or
    there is none."""
    if request.action == "stop":
        raise SanakitError("SK0511", str(request)) from request
    whole_ones = [path.parent for path in sorted(checkpoints.glob("step-*/manifest.json"))]
    before = [path for path in whole_ones if int(path.name.removeprefix("step-")) <= request.since]
    good = [path for path in before if agrees(path, facts)]
    if not good:
        raise SanakitError("SK0511", f"{request}; no checkpoint from step {request.since} or before") from request
    return good[-1]


def watched(
    go_on: Callable[[], object],
    state: TrainState,
    monitors: Monitors,
    saver: Saver,
    facts: dict[str, Any],
    went_back: Callable[[], object],
) -> None:
    """Train; where a monitor asks for it go back once, and on from there at half the learning rate. The alarms that
    asked for it stay in the history, and that it was done in the extras, so that a resume knows both. went_back: called
    when the state is that of the checkpoint.

    Raises SK0511 for the action `stop`, without a checkpoint to go back to, and for the second roll-back.
    """
    try:
        go_on()
    except MonitorRequest as request:
        if ROLLED_BACK in state.extras:
            raise SanakitError("SK0511", f"after a roll-back: {request}") from request
        saver.wait()
        earlier = state.history
        good = good_checkpoint(saver.folder, request, facts)
        load_checkpoint(good, state.module, state, facts_for(good, facts))
        monitors.restore(state.extras)
        monitors.factor *= 0.5
        state.history += [r for r in earlier if r["row"].get("alarm") and r["row"]["step"] > state.step]
        state.extras[ROLLED_BACK] = torch.tensor(True)
        went_back()
        if is_main():
            print(f"monitor: back to step {state.step}, learning rate times {monitors.factor:g}", file=sys.stderr)
        try:
            go_on()
        except MonitorRequest as again:
            raise SanakitError("SK0511", f"after a roll-back: {again}") from again


def drop_later(run: "RunFolder", step: int) -> None:
    """Leave out rows of steps.jsonl after the step that the run goes on from."""
    run.keep_rows("steps.jsonl", lambda row: bool(row["step"] <= step))
