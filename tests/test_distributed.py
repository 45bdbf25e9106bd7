"""Two ranks over gloo: the same images, the same course and the same checkpoints as one. Run by torchrun it is a rank.

torchrun --standalone --nproc_per_node=2 tests/test_distributed.py OUT
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanakit.assembly import LatentDiffusion
from sanakit.checks.measure_training import sample_evidence
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data import cache as cache_module
from sanakit.data import load_images, screen, store
from sanakit.data.dataset import LatentDataset
from sanakit.distributed import STOP, rank, shard
from sanakit.errors import SanakitError
from sanakit.evaluation import blind, drawing
from sanakit.evaluation import held_out as held_out_module
from sanakit.evaluation.held_out import held_out
from sanakit.flow import EVAL_SIGMAS
from sanakit.ranks.sharing import ranks_share
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.encoder_training import encoder_group, trainable_copy
from sanakit.swap.quality import Target
from sanakit.swap.race import RaceSetup, RaceStopped, enter, race
from sanakit.swap.race_store import RaceStore
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.training import loop as train
from sanakit.training.checkpoint import latest, load_checkpoint, read_manifest, save_checkpoint
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.training.optimizer_state import optimizer_slots
from sanakit.training.optimizers import OPTIMIZERS
from sanakit.training.state import _refuse_sharded
from sanakit.training.watch import Watch
from sanakit.vaes import VAES

STEPS, MORE = 5, 3
PROMPTS = ("own", "null", "shuffled")
CORE = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 4,
    "patch_size": 1,
}


def options(**changes):
    return TrainOptions(max_steps=50, batch_size=8, warmup=1, ema_decay=0.9, learning_rate=1e-3, **changes)


def system_and_data():
    torch.manual_seed(0)
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    core = new_core(CORE, seed=0)
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    system = LatentDiffusion(vae=VAES.get("pca-f8c4").tiny(), text_encoder=encoder, core=core, image_size=32)
    generator = torch.Generator().manual_seed(0)
    data = LatentDataset(
        names=[str(i) for i in range(36)],  # an epoch of four and a half steps
        latents=torch.randn(36, 2, 4, 4, 4, generator=generator),
        captions=encoder.encode([" ".join("abcdefgh"[(i + k) % 8] for k in range(2 + i % 3)) for i in range(36)]),
        first=torch.arange(36),
        count=torch.ones(36, dtype=torch.long),
    )
    return system, data


def groups_of(core):
    return [{"params": p, "scale": 1.0} for p in parameters_by_group(core).values()]


def prepared(chosen, adapter_class):
    """System, data and state; adapter_class: the text encoder is trained too."""
    system, data = system_and_data()
    groups, encoder = groups_of(system.core), None
    if adapter_class:
        encoder = system.text_encoder = trainable_copy(system.text_encoder, gradient_checkpointing=True)
        groups.append(encoder_group(encoder, 1e-4, 1e-3))
        data = replace(data, texts=[" ".join("abcdefgh"[(i + k) % 8] for k in range(2 + i % 3)) for i in range(36)])
    return system, data, new_state(system.core, groups, chosen, encoder)


def run(folder, steps, chosen, resume=None, adapter_class=False):
    """Train and save; the rows of every step that this rank saw, and the losses."""
    system, data, state = prepared(chosen, adapter_class)
    assert (chosen.parallel == "fsdp") == all(hasattr(p, "full_tensor") for p in system.core.parameters())
    if resume:
        load_checkpoint(resume, state.module, state, {})
    trace, losses = [], []

    def after_step(step, loss, batch, predicted):
        trace.append(batch.indices.tolist())
        losses.append(loss)

    fit(system, data, chosen, state, until=state.step + steps, after_step=after_step)
    save_checkpoint(folder, state.module, state, {})
    (folder / f"rank-{rank()}.json").write_text(json.dumps({"trace": trace, "losses": losses}))
    return system.core


def tensors(folder):
    """What a checkpoint holds, read on one rank, who wrote it."""
    _, _, state = prepared(options(), "interface layer" in folder.name)
    load_checkpoint(latest(folder), state.module, state, {})
    parts = {"core": state.module.state_dict(), "ema": state.ema}
    parts |= {f"optimizer/{name}": slots for name, slots in optimizer_slots(state.module, state).items()}
    return {f"{part}/{key}": value for part, entries in parts.items() for key, value in entries.items()}


def facts(folder, number=0):
    return json.loads((folder / f"rank-{number}.json").read_text())


def assert_same_course(one, two):
    assert facts(two)["losses"] == pytest.approx(facts(one)["losses"], rel=1e-5)
    a, b = tensors(one), tensors(two)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-4, atol=2e-5), (key, (a[key] - b[key]).abs().max())


def torchrun(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        __file__,
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """ddp, accumulated and fsdp on two ranks; one on one rank; resumes across the number of ranks."""
    out = tmp_path_factory.mktemp("ranks")
    for name in (
        "one",
        "one-more",
        "ddp",
        "accumulated",
        "fsdp",
        "fsdp-more",
        "fsdp-on-one",
        "interface layer",
        "fsdp-interface layer",
        "one-interface layer",
    ):
        (out / name).mkdir()
    write_images(out / "images")
    result = torchrun(str(out))
    assert result.returncode == 0, result.stderr[-3000:]
    run(out / "one", STEPS, options())
    run(out / "one-interface layer", STEPS, options(live_captions=True), adapter_class=True)
    run(out / "one-more", MORE, options(), resume=latest(out / "one"))
    return out


@pytest.mark.distributed
def test_what_ranks_evaluate_draw_encode_and_screen_together_is_one_ranks_bit_for_bit(folders):
    alone = evaluated(folders, "alone")
    both = [torch.load(folders / f"shared-{number}.pt", weights_only=False) for number in (0, 1)]
    for record in both:
        for name, value in alone.items():
            if name != "opened":
                assert torch.equal(record[name], value) if isinstance(value, torch.Tensor) else record[name] == value
        assert torch.equal(record["sharded"], alone["own"])  # FSDP2 gathers whole blocks
    assert alone["opened"] == 6 and [record["opened"] for record in both] == [3, 3]
    assert len(alone["shards"]) == 3  # two in turns, the last one by both ranks together
    assert len(alone["ledger"]) == 1 and "3.png" in alone["ledger"][0]["name"]


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "accumulated", "fsdp"])
def test_two_ranks_take_the_course_of_one_with_the_same_global_batch(folders, name):
    assert_same_course(folders / "one", folders / name)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["interface layer", "fsdp-interface layer"])
def test_a_joint_text_encoder_takes_the_course_of_one_rank(folders, name):
    """Replicated beside a replicated or a sharded core; the checkpoint holds both and is read on one rank."""
    assert_same_course(folders / "one-interface layer", folders / name)


def test_a_sharded_core_in_bf16_reads_timesteps_in_fp32(tmp_path):
    """bf16 has eight bits: 873.2 would be read as 872. Everything else is cast, or its products would not fit."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        system, _ = system_and_data()
        shard(system.core, groups_of(system.core), "bf16", torch.device("cpu"))
        seen = []
        system.core.time_embed.emb.time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        system.core.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        prompt = system.text_encoder.encode(["a", "b"])
        system.velocity(torch.randn(2, 4, 4, 4), torch.tensor([0.8732, 0.5]), prompt).float().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    latents, timesteps = sorted(seen, key=lambda x: -x.ndim)
    assert latents.dtype == torch.bfloat16 and timesteps.dtype == torch.float32
    assert timesteps[0].item() == pytest.approx(873.2, abs=1e-3)


@pytest.mark.parametrize("name", [name for name, record in OPTIMIZERS.items() if record.unsharded])
def test_an_optimiser_that_takes_no_shards_is_refused_with_the_reason(name, tmp_path):
    """It cannot take a step on FSDP2's parameters: where that changes, the refusal has to go."""
    record = OPTIMIZERS[name]
    pytest.importorskip(record.package)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        system, _ = system_and_data()
        optimizer = record.make(
            shard(system.core, groups_of(system.core), "fp32", torch.device("cpu")), lr=1e-3, weight_decay=0.0
        )
        for parameter in system.core.parameters():
            parameter.grad = torch.ones_like(parameter)
        with pytest.raises((RuntimeError, NotImplementedError)):
            optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(SanakitError, match=f"SK0104.*{name} does not go with train.parallel fsdp: {record.unsharded}"):
        _refuse_sharded(options(optimizer=name), record)


@pytest.mark.distributed
def test_a_signal_to_one_rank_ends_the_race_on_all_and_it_goes_on_on_all(folders):
    for number in (0, 1):
        straight, stopped, again = json.loads((folders / f"race-{number}.json").read_text())
        assert stopped == [signal.SIGTERM, [1, 2, 3, 4, 5, 6]] and again == [straight[0], [7, 8]]
        assert straight[1] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.distributed
def test_a_race_on_two_ranks_is_that_of_one(folders):
    """Each arm trains data parallel on the same global batches, and its evaluations are shared."""
    alone, _ = race_of_one_arm(None)
    for number in (0, 1):
        (errors, _), *_ = json.loads((folders / f"race-{number}.json").read_text())
        assert np.asarray(errors) == pytest.approx(np.asarray(alone), rel=1e-4)


@pytest.mark.distributed
def test_a_rank_that_hangs_is_named_and_the_run_ends(tmp_path):
    result = torchrun(str(tmp_path), "hang")
    assert result.returncode != 0
    assert "SK0509" in result.stderr and "rank 1 on" in result.stderr and "it draws its batch" in result.stderr


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_ranks_share_every_batch_without_loss_or_repetition(folders, name):
    parts = [facts(folders / name, number)["trace"] for number in (0, 1)]
    together = [a + b for a, b in zip(*parts, strict=True)]
    assert together == facts(folders / "one")["trace"]
    assert sorted([row for batch in together for row in batch][:36]) == list(range(36))


@pytest.mark.distributed
def test_a_sharded_checkpoint_is_written_by_its_ranks_and_goes_on_with_one(folders):
    parts = sorted(p.name for p in (latest(folders / "fsdp") / "sharded").iterdir())
    assert len(parts) == 2 and all(p.endswith(".safetensors") for p in parts)
    assert sum(name.startswith("sharded/") for name in read_manifest(latest(folders / "fsdp"))["hashes"]) == 2
    run(folders / "fsdp-on-one", MORE, options(), resume=latest(folders / "fsdp"))
    assert_same_course(folders / "one-more", folders / "fsdp-on-one")
    assert_same_course(folders / "one-more", folders / "fsdp-more")


def write_images(folder):
    """Six images with captions, the fourth cut short."""
    folder.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"image {number}")
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])


def evaluated(folder, cache):
    """What is shared, of one system: losses, samples, embeddings, screening; in small chunks and three shards."""
    system, data = system_and_data()
    row_bytes = system.text_encoder.spec.max_tokens * (2 * system.text_encoder.spec.embed_dim + 1)
    changes = [(module, "CHUNK", 8) for module in (held_out_module, blind)]
    changes += [(drawing, "BATCH", 4), (cache_module, "PROMPT_BATCH", 2), (store, "SHARD_BYTES", 4 * row_bytes)]
    kept = [(module, name, getattr(module, name)) for module, name, _ in changes]
    os.environ["SANAKIT_CACHE"] = str(folder / f"cache-{cache}")
    opened, whole = [], screen.open_image
    screen.open_image = lambda data, size: (opened.append(size), whole(data, size))[1]
    try:
        for module, name, value in changes:
            setattr(module, name, value)
        captions = [f"caption {number} of a few" for number in range(11)]
        record = {f"{prompt}": held_out(system, data, count=30, prompt=prompt).losses for prompt in PROMPTS}
        record["blind"] = blind.blind_held_out(system, data, count=30).losses
        record["drawn"] = drawing.draw(system, captions[:5], num_seeds=2, num_steps=2)
        spread = sample_evidence(system, data, captions[:6], 0, at_once=2)
        record["spread"] = torch.from_numpy(spread["sample_spread"])
        embedded = cache_module.embeddings(system.text_encoder, captions)
        record |= {"embeds": embedded.embeds, "mask": embedded.mask}
        entry = next((folder / f"cache-{cache}").glob("embeddings-*/manifest.json"))
        record["shards"] = [[s["name"], s["sha256"]] for s in json.loads(entry.read_text())["shards"]]
        images = load_images(str(folder / "images"), max_set_aside=0.5)
        record |= {"ledger": images.ledger, "names": list(images.names), "opened": len(opened)}
        return record
    finally:
        screen.open_image = whole
        for module, name, value in kept:
            setattr(module, name, value)


def share(folder):
    """The same on two ranks, and the losses of a sharded core."""
    with ranks_share():
        record = evaluated(folder, "together")
        system, data, _ = prepared(options(parallel="fsdp"), adapter_class=False)
        held_out_module.CHUNK = 8
        record["sharded"] = held_out(system, data, count=30).losses
        held_out_module.CHUNK = 64
    torch.save(record, folder / f"shared-{rank()}.pt")


def race_of_one_arm(store, stop_at=0):
    """Its curve and steps, or the signal that stopped it and the steps until then."""
    losses, count = np.full(len(EVAL_SIGMAS), 1 / len(EVAL_SIGMAS)), 8
    target = Target(
        measure="loss", weights=losses, floor=np.zeros(count), unit=1.0, base=np.ones(count), tolerance=1e-9
    )
    system, data = system_and_data()
    setup = RaceSetup(data=data, test=data, target=target, count=count, options=options(), store=store)
    steps = []

    def on_step(arm, step):
        steps.append(step)
        if step == stop_at and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    arm = enter(setup, STRATEGIES.get("align+head"), system, budget=8)
    try:
        race(setup, [arm], budget=8, on_step=on_step)
    except RaceStopped as stop:
        return [stop.number, steps]
    return [arm.errors.tolist(), steps]


def race_on_ranks(folder):
    """A race straight, stopped at step 6 by a signal that rank 1 alone receives, and going on."""
    store = RaceStore(folder=folder / "race", facts={})
    with ranks_share():
        with STOP.installed():
            curves = [race_of_one_arm(None), race_of_one_arm(store, stop_at=5)]
        curves.append(race_of_one_arm(store))
    (folder / f"race-{rank()}.json").write_text(json.dumps(curves))


def hang(folder):
    """Rank 1 never gets its second batch."""
    system, data, state = prepared(options(), adapter_class=False)
    draw = train.draw_batch

    def stuck(system, data, options, step, rows):
        if rank() == 1 and step == 1:
            time.sleep(3600)
        return draw(system, data, options, step, rows)

    train.draw_batch = stuck
    fit(system, data, options(), state, until=3, watch=Watch(folder / ".ranks", 5))


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    if sys.argv[2:] == ["hang"]:
        hang(base)
    share(base)
    race_on_ranks(base)
    run(base / "ddp", STEPS, options())
    run(base / "accumulated", STEPS, options(accumulate=2))
    run(base / "interface layer", STEPS, options(live_captions=True), adapter_class=True)
    run(base / "fsdp-interface layer", STEPS, options(parallel="fsdp", live_captions=True), adapter_class=True)
    run(base / "fsdp", STEPS, options(parallel="fsdp"))
    run(base / "fsdp-more", MORE, options(parallel="fsdp"), resume=latest(base / "fsdp"))
    torch.distributed.destroy_process_group()
