"""Signals, kills at every write point and at random, a full disk, flipped bits: nothing is lost,
everything is named."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sanakit import cli
from sanakit.cli.verdict_view import print_validation
from sanakit.config import make_config
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import load_images, store
from sanakit.data.cache import latent_job, to_images
from sanakit.distributed import STOP
from sanakit.errors import SanakitError
from sanakit.interop.export import save_text_model, save_tokenizer, save_vae, write_encoder
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.reporting import write_report
from sanakit.strategies.base import STRATEGIES
from sanakit.swap import stages as engine
from sanakit.swap.encoder_training import trainable_copy
from sanakit.swap.resume import facts_for, resume_facts
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.training import checkpoint
from sanakit.training import loop as train
from sanakit.training.checkpoint import latest, load_checkpoint, preflight, read_manifest, save_checkpoint
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.vaes import VAES

OPTIONS = TrainOptions(max_steps=10_000, batch_size=2, warmup=1, ema_decay=0.9)
FACTS = {"train.seed": 0}


def start(system):
    groups = [{"params": p, "scale": 1.0} for p in parameters_by_group(system.core).values()]
    return new_state(system.core, groups, OPTIONS)


def everything(core, state):
    slots = checkpoint.optimizer_slots(core, state)
    tensors = {**core.state_dict(), **{f"ema.{k}": v for k, v in state.ema.items()}}
    return {k: v.clone() for k, v in tensors.items()} | {
        f"{name}:{key}": v.clone() for name, slot in slots.items() for key, v in slot.items()
    }


def forked(work):
    """Run `work` in a child; its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"child: {type(error).__name__}: {error}\n".encode())
            os._exit(77)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def states(tiny_system, tiny_data):
    """Everything that a checkpoint must hold, by step, of a run that nobody disturbed."""
    fresh = {k: v.clone() for k, v in tiny_system.core.state_dict().items()}
    state, by_step = start(tiny_system), {}

    def keep(step, *_):
        return by_step.__setitem__(step, everything(tiny_system.core, state))

    fit(tiny_system, tiny_data, OPTIONS, state, until=25, after_step=keep)
    tiny_system.core.load_state_dict(fresh)
    return by_step


def go_on(system, data, folder, steps):
    """Resume from the latest checkpoint, or start, and save after every step: what a child does until it is killed."""
    state = start(system)
    checkpoint = latest(folder)
    if checkpoint:
        load_checkpoint(checkpoint, system.core, state, FACTS)

    def save(*_):
        return save_checkpoint(folder, system.core, state, FACTS)

    fit(system, data, OPTIONS, state, until=state.step + steps, after_step=save)


def check(system, folder, states, at_least):
    """The latest checkpoint is whole and bit-equal to the undisturbed run."""
    checkpoint = latest(folder)
    if checkpoint is None:
        assert not at_least
        return 0
    fresh = {k: v.clone() for k, v in system.core.state_dict().items()}
    state = start(system)
    load_checkpoint(checkpoint, system.core, state, FACTS)
    assert at_least <= state.step
    if state.step in states:
        expected = states[state.step]
        now = everything(system.core, state)
        assert now.keys() == expected.keys() and all(torch.equal(now[k], v) for k, v in expected.items())
    system.core.load_state_dict(fresh)
    return state.step


@pytest.mark.own_process
def test_a_kill_before_any_write_leaves_a_whole_checkpoint(tiny_system, tiny_data, states, tmp_path, monkeypatch):
    """Every call that changes the disk is a kill point; the child dies just before it."""
    calls, deadly = 0, 0

    def armed(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name in (
        (checkpoint, "save_tensors"),
        (os, "fsync"),
        (shutil, "rmtree"),
        *((Path, n) for n in ("mkdir", "rename", "replace", "write_text", "unlink")),
    ):
        monkeypatch.setattr(owner, name, armed(getattr(owner, name)))
    step, deaths, status = 0, 0, -signal.SIGKILL
    assert wait(forked(lambda: go_on(tiny_system, tiny_data, tmp_path / "three", 3))) == 0  # so that pruning is at work
    while status == -signal.SIGKILL:
        calls, deadly, work = 0, 0, tmp_path / f"work-{deaths}"  # the parent itself is not armed
        shutil.copytree(tmp_path / "three", work)

        def die(deaths=deaths):
            nonlocal calls, deadly
            calls, deadly = 0, deaths + 1
            go_on(tiny_system, tiny_data, work, 1)

        status = wait(forked(die))
        step = check(tiny_system, work, states, at_least=3)
        deaths += status == -signal.SIGKILL
    assert status == 0 and step == 4 and deaths >= 20, (status, step, deaths)


@pytest.mark.own_process
def test_fifty_kills_at_random_always_resume_from_a_whole_checkpoint(tiny_system, tiny_data, states, tmp_path):
    chance, step, kills = random.Random(0), 0, 0
    deadline = time.monotonic() + 60
    while kills < 50 and time.monotonic() < deadline:
        child = forked(lambda: go_on(tiny_system, tiny_data, tmp_path, 10_000))
        time.sleep(chance.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        kills += 1
        step = check(tiny_system, tmp_path, states, at_least=step)
        if step >= 25:
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            step = 0
    assert kills == 50


def test_a_flipped_bit_is_found_and_named_in_every_file(tiny_system, tiny_data, tmp_path):
    go_on(tiny_system, tiny_data, tmp_path, 2)
    folder = latest(tmp_path)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "core.safetensors",
        "ema.safetensors",
        "extras.safetensors",
        "history.json",
        "manifest.json",
        "optimizer.safetensors",
    ]
    chance = random.Random(0)
    for name in names:
        good = (folder / name).read_bytes()
        for _ in range(8):
            bad = bytearray(good)
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            (folder / name).write_bytes(bad)
            with pytest.raises(SanakitError, match=f"SK0505.*({name}|{folder.name})"):
                read_manifest(folder)
        (folder / name).write_bytes(good)
    read_manifest(folder)


def test_a_configuration_that_differs_is_refused_field_by_field(tiny_system, tiny_data, tmp_path):
    state = start(tiny_system)
    saved = {"train.seed": 0, "train.learning_rate": 1e-3, "rates": {"core": 0.5}}
    folder = save_checkpoint(tmp_path, tiny_system.core, state, saved)
    other = {"train.seed": 1, "train.learning_rate": 1e-3, "rates": {"core": 0.1}}
    with pytest.raises(SanakitError, match=r"SK0505.*train.seed is 0, this run has 1; rates is .*0.5.*0.1") as refusal:
        load_checkpoint(folder, tiny_system.core, state, other)
    assert "learning_rate" not in refusal.value.found


@pytest.mark.own_process
def test_a_full_disk_keeps_the_earlier_checkpoint(tiny_system, tiny_data, tmp_path, states):
    def short_of_room():
        go_on(tiny_system, tiny_data, tmp_path, 3)
        size = (latest(tmp_path) / "optimizer.safetensors").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        with pytest.raises(SanakitError, match="SK0903"):
            go_on(tiny_system, tiny_data, tmp_path, 1)
        with pytest.raises(SanakitError, match="SK0903.*3 checkpoints of .* MB do not fit"):
            preflight(tmp_path, size * 2)

    assert wait(forked(short_of_room)) == 0
    assert check(tiny_system, tmp_path, states, at_least=3) == 3
    assert not list(tmp_path.glob(".*"))


def test_no_space_left_on_a_small_file_system(tiny_system, tiny_data, tmp_path, states):
    go_on(tiny_system, tiny_data, tmp_path / "probe", 1)
    tiny_system.core.load_state_dict({k: states[1][k] for k in tiny_system.core.state_dict()})
    size = sum(p.stat().st_size for p in latest(tmp_path / "probe").iterdir())
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * size)}", "none", str(small)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    try:
        with pytest.raises(SanakitError, match="SK0903.*do not fit .*No space left"):
            preflight(small, size)
        shutil.copytree(latest(tmp_path / "probe"), small / "step-00000001")
        with pytest.raises(SanakitError, match="SK0903.*No space left"):
            go_on(tiny_system, tiny_data, small, 1)
        assert latest(small).name == "step-00000001" and read_manifest(latest(small))["step"] == 1
        shard = {"facts": {"kind": "latents"}, "rows": torch.arange(64), "row_bytes": size // 8}
        with pytest.raises(SanakitError, match="SK0903.*No space left"):
            store.write(small, compute=lambda part: {"x": torch.zeros(len(part), size // 32)}, **shard)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def small_run(small_world):
    """`run(folder, stop_at=..., by=...)` is `sanakit train` on the small world."""

    def run(folder, *, stop_at=0, by=signal.SIGTERM, resume="auto", sets=()):
        def progress(label, done, total):
            if label.startswith("training") and done == stop_at:
                os.kill(os.getpid(), by)

        config = make_config(small_world, list(sets))
        with STOP.installed():
            swap = engine.prepare(config, folder, progress)
            return engine.run_stages(swap, ["full"], force=True, resume=resume)

    return run


def artefacts(folder):
    """What must not depend on an interruption: weights, metrics, readings."""
    lines = [(folder / name).read_text() for name in ("metrics.jsonl", "readings.jsonl")]
    return [(folder / "model" / "diffusion_pytorch_model.safetensors").read_bytes(), *lines]


def verdict(folder):
    """Every gate of stage full with its value and its answer."""
    gates = json.loads((folder / "validation.json").read_text())["stages"]["full"]["gates"]
    return [(gate["gate"], gate["verdict"], gate["value"]) for gate in gates]


@pytest.mark.parametrize(
    ("by", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_a_signal_saves_at_the_step_border_and_the_run_goes_on_bit_exactly(small_run, tmp_path, by, code, capsys):
    small_run(tmp_path / "straight", sets=["train.ema_decay=0.9"])
    with pytest.raises(SystemExit) as stop:
        small_run(tmp_path / "stopped", stop_at=7, by=by, sets=["train.ema_decay=0.9"])
    assert stop.value.code == code and "stopped at step 8 of 24" in capsys.readouterr().err
    assert latest(tmp_path / "stopped" / "checkpoints").name == "step-00000008"
    small_run(tmp_path / "stopped", sets=["train.ema_decay=0.9"])
    assert artefacts(tmp_path / "stopped") == artefacts(tmp_path / "straight")


def test_a_signal_outside_the_loop_ends_at_once_and_never_starts_anew_keeps_what_was(small_run, tmp_path):
    with STOP.installed(), pytest.raises(SystemExit, match="143"):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit):
        small_run(tmp_path / "run", stop_at=12)
    small_run(tmp_path / "run", resume="never")
    assert latest(tmp_path / "run" / "checkpoints.1").name == "step-00000013"
    assert latest(tmp_path / "run" / "checkpoints").name == "step-00000024"
    card = json.loads((tmp_path / "run" / "model" / "card.json").read_text())
    assert card["embedded"] is True  # as the base's card says


@pytest.mark.slow
def test_the_checkpoint_where_the_decay_begins_stays_and_a_longer_run_goes_on_from_it(small_run, tmp_path):
    short, again = tmp_path / "short", tmp_path / "again"
    small_run(short, sets=["train.checkpoint_every=4"])
    kept = sorted(path.name for path in (short / "checkpoints").glob("step-*"))
    assert kept == ["step-00000016", "step-00000020", "step-00000024"]  # 24 steps: the last 8 decay
    longer = ["train.checkpoint_every=4", "train.max_steps=27"]
    small_run(again, resume=str(short / "checkpoints" / kept[0]), sets=longer)
    logged = (again / "steps.jsonl").read_text().splitlines()
    assert json.loads(logged[0])["step"] == 20 and latest(again / "checkpoints").name == "step-00000027"
    facts = read_manifest(short / "checkpoints" / kept[0])["facts"]
    before, after = (facts_for(short / "checkpoints" / name, facts | {"train.max_steps": 27}) for name in kept[:2])
    assert before["train.max_steps"] == 24 and after["train.max_steps"] == 27  # the second is refused
    other = facts | {"train.max_steps": 27, "train.schedule": "cosine"}
    assert facts_for(short / "checkpoints" / kept[0], other) == other


def test_resuming_a_named_checkpoint_of_another_configuration_names_the_fields(small_run, tmp_path):
    with pytest.raises(SystemExit):
        small_run(tmp_path / "one", stop_at=5)
    with pytest.raises(SanakitError, match=r"SK0505.*train.weight_decay is 0.01, this run has 0.2"):
        small_run(tmp_path / "two", resume=str(tmp_path / "one" / "checkpoints"), sets=["train.weight_decay=0.2"])
    small_run(tmp_path / "three", resume=str(tmp_path / "one" / "checkpoints"), sets=["train.checkpoint_every=3"])


def test_skipped_steps_are_budgeted_and_in_the_ledger(small_run, tmp_path, monkeypatch):
    draw = train.draw_batch

    def spoilt(system, data, options, step, rows=slice(None)):
        batch = draw(system, data, options, step, rows)
        return batch.map(lambda x: x * float("nan") if x.is_floating_point() and step in (3, 5) else x)

    monkeypatch.setattr(train, "draw_batch", spoilt)
    with pytest.raises(SanakitError, match=r"SK0501.*step 5; not finite in the data: \d+\.png"):
        small_run(tmp_path / "one", sets=["train.max_skipped=1"])
    small_run(tmp_path / "two", sets=["train.max_skipped=2"])
    rows = [json.loads(line) for line in (tmp_path / "two" / "ledger.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["step 3", "step 5"]


@pytest.mark.slow
@pytest.mark.own_process
def test_random_kills_of_encode_lose_no_row_and_double_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for i in range(48):
        Image.radial_gradient("L").resize((40, 32)).point(lambda v, i=i: (v + 5 * i) % 256).save(
            tmp_path / "images" / f"{i:02d}.png"
        )
        (tmp_path / "images" / f"{i:02d}.txt").write_text(f"image {i}")
    vae = VAES.get("kl-f8c4").tiny()
    images = load_images(str(tmp_path / "images"))
    monkeypatch.setattr(store, "SHARD_BYTES", 4 * latent_job(vae, images, 32).row_bytes)  # 12 shards
    expected = latent_job(vae, images, 32).run(tmp_path / "whole")[1]["raw_latents"][:]

    def encode(out, at_work=lambda: None):
        images = load_images(str(tmp_path / "images"))
        at_work()
        return latent_job(vae, images, 32).run(out)

    start = time.monotonic()
    assert wait(forked(lambda: encode(tmp_path / "timed"))) == 0
    whole, chance, kills, number, attempts = time.monotonic() - start, random.Random(0), 0, 0, 0
    most = int(os.environ.get("SANAKIT_KILLS", "50"))
    while kills < most and attempts < 4 * most:
        out = tmp_path / f"out-{number}"
        child = forked(lambda: encode(out))
        time.sleep(chance.uniform(0.02, 0.9) * whole)
        os.kill(child, signal.SIGKILL)
        attempts += 1
        kills += wait(child) == -signal.SIGKILL
        if any(out.glob("*/manifest.json")) or attempts % 10 == 0:
            entry, tensors, _ = encode(out)
            assert torch.equal(tensors["raw_latents"][:], expected) and not entry.damage()
            assert len(list(out.glob("*/*.safetensors"))) == 12 and entry.manifest["count"] == 48
            number += 1
    assert kills == most


def test_two_writers_fill_one_entry_and_a_killed_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 4 * 8)
    rows, facts = torch.arange(40), {"kind": "latents", "encoder": "x"}

    def compute(part):
        return {"x": torch.arange(part.start, part.stop).float()[:, None].expand(-1, 2)}

    def slowly(part):
        time.sleep(0.01)
        return compute(part)

    children = [forked(lambda: store.write(tmp_path, facts, rows, slowly, row_bytes=8)) for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    entry, shards, where = store.find(tmp_path, facts, rows)
    assert not entry.damage() and len(entry.manifest["shards"]) == 10
    read = store.Rows(shards["x"], where)
    assert torch.equal(read[:][:, 0], rows.float()) and torch.equal(
        read[torch.tensor([39, 0, 5]), 1], torch.tensor([39.0, 0, 5])
    )

    other = facts | {"encoder": "y"}
    child = forked(lambda: store.write(tmp_path, other, rows, slowly, row_bytes=8))

    def shards_written():
        return len(list(tmp_path.glob("latents-*/0*.safetensors"))) - 10

    while not shards_written():
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    wait(child)
    assert store.find(tmp_path, other, rows) is None
    done, computed = shards_written(), []
    store.write(tmp_path, other, rows, lambda p: (computed.append(p), compute(p))[1], row_bytes=8)
    assert done > 0 and len(computed) == 10 - done
    assert store.find(tmp_path, other, rows)


@pytest.mark.slow
@pytest.mark.own_process
def test_random_kills_of_stage_full_leave_weights_curves_and_verdict_as_they_are(small_run, tmp_path):
    """Kills fall anywhere from reading the data to writing the card, not at step borders alone."""
    start = time.monotonic()
    assert wait(forked(lambda: small_run(tmp_path / "straight"))) == 0
    whole, chance, kills, runs = time.monotonic() - start, random.Random(0), 0, 0
    expected, said = artefacts(tmp_path / "straight"), verdict(tmp_path / "straight")
    most = int(os.environ.get("SANAKIT_KILLS", "50"))
    while kills < most:
        folder = tmp_path / f"killed-{runs}"
        child = forked(lambda: small_run(folder))
        time.sleep(chance.uniform(0.1, 1.0) * whole)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = wait(child)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        if status == 0:
            assert artefacts(folder) == expected and verdict(folder) == said
            shutil.rmtree(folder)
            runs += 1
    assert runs >= most // 25  # kills do not keep a run from its end


@pytest.mark.own_process
def test_a_killed_run_goes_on_as_if_nothing_had_been(small_run, tmp_path):
    small_run(tmp_path / "straight")
    for kill_at in (4, 14, 21):  # before the first checkpoint, between two, right after one
        child = forked(lambda: small_run(tmp_path / "killed", stop_at=kill_at, by=signal.SIGKILL))
        assert wait(child) == -signal.SIGKILL
    small_run(tmp_path / "killed")
    assert artefacts(tmp_path / "killed") == artefacts(tmp_path / "straight")
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "steps.jsonl").read_text().splitlines()]
    assert steps == [10, 20]


def base_of(tmp_path, encoder):
    """The small world's base with another text encoder, saved to a folder and named by it."""
    write_encoder(encoder, tmp_path / "encoder")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    shapes = {k: v for k, v in config.items() if not k.startswith("_")} | {"caption_channels": 16}
    new_core(shapes, seed=0).save_pretrained(tmp_path / "base")
    card = json.loads((tmp_path / "base" / "card.json").read_text())
    card["text_encoder"] = f"path:{tmp_path}/encoder/text_encoder"
    (tmp_path / "base" / "card.json").write_text(json.dumps(card))


def test_a_decoder_only_llm_is_trained_beside_the_core_and_resumed(small_run, tmp_path):
    """A Gemma-2 of random weights, saved as the hub lays it out: Sana's kind of encoder, instruction and all."""
    torch.manual_seed(0)
    twin = TEXT_ENCODERS.get("gemma-2-2b-it").tiny()
    short = "instruction=draw: &max_tokens=24"
    save_text_model(twin, tmp_path / "llm")
    save_tokenizer(twin, tmp_path / "llm")
    encoder = load_text_encoder(f"path:{tmp_path}/llm?{short}")
    assert encoder.spec.instruction == "draw: " and type(encoder.model).__name__ == "Gemma2Model"
    base_of(tmp_path, encoder)
    sets = ["text_encoder.learning_rate=1e-3", "text_encoder.gradient_checkpointing=true", "train.max_steps=12"]
    sets += ["train.prompt_dropout=0.5", "train.checkpoint_every=5", "train.ema_decay=0.9"]
    small_run(tmp_path / "straight", sets=sets)
    with pytest.raises(SystemExit):
        small_run(tmp_path / "stopped", stop_at=7, sets=sets)
    small_run(tmp_path / "stopped", sets=sets)
    assert artefacts(tmp_path / "stopped") == artefacts(tmp_path / "straight")
    trained = load_base(f"path:{tmp_path}/straight/model").system()
    assert trained.text_encoder.spec == encoder.spec
    before, after = dict(encoder.model.named_parameters()), dict(trained.text_encoder.model.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before if "embed_tokens" not in name)
    assert torch.equal(trained.null.embeds, trained.text_encoder.null().embeds)  # of the encoder as it is now
    assert not torch.allclose(trained.null.embeds, encoder.null().embeds)
    steps = [json.loads(line) for line in (tmp_path / "straight" / "steps.jsonl").read_text().splitlines()]
    assert steps and all(row["grad_norm"] > 0 for row in steps)


def test_a_text_encoder_trained_beside_the_core_is_written_read_and_resumed(small_run, tmp_path):
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    base_of(tmp_path, encoder)
    sets = ["text_encoder.learning_rate=1e-3", "train.sample_every=12", "monitors.num_evaluations=2"]
    small_run(tmp_path / "straight", sets=sets)
    with pytest.raises(SystemExit):
        small_run(tmp_path / "stopped", stop_at=11, sets=sets)
    small_run(tmp_path / "stopped", sets=sets)
    assert artefacts(tmp_path / "stopped") == artefacts(tmp_path / "straight")
    run = tmp_path / "straight"
    system = load_base(f"path:{run}/model").system()
    assert not torch.equal(system.text_encoder.encode(["abc"]).embeds, encoder.encode(["abc"]).embeds)
    readings = [json.loads(line) for line in (run / "readings.jsonl").read_text().splitlines()]
    moved = [r for r in readings if r["name"] == "components"]
    assert len(moved) == 2 and all(
        r["where"].startswith("text encoder: channel ") and r["ci_low"] < r["ci_high"] for r in moved
    )
    assert not {"embeddings"} & {r["name"] for r in readings}
    assert (run / "figures" / "samples-step-00000012.png").is_file()
    with pytest.raises(SanakitError, match="SK0104.*Embedding has none"):
        trainable_copy(TEXT_ENCODERS.get("wordllama").tiny(), gradient_checkpointing=True)


def test_a_vae_is_tuned_resumed_and_read_back_as_a_candidate(small_run, tmp_path):
    vae = VAES.get("sdxl-vae").tiny()
    save_vae(vae, tmp_path / "candidate", stock=False)
    sets = [
        f"vae.name=path:{tmp_path}/candidate",
        "train.target=vae",
        "train.learning_rate=3e-3",
        "train.weight_decay=0",
    ]
    result = small_run(tmp_path / "straight", sets=sets)
    gates = {g["gate"]: g for g in result["stages"]["full"]["gates"]}
    assert gates.keys() == {"tune/equivariance", "tune/reconstruction"}
    assert gates["tune/reconstruction"]["value"] > 1  # of a random VAE anything learnt shows
    with pytest.raises(SystemExit, match="143"):
        small_run(tmp_path / "stopped", stop_at=13, sets=sets)
    small_run(tmp_path / "stopped", sets=sets)
    name = "diffusion_pytorch_model.safetensors"
    weights = [(tmp_path / part / "vae" / name).read_bytes() for part in ("straight", "stopped")]
    assert weights[0] == weights[1] != (tmp_path / "candidate" / name).read_bytes()
    tuned = load_vae(f"path:{tmp_path}/straight/vae")
    lines = [(tmp_path / part / "steps.jsonl").read_text().splitlines() for part in ("straight", "stopped")]
    rows, resumed = ([json.loads(line) for line in part] for part in lines)  # as a core's steps are recorded
    assert [row["step"] for row in rows] == [row["step"] for row in resumed] == [10, 20]
    assert [row["loss"] for row in rows] == [row["loss"] for row in resumed]
    pixels = load_images(str(tmp_path / "images")).split(True).pixels(32)
    assert tuned.encode(to_images(pixels)).std() == pytest.approx(1, rel=0.2)
    watched = [*sets, "monitors.num_evaluations=2", "monitors.components=stop", "monitors.bands={components: 0.001}"]
    with pytest.raises(SanakitError, match="SK0511.*at VAE: channel .*since step 12; likely cause"):
        small_run(tmp_path / "watched", sets=watched)
    readings = [json.loads(line) for line in (tmp_path / "watched" / "readings.jsonl").read_text().splitlines()]
    assert [(r["name"], r["alarm"], r["threshold"]) for r in readings] == [("components", True, 0.001)]
    page = write_report(tmp_path / "watched", tmp_path / "watched.html").read_text()
    assert "No gate has been measured" in page and "components" in page
    with pytest.raises(SanakitError, match="SK0104.*no parameter to train"):
        small_run(tmp_path / "closed", sets=["train.target=vae"])


def test_the_data_of_a_candidate_need_no_core_of_it(small_world, tmp_path, monkeypatch):
    vae = {"name": "pca-f8c4"}
    swap = engine.prepare(make_config(small_world | {"vae": vae}), tmp_path / "run", lambda *_: None)
    assert swap.base_system.core is not None
    monkeypatch.setattr("sanakit.adapters.base.SanaTransformer2DModel", None)  # no core can be built from here on
    train, held_out = swap.candidate_data
    assert (len(train), len(held_out)) == tuple(map(len, swap.splits)) and held_out.latents.shape[2:] == (4, 4, 4)


def test_training_in_aspect_buckets_keeps_the_images_shapes(small_run, tmp_path, monkeypatch):
    seen = []
    draw = train.draw_batch
    monkeypatch.setattr(train, "draw_batch", lambda *a: (b := draw(*a), seen.append(tuple(b.latents.shape[-2:])))[0])
    for i, path in enumerate(sorted((tmp_path / "images").glob("*.png"))):
        Image.open(path).resize(((32, 32), (48, 24))[i % 2]).save(path)
    sets = ["data.aspect_buckets=true", f"data.cache={tmp_path}/encoded"]
    with pytest.raises(SanakitError, match="SK0404"):
        small_run(tmp_path / "empty", sets=sets)
    arguments = f"encode --vae path:{tmp_path}/vae --text-encoder wordllama --data {tmp_path}/images --mirror --json"
    arguments += f" --out {tmp_path}/encoded --image-size 32 --aspect-buckets --batch-size 4"
    monkeypatch.setattr("sys.argv", ["sanakit", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    small_run(tmp_path / "run", sets=sets)
    assert len(set(seen)) == 2 and (4, 4) in seen
    with pytest.raises(SanakitError, match="SK0104.*caption_temperature.*has no scores"):
        small_run(tmp_path / "other", sets=["data.caption_temperature=1"])


def test_a_base_that_is_changed_in_place_is_another_base(small_world, monkeypatch):
    """Core, its configuration, VAE, flow shift, normalisation and text encoder:
    stages are evaluated again and a checkpoint is refused."""
    folder = Path(small_world["base"].removeprefix("path:"))

    def identities():
        swap = engine.prepare(make_config(small_world), folder.parent / "run", lambda *_: None)
        facts = {k: v for k, v in resume_facts(swap, "finetune").items() if k.startswith("base ")}
        return swap.fingerprint("component"), swap.fingerprint("full"), tuple(facts.items())

    before = identities()
    assert identities() == before and len(before[2]) == 4
    seen = [before]
    for path in (folder / "diffusion_pytorch_model.safetensors", next((folder.parent / "vae").glob("*.safetensors"))):
        tensors = load_file(path)
        name = next(n for n, t in tensors.items() if t.is_floating_point() and t.numel() > 1)
        save_file(tensors | {name: tensors[name] * 1.001}, path, metadata={"format": "pt"})
        seen.append(identities())
    for path, change in (
        (folder / "card.json", {"flow_shift": 2.0}),
        (folder / "config.json", {"norm_eps": 1e-5}),
        (folder.parent / "vae" / "config.json", {"latents_std": [4.0]}),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        seen.append(identities())
    monkeypatch.setattr("sanakit.text_encoders.base.tokenizer_facts", lambda tokenizer: "another")
    seen.append(identities())
    for part in range(3):
        assert len({state[part] for state in seen}) == len(seen)

    alone = {"train": small_world["train"] | {"target": "vae"}, "data": small_world["data"] | {"image_size": 64}}
    swap = engine.prepare(make_config(small_world | alone), folder.parent / "vae-run", lambda *_: None)
    assert swap.fingerprint("full") and not [k for k in resume_facts(swap, "vae") if k.startswith("base ")]


@pytest.fixture
def small_race(small_world, monkeypatch):
    """`run(folder, stop_at=..., by=...)` is stage smoke of two strategies on the small world, of which `align+head`
    diverges at step 3; returns validation.json."""
    draw = train.draw_batch
    small_world |= {
        "smoke": {"held_out": 16, "budget_steps": 8, "rates": [1.0], "strategies": ["align+head", "finetune"]}
    }
    small_world["train"] |= {"strategy": "auto"}

    def spoilt(system, data, options, step, rows=slice(None)):
        batch = draw(system, data, options, step, rows)
        bad = step >= 3 and options.learning_rate == STRATEGIES.get("align+head").learning_rate
        return batch.map(lambda x: x * float("nan") if x.is_floating_point() and bad else x)

    monkeypatch.setattr(train, "draw_batch", spoilt)

    def run(folder, *, stop_at=0, by=signal.SIGTERM):
        def progress(label, done, total):
            if label == "racing finetune" and done == stop_at:
                os.kill(os.getpid(), by)

        with STOP.installed():
            swap = engine.prepare(make_config(small_world), folder, progress)
            return engine.run_stages(swap, ["smoke"], force=True)

    return run


@pytest.mark.parametrize(
    ("by", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_in_stage_smoke_recommends_nothing_and_the_same_command_goes_on(
    small_race, tmp_path, capsys, by, code
):
    straight = small_race(tmp_path / "straight")["strategy"]
    with pytest.raises(SystemExit) as stop:
        small_race(tmp_path / "stopped", stop_at=5, by=by)
    told, folder = capsys.readouterr().err, tmp_path / "stopped"
    assert (
        stop.value.code == code and "the race stopped at step 6 of 8 of finetune; what was measured is kept in" in told
    )
    assert (
        not (folder / "strategy.json").exists() and latest(folder / "race" / "finetune-0.001").name == "step-00000006"
    )
    validation = small_race(folder)
    assert "race: goes on with what was kept: align+head at 0.002 from step 2, finetune at 0.001 from step 6" in (
        told := capsys.readouterr().err
    )
    same = ("name", "losses", "relative_errors", "steps", "predicted_steps", "diverged", "finalist")
    rows = [
        [{key: row[key] for key in same} for row in outcome["candidates"]]
        for outcome in (straight, validation["strategy"])
    ]
    assert rows[0] == rows[1] and not (folder / "race").exists()

    lost, best = validation["strategy"]["candidates"]
    assert validation["strategy"]["recommended"] == "finetune" and best["diverged"] is None and best["finalist"]
    assert "at step 3" in lost["diverged"] and lost["steps"] == [0, 1, 2] and lost["predicted_steps"] is None
    assert "align+head left the race: loss nan" in told
    print_validation(validation, folder, folder / "page.html")
    assert "align+head left the race: loss nan" in capsys.readouterr().out
    page = write_report(folder, tmp_path / "page.html").read_text()
    assert "left the race" in page and "diverged: loss nan" in page
