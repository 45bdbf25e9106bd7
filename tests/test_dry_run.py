"""The dry run: what every stage needs, from configurations alone; refused where it cannot fit, with what would."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sanakit.config import Config, DataSection, make_config
from sanakit.contracts import LatentSpec, LatentStats
from sanakit.core.dit import new_core
from sanakit.errors import SanakitError
from sanakit.needs import Assumed, needs_of, require_fit
from sanakit.needs.fit import assumed_from, parse_size
from sanakit.needs.outline import outline_base, outline_encoder, outline_vae
from sanakit.needs.storage import cached_bytes
from sanakit.placement import host
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.fitting import cut
from sanakit.training.estimate import estimate, fake_core, fake_groups
from sanakit.training.loop import TrainOptions
from sanakit.training.step_trace import _traced_step, attention, step_bytes

ROOT = Path(__file__).parent.parent
SANA = "hub:Efficient-Large-Model/Sana_600M_512px_diffusers"


@pytest.fixture(scope="module")
def memory_table():
    sys.path[:0] = [str(ROOT / "tests")]
    path = ROOT / "experiments" / "benchmarks" / "memory_table.py"
    spec = importlib.util.spec_from_file_location("memory_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_what_was_said_on_the_fake_device(precision, checkpointing, fake_device, memory_table):
    """Activations are half of it here; at Sana's width: experiments/benchmarks/memory_table.py."""
    shapes, latent_shape = memory_table.SMALL | {"num_layers": 2}, (8, 8, 8)
    options = memory_table.options_for(32, precision, checkpointing)
    said = memory_table.predicted_bytes(shapes, options, latent_shape, 24)
    assert said / memory_table.measured_bytes(shapes, options, latent_shape, 24) == pytest.approx(1, abs=0.1)


def test_blocks_that_are_not_traced_are_counted_like_the_third(monkeypatch, memory_table):
    shapes = memory_table.SMALL | {"num_layers": 6}
    for checkpointing in (False, True):
        options = memory_table.options_for(4, "bf16", checkpointing)
        few = memory_table.predicted_bytes(shapes, options, (8, 8, 8), 24)
        with monkeypatch.context() as patch:
            patch.setattr("sanakit.training.step_trace.TRACED", (5, 6))
            assert few == pytest.approx(memory_table.predicted_bytes(shapes, options, (8, 8, 8), 24), rel=1e-3)


@pytest.mark.parametrize(("micro", "checkpointing"), [(1, True), (8, True)])
def test_the_largest_sana_is_counted_from_few_blocks_as_from_eight(micro, checkpointing, memory_table):
    """Which phase of a step needs the most changes between few blocks and many."""
    shapes = memory_table.SANA_1600M | {"num_layers": 8}
    core, mode = fake_core(shapes)
    fake_groups(core, mode, STRATEGIES.get("finetune"))
    options = memory_table.options_for(2 * micro, "bf16", checkpointing)
    options = replace(options, accumulate=2)
    few = step_bytes(core, mode, options, micro, (32, 32, 32), 300)
    with mode, attention(True):
        whole = _traced_step(core, options, micro, (32, 32, 32), 300)
    assert few.early == pytest.approx(whole.early, rel=0.01) and few.late == pytest.approx(whole.late, rel=0.01)
    assert few.activations == pytest.approx(whole.activations, rel=0.01)


def test_the_largest_sana_needs_more_for_more_images(memory_table):
    """Cut as a run cuts it, into two micro-batches and more: 24 GB hold no micro-batch of 32 images at 1024 px."""
    core, mode = fake_core(memory_table.SANA_1600M)
    strategy, options = STRATEGIES.get("finetune"), memory_table.options_for(64, "bf16", True)
    sizes = {"latent_shape": (32, 32, 32), "caption_length": 300, "world_size": 1}
    peaks = [estimate(core, mode, strategy, cut(options, True, n, 1), **sizes).peak for n in (1, 2, 8, 32)]
    assert peaks == sorted(peaks) and peaks[0] > 20e9 and 40e9 < peaks[-1] < 50e9, peaks


def test_low_rank_adapters_are_counted_as_they_are(memory_table):
    shapes = memory_table.SMALL | {"num_layers": 2}
    core, mode = fake_core(shapes)
    lora = STRATEGIES.get("lora")
    real = sum(p.numel() for g in lora.parameter_groups(new_core(shapes, seed=0)) for p in g["params"])
    sizes = {"latent_shape": (8, 8, 8), "caption_length": 24, "world_size": 1}
    options = TrainOptions(max_steps=1, batch_size=4)
    counted = estimate(core, mode, lora, options, **sizes)
    assert counted.trained_parameters == real
    whole = estimate(*fake_core(shapes), STRATEGIES.get("finetune"), options, **sizes)
    assert counted.peak < whole.peak and counted.flops < whole.flops


def test_a_later_micro_batch_finds_the_gradients_of_the_first(memory_table):
    core, mode = fake_core(memory_table.SMALL | {"num_layers": 2})
    fake_groups(core, mode, STRATEGIES.get("finetune"))
    gradients = 4 * sum(p.numel() for p in core.parameters())
    alone, second = (
        step_bytes(core, mode, TrainOptions(max_steps=1, batch_size=8, accumulate=n), 4, (8, 8, 8), 24) for n in (1, 2)
    )
    assert second.early - alone.early == pytest.approx(gradients, rel=0.02)


def test_sana_is_known_without_network_or_weights():
    base = outline_base(SANA)
    assert base.recorded and base.image_size == 512 and base.core["num_layers"] == 28
    assert outline_base(f"{SANA}@abc").core == base.core
    encoder = outline_encoder(base.text_encoder)
    assert sum(p.numel() for p in encoder.model.parameters()) == pytest.approx(2.6e9, rel=0.02)
    assert encoder.spec.max_tokens == 300 and encoder.window > 400


def test_a_vae_on_disk_is_known_by_its_config_alone(tmp_path):
    from sanakit.vaes import VAES

    tiny = VAES.get("kl-f8c4").tiny()
    tiny.model.save_pretrained(tmp_path)
    next(tmp_path.glob("*.safetensors")).unlink()
    outline = outline_vae(f"path:{tmp_path}")
    assert outline.spec == tiny.spec and outline.stored == sum(p.nbytes for p in tiny.model.parameters())
    one, two = (outline.cost(size, next(tiny.model.parameters()).dtype) for size in (64, 128))
    assert two.weights == one.weights == outline.stored and 3.5 < two.each / one.each < 4.5


@pytest.mark.parametrize("name", ["movq-kandinsky-2.2", "kvae-2d-1.0", "ltx-video-vae"])
def test_a_normalisation_that_the_class_does_not_know_is_no_hindrance(name, tmp_path):
    from sanakit.vaes import VAES
    from sanakit.vaes.saving import write_vae

    tiny = VAES.get(name).tiny()
    tiny.set_stats(LatentStats(mean=(0.5,), std=(2.0,)))
    write_vae(tiny, tmp_path)
    assert outline_vae(f"path:{tmp_path}").spec == tiny.spec


def config_of(base="tiny-sana", **train):
    values = {"base": base, "vae": {"name": "dc-f16c16"}, "train": {"batch_size": 8, "max_steps": 400} | train}
    return make_config(values | {"smoke": {"strategies": ["align", "finetune"], "budget_steps": 8}})


def test_every_stage_has_its_phases_and_the_whole_is_their_most():
    needs = needs_of(config_of(), ["component", "smoke", "full"], Assumed(), num_images=1000)
    told = needs.as_dict(0.5)
    assert list(told["stages"]) == ["component", "smoke", "full"]
    trained = next(row for row in told["stages"]["full"]["phases"] if row["name"] == "train finetune")
    (scored,) = [phase for phase in needs.phases if phase.name == "draw images to score"]
    assert scored.stage == "full" and scored.at_once == 64 and scored.flops > 0
    assert trained["steps"] == 400 and trained["hours"] == pytest.approx(400 * 0.5 / 3600)
    raced = next(row for row in told["stages"]["smoke"]["phases"] if row["name"] == "train finetune")
    assert raced["steps"] == 2 * 4 + 8  # two rates for half the budget, the best one to its end
    assert told["device"] == max(row["peak"] for s in told["stages"].values() for row in s["phases"])
    for stage in told["stages"].values():
        for row in stage["phases"]:  # the rule: a VAE or a text encoder shares the device with no training state
            assert row["peak"] == sum(row["device"].values())
            assert not {"vae", "text encoder"} & set(row["device"]) or "core" not in row["device"]
    # 6 bytes a number: the mean and its deviation, both views; dc-f16c16 at 96 px is 16 x 6 x 6
    assert told["disk"]["latents of the candidate"] == 1000 * 2 * 6 * 16 * 6 * 6
    assert needs.as_dict()["stages"]["full"]["hours"] is None


def phases_of(needs, *seconds):
    return {row["name"]: row for stage in needs.as_dict(*seconds)["stages"].values() for row in stage["phases"]}


def test_hours_of_reading_encoding_and_evaluation_on_so_many_ranks():
    """Images at a rate of their own, everything else at the operations a second of a training step."""
    stages = ["component", "smoke", "full"]
    config = config_of(micro_batch=2)
    alone, four = (needs_of(config, stages, Assumed(), num_images=9000, world_size=n) for n in (1, 4))
    # a quarter of the images lies on each rank; of a step at so many ranks the seconds are given as they are there
    one, shared = phases_of(alone, 0.5, 0.01), phases_of(four, 0.5, 0.01)
    assert one["screen images"]["hours"] == pytest.approx(4000 * 0.01 / 3600)
    assert shared["screen images"]["hours"] == pytest.approx(4000 * 0.01 / 3600 / 4)
    encode = one["encode with the candidate's VAE"]
    assert encode["decoded"] == 9000  # both views of an image are of one file
    by_device = encode["flops"] / alone.step_flops * 0.5 / 3600
    assert encode["hours"] == pytest.approx(max(by_device, 9000 * 0.01 / 3600))
    slow = phases_of(alone, 0.5, 10.0)["encode with the candidate's VAE"]
    assert slow["hours"] == pytest.approx(9000 * 10 / 3600)  # decoding holds the device up
    for name in ("evaluate on held-out images", "train finetune"):
        assert one[name]["hours"] == pytest.approx(shared[name]["hours"], rel=1e-3) and one[name]["hours"] > 0
    # every rank solves the closed forms by itself
    apart = shared["align in closed form"]["hours"] / one["align in closed form"]["hours"]
    assert apart == pytest.approx(4 * alone.step_flops / four.step_flops)
    unknown = phases_of(alone, None, 0.01)
    assert unknown["screen images"]["hours"] and unknown["train finetune"]["hours"] is None
    assert alone.as_dict(0.5)["stages"]["component"]["hours"] is None  # of its images nothing is known


def test_what_is_encoded_live_lies_beside_the_core_and_is_paid_at_every_step():
    values = config_of().model_dump(mode="json") | {"data": {"latents": "live", "embeddings": "live"}}
    ahead = phases_of(needs_of(config_of(), ["full"], Assumed(), num_images=100), 0.5, 0.01)
    live = phases_of(needs_of(make_config(values), ["full"], Assumed(), num_images=100), 0.5, 0.01)
    assert not any(name.startswith(("encode with", "embed captions")) for name in live)
    trained = live["train finetune"]
    assert trained["decoded"] == 400 * 8 and ahead["train finetune"]["decoded"] == 0
    assert {"vae", "text encoder"} <= set(trained["device"]) and trained["flops"] > ahead["train finetune"]["flops"]


def test_seconds_of_a_race_are_shared_by_other_ranks_and_images_are_tried(tmp_path):
    from sanakit.cli.dry_run import measured_seconds, tried_seconds

    assert measured_seconds(tmp_path, "finetune", 1) == (None, "")
    raced = {"candidates": [{"name": "finetune", "seconds_per_step": 3.0}]}
    (tmp_path / "strategy.json").write_text(json.dumps(raced))
    (tmp_path / "provenance.json").write_text(json.dumps({"ranks": 2}))
    assert measured_seconds(tmp_path, "finetune", 2) == (3.0, "measured")
    seconds, told = measured_seconds(tmp_path, "finetune", 8)
    assert seconds == 0.75 and told == "measured on 2 rank(s), 8 taken to share it evenly"
    for number in range(8):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("an image")
    values = config_of().model_dump() | {"data": {"image_size": 96, "source": str(tmp_path)}}
    assert 0 < tried_seconds(make_config(values)) < 5
    (tmp_path / "8.png").write_bytes(b"no image")
    (tmp_path / "8.txt").write_text("no image")
    with pytest.raises(SanakitError, match="SK0402"):
        tried_seconds(make_config(values))
    values["data"]["max_set_aside"] = 0.5  # what the run takes, the dry run takes
    config = make_config(values)
    assert tried_seconds(config) > 0
    assert needs_of(config, ["component"], Assumed()).num_images == 8


def test_what_is_encoded_live_takes_no_disk_and_no_host_memory():
    vae = SimpleNamespace(spec=LatentSpec(latent_channels=16, spatial_compression_ratio=16))
    encoder = SimpleNamespace(spec=SimpleNamespace(max_tokens=64, embed_dim=384))
    ahead = {"latents of the candidate": 100 * 2 * 6 * 16 * 6 * 6, "embeddings of the base": 100 * 64 * (2 * 384 + 1)}

    def counted(**data):
        sides = {"vaes": {"candidate": vae}, "encoders": {"base": encoder}}
        return cached_bytes(SimpleNamespace(size=96, config=Config(data=DataSection(**data)), **sides), 100)

    assert counted() == ahead and counted(latents="live", embeddings="live") == {}
    assert counted(latents="live") == {"embeddings of the base": ahead["embeddings of the base"]}


def test_what_cannot_fit_is_refused_with_what_would():
    config = config_of(precision="fp32", gradient_checkpointing=False, micro_batch=8)

    def again(other, room):
        return needs_of(other, ["full"], Assumed(memory=room), num_images=100)

    whole = again(config, 10**12)
    room = int(0.9 * whole.peak / 0.85)
    require_fit(whole, Assumed(memory=10**12), lambda other: again(other, 10**12))
    with pytest.raises(SanakitError) as refused:
        require_fit(again(config, room), Assumed(memory=room), lambda other: again(other, room))
    assert refused.value.code == "SK0907"
    assert "train finetune" in refused.value.found and "train.gradient_checkpointing=true" in str(refused.value.fix)


def test_the_device_is_the_one_that_is_named_or_here(fake_device):
    config = config_of()
    named = assumed_from(config, host(), parse_size("24GB"))
    assert (named.memory, named.half, named.fused_attention) == (24 * 10**9, True, True)
    assert assumed_from(config, host(), None) == Assumed(half=False, dtypes=named.dtypes)
    from sanakit.placement import choose

    with fake_device.present(memory=fake_device.read()["allocated"] + 10**9):
        here = assumed_from(config, choose("auto"), None)
        assert here.memory and not here.fused_attention
    assert parse_size("80 GiB") == 80 * 2**30
    with pytest.raises(SanakitError, match=r"SK0104.*no size"):
        parse_size("much")


def test_the_command_prints_one_document_and_ends_with_3_where_nothing_fits(capsys, monkeypatch):
    from sanakit.cli import main

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["sanakit", "swap-vae", "--candidate", "dc-f16c16", *options])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr()

    small = [
        "--set",
        "smoke.strategies=[align]",
        "--set",
        "train.micro_batch=1",
        "--num-images",
        "100",
        "--stages",
        "smoke",
    ]
    timed = ["--seconds-per-step", "0.5", "--seconds-per-image", "0.01"]
    code, said = run("--dry-run", "--json", "--device-memory", "24GB", *small, *timed)
    document = json.loads(said.out)
    assert code == 0 and document["needs"]["fits"] and document["needs"]["device_room"] == int(0.85 * 24e9)
    assert document["needs"]["seconds_per_image_from"] == "given" and document["needs"]["stages"]["smoke"]["hours"] > 0
    code, said = run("--dry-run", "--device-memory", "1MB", *small)
    assert code == 3 and "SK0907" in said.err and "align in closed form" in said.out
    assert "give --seconds-per-image to know" in said.out
    code, said = run("--device-memory", "24GB")
    assert code == 2 and "belongs to --dry-run" in said.err
