"""Which checkpoint a run goes on from, and which it goes back to."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sanakit.config import make_config
from sanakit.contracts import Reading
from sanakit.distributed import STOP
from sanakit.errors import SanakitError
from sanakit.swap import stages as engine
from sanakit.swap.context import Swap
from sanakit.swap.resume import agrees, facts_for, resume_facts, watched
from sanakit.swap.settings import options_of, strategy_of
from sanakit.training.checkpoint import Saver, load_checkpoint
from sanakit.training.monitors import MonitorRequest, Monitors
from sanakit.training.state import TrainState

SHORT = {"train.max_steps": 300, "train.schedule": "constant-then-decay"}
LONG = SHORT | {"train.max_steps": 600}


@pytest.fixture
def state():
    module = nn.Linear(2, 2)
    return TrainState(step=0, optimizer=torch.optim.AdamW(module.parameters()), module=module)


def save_at(saver, state, step, facts):
    state.step = step
    saver.save(state.module, state, facts)


def test_a_run_that_was_made_longer_rolls_back_to_the_course_that_both_share(state, tmp_path):
    """Checkpoints of the shorter run's decay are passed over; the one before it is taken, whatever its max_steps."""
    saver = Saver(tmp_path, always=200)
    for step in (200, 250):
        save_at(saver, state, step, SHORT)
    assert [agrees(tmp_path / f"step-00000{step}", LONG) for step in (200, 250)] == [True, False]
    asked = []

    def go_on():
        asked.append(state.step)
        if len(asked) == 1:
            raise MonitorRequest("roll-back", Reading(name="latents", value=1.0, title="drift"), 260)

    monitors = SimpleNamespace(restore=lambda extras: None, factor=1.0)
    watched(go_on, state, monitors, saver, LONG, lambda: asked.append(state.step))
    assert asked == [250, 200, 200] and monitors.factor == 0.5


def test_another_race_may_have_chosen_another_rate_and_is_not_gone_on_with_silently(state, tmp_path):
    config = make_config({"base": "tiny-sana", "vae": {"name": "dc-f16c16"}, "train": {"max_steps": 300}})
    swap = SimpleNamespace(
        config=config,
        candidate=None,
        candidate_identity="c",
        images=SimpleNamespace(fingerprint="i"),
        trains_vae_alone=False,
        base_fingerprint={"core": "x"},
    )

    def raced(rate):
        return {"recommended": "finetune", "candidates": [{"name": "finetune", "learning_rate": rate}]}

    facts, fingerprints = [], []
    for rate in (2e-3, 2.5e-4):
        strategy = strategy_of(config, raced(rate))
        facts.append(resume_facts(swap, strategy.name, options_of(config, strategy).learning_rate))
        swap.run = SimpleNamespace(
            read_json=lambda name, default, rate=rate: raced(rate), read_validation=lambda: {"stages": {}}
        )
        fingerprints.append(Swap.fingerprint(swap, "full"))
    assert fingerprints[0] != fingerprints[1]
    save_at(Saver(tmp_path), state, 50, facts[0])
    folder = tmp_path / "step-00000050"
    assert agrees(folder, facts[0]) and not agrees(folder, facts[1])
    with pytest.raises(SanakitError, match=r"SK0505.*the race's learning rate is 0.002, this run has 0.00025"):
        load_checkpoint(folder, state.module, state, facts_for(folder, facts[1]))
    older = {key: value for key, value in facts[0].items() if key != "the race's learning rate"}
    save_at(Saver(tmp_path), state, 60, older)  # of a version that did not keep it
    assert agrees(tmp_path / "step-00000060", facts[1])


@pytest.fixture
def alarmed(small_world, tmp_path, monkeypatch):
    """`alarmed(folder, at=..., stop=0)` is stage full of twelve steps with an alarm of the latents the first time that
    each of the steps `at` is reached, stopped at a step and resumed: validation.json."""
    report, act = Monitors.report, Monitors.act
    values = small_world | {"monitors": {"num_evaluations": 6, "latents": "roll-back"}}
    values["train"] = values["train"] | {"max_steps": 12, "checkpoint_every": 4}

    def run(folder, *, at=(6,), stop=0):
        waiting = list(at)

        def reported(monitors, step):
            readings = [r for r in report(monitors, step) if not r.alarm]
            planted = [Reading(name="latents", value=9.0, title="planted", step=step, alarm=True)] * (step in waiting)
            return readings + planted

        def asked(monitors, readings):
            planted = [r for r in readings if r.title == "planted"]
            for reading in planted:
                waiting.remove(reading.step)
            return MonitorRequest("roll-back", planted[0], planted[0].step - 1) if planted else act(monitors, readings)

        def progress(label, done, total):
            if stop and label == "training finetune" and done == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(Monitors, "report", reported)
        monkeypatch.setattr(Monitors, "act", asked)
        for one in (progress, lambda *_: None) if stop else (lambda *_: None,):
            swap = engine.prepare(make_config(values), tmp_path / folder, one, stages=["full"])
            try:
                with STOP.installed():
                    validation = engine.run_stages(swap, ["full"], force=True)
            except SystemExit:
                assert stop and one is progress
        return validation

    return run


def drift_gate(validation):
    return next(gate for gate in validation["stages"]["full"]["gates"] if gate["gate"] == "full/latent-drift")


def test_a_roll_back_is_known_after_a_stop_as_without_one(alarmed, tmp_path):
    whole, parts = alarmed("whole"), alarmed("parts", stop=8)
    assert drift_gate(whole)["value"] == 1 and drift_gate(whole)["verdict"] == "fail"
    assert drift_gate(parts) == drift_gate(whole)
    files = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert files[0] == files[1] and len(files[0]) == len(set(files[0]))
    steps = [row["step"] for row in map(json.loads, files[0]) if row["split"] == "held_out"]
    assert steps == [2, 4, 6, 8, 10, 12]
    readings = [(tmp_path / name / "readings.jsonl").read_text() for name in ("whole", "parts")]
    assert readings[0] == readings[1] and readings[0].count("planted") == 1


def test_a_second_roll_back_is_refused_after_a_stop_too(state, tmp_path):
    save_at(Saver(tmp_path), state, 4, SHORT)
    state.extras = {"rolled_back": torch.tensor(True)}  # as a resume finds it

    def go_on():
        raise MonitorRequest("roll-back", Reading(name="latents", value=1.0, title="drift"), 6)

    with pytest.raises(SanakitError, match="SK0511.*after a roll-back"):
        watched(go_on, state, SimpleNamespace(restore=lambda extras: None, factor=1.0), Saver(tmp_path), SHORT, int)
