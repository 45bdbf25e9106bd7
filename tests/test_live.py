"""Encoded when a batch asks for it, or ahead: the same numbers, the same stand-ins for images that fail, bounded
memory."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy, deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from sanakit.cli import data as data_command
from sanakit.config import make_config
from sanakit.data import load_images, screen
from sanakit.data.ahead import bytes_ahead, choose_ahead
from sanakit.data.cache import embedding_job, embeddings, to_images
from sanakit.data.dataset import build_dataset, first_images
from sanakit.data.failures import Failures
from sanakit.data.order import batch_indices
from sanakit.data.packed import PackedRows, join, pack
from sanakit.distributed import DATA_STOP, STOP
from sanakit.errors import SanakitError
from sanakit.held import Held
from sanakit.placement import Placement, host
from sanakit.swap.tuning import TrainingImages
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.base import as_kept
from sanakit.training.batches import TrainOptions, draw_batch
from sanakit.training.loop import fit, new_state
from sanakit.vaes import VAES

OPTIONS = TrainOptions(max_steps=6, batch_size=4, warmup=0, workers=0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


def folder_of(path, count=12):
    path.mkdir()
    for i in range(count):
        buffer = io.BytesIO()
        Image.radial_gradient("L").resize((40, 32)).point(lambda v, i=i: (v + 20 * i) % 256).save(buffer, "PNG")
        (path / f"{i:02d}.png").write_bytes(buffer.getvalue())
        (path / f"{i:02d}.txt").write_text(f"image {'abcdefghijkl'[i % 12]}\nanother {i}")
    return path


def spoil(folder, *numbers):
    for number in numbers:
        (folder / f"{number:02d}.png").write_bytes(b"spoilt after it was indexed")


def built(system, images, **options):
    return build_dataset(system.vae, system.text_encoder, images, 32, mirror=True, **options)


def test_live_and_ahead_give_the_same_batches(tiny_system, tmp_path):
    images = load_images(str(folder_of(tmp_path / "a")))
    ahead = built(tiny_system, images)
    live = built(tiny_system, images, live_latents=True, live_embeddings=True)
    assert live.latents.shape == ahead.latents.shape and list(live.texts) == list(ahead.texts)
    rows, view = torch.tensor([3, 0, 3]), torch.tensor([1, 0, 0])
    for key in ((rows, view), (rows, 0), (slice(2, 5), 0), rows, (slice(4), slice(1, 2)), (5, 1)):
        assert torch.allclose(live.latents[key], ahead.latents[key], atol=1e-5), key
        assert live.latents[key].shape == ahead.latents[key].shape, key
    for step in range(3):
        own, theirs = (draw_batch(tiny_system, data, OPTIONS, step) for data in (live, ahead))
        assert torch.allclose(own.latents, theirs.latents, atol=1e-5) and torch.equal(own.noise, theirs.noise)
        assert torch.allclose(own.prompt.embeds, theirs.prompt.embeds, atol=2e-3)
        assert torch.equal(own.prompt.mask, theirs.prompt.mask)
    few = first_images(live, 3)
    assert len(few) == 3 and torch.allclose(few.latents[:, 0], ahead.latents[:3, 0], atol=1e-5)
    assert torch.allclose(few.captions[:].embeds.float(), ahead.captions[:6].embeds.float(), atol=2e-3)


def test_streamed_batches_are_those_of_any_number_of_workers_and_ranks(tiny_system, tmp_path):
    data = built(tiny_system, load_images(str(folder_of(tmp_path / "a"))), live_latents=True, live_embeddings=True)
    seen = []
    for workers in (0, 4):
        options, batches = replace(OPTIONS, workers=workers), []
        core = deepcopy(tiny_system.core)
        system = copy(tiny_system)
        system.core = core
        state = new_state(core, [{"params": list(core.parameters()), "scale": 1.0, "name": "core"}], options)
        fit(system, data, options, state, after_step=lambda step, loss, batch, predicted: batches.append(batch))
        seen.append(batches)
    for step, (alone, four) in enumerate(zip(*seen, strict=True)):
        halves = [draw_batch(tiny_system, data, OPTIONS, step, rows) for rows in (slice(2), slice(2, 4))]
        for name in ("indices", "noise", "sigmas"):
            ranks = torch.cat([getattr(half, name) for half in halves])
            assert torch.equal(getattr(alone, name), getattr(four, name)) and torch.equal(getattr(alone, name), ranks)
        assert torch.equal(alone.latents, four.latents) and torch.equal(alone.prompt.embeds, four.prompt.embeds)
        assert torch.allclose(alone.latents, torch.cat([half.latents for half in halves]), atol=1e-5)


def test_a_tokenizer_is_called_by_one_thread_at_a_time():
    """A fast one keeps padding and truncation of a call in itself: two calls at once end in an error."""
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    own, free, met = encoder.tokenizer, threading.Lock(), []

    def watched(*args, **options):
        alone = free.acquire(blocking=False)
        met.append(alone)
        time.sleep(0.002)
        result = own(*args, **options)
        if alone:
            free.release()
        return result

    alone = encoder.encode(["a red apple"] * 3)
    encoder.tokenizer = watched
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: encoder.encode(["a red apple"] * 3), range(8)))
    assert len(met) == 16 and all(met)
    assert all(torch.equal(one.embeds, alone.embeds) for one in read)


@pytest.mark.parametrize("value, told", [(7e4, "up to 70,000; torch.float16"), (float("nan"), "that are not finite")])
def test_embeddings_that_do_not_fit_are_refused_with_the_reason(value, told):
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    assert as_kept(torch.ones(2, 3), encoder).dtype == torch.float16
    with pytest.raises(SanakitError, match=told) as refused:
        as_kept(torch.tensor([1.0, value]), encoder)
    assert refused.value.code == "SK0301" and ("layer=mean" in refused.value.fix) == (value == 7e4)


def test_inner_layers_of_a_decoder_are_kept_in_a_precision_that_holds_them():
    """Gemma-3-270M's tenth hidden state goes to 75,000."""
    torch.manual_seed(0)
    encoder = TEXT_ENCODERS.get("gemma-3-270m").tiny()
    last = embeddings(encoder, ["a red apple", "a dog"])
    encoder.model.embed_tokens.weight.data.mul_(1e6)
    encoder.set_spec(replace(encoder.spec, layer=1))
    inner = embeddings(encoder, ["a red apple", "a dog"])
    exact = encoder.encode(["a red apple", "a dog"])
    assert last.embeds.dtype == torch.float16 and inner.embeds.dtype == torch.bfloat16
    assert exact.embeds.abs().max() > 65504 and torch.allclose(inner.embeds.float(), exact.embeds, rtol=2**-8)
    bert = TEXT_ENCODERS.get("minilm").tiny()
    bert.set_spec(replace(bert.spec, layer=1))
    assert bert.kept_in == torch.float16  # every layer of it ends in a norm


def test_live_draws_from_the_posterior_in_buckets(tmp_path):
    from sanakit.data.buckets import bucket_sizes

    images = load_images(str(folder_of(tmp_path / "a")))
    torch.manual_seed(0)
    vae, encoder = VAES.get("kl-f8c4").tiny(), TEXT_ENCODERS.get("minilm").tiny()
    options = {"mirror": True, "sample_posterior": True, "buckets": bucket_sizes(32, 8, 2.0), "at_least": 4}
    ahead = build_dataset(vae, encoder, images, 32, **options)
    live = build_dataset(vae, encoder, images, 32, live_latents=True, **options)
    rows = ahead.members[0][:3]
    one = torch.ones(3, dtype=torch.long)
    drawn = [data.draw(rows, one, torch.Generator(), rows) for data in (live, ahead)]
    assert torch.allclose(*drawn, atol=1e-2) and not torch.equal(drawn[0], live.latents[rows, one])


def test_the_next_image_that_can_be_read_stands_in_with_its_captions_live_and_ahead(tiny_system, tmp_path):
    folder = folder_of(tmp_path / "a")
    images = load_images(str(folder))
    sound = built(tiny_system, images, live_latents=True)
    expected = sound.latents[torch.arange(12), 0]
    spoil(folder, 3, 4, 11)
    live = built(tiny_system, images, live_latents=True, live_embeddings=True, max_set_aside=0.5)
    ahead = built(tiny_system, images, max_set_aside=0.5)
    rows = torch.tensor([11, 4, 3, 2])  # any order, as a resume on other ranks reads them
    for data in (live, ahead):
        assert torch.allclose(data.latents[rows, 0], expected[[0, 5, 5, 2]], atol=1e-5)
        assert data.caption_rows(rows, torch.zeros(4, dtype=torch.long)).tolist() == [0, 10, 10, 4]
        told = {row["name"]: row["reason"] for row in data.failures.take_new()}
        assert sorted(told) == ["03.png", "04.png", "11.png"] and "changed since it was indexed" in told["03.png"]
        assert data.failures.take_new() == []
    with pytest.raises(SanakitError, match=r"SK0402.*3 images could not be read of 12"):
        built(tiny_system, images)
    again = built(tiny_system, images, max_set_aside=0.5)  # from the cache, spot check passed
    assert torch.equal(again.latents[rows, 0], ahead.latents[rows, 0]) and len(again.failures.reasons) == 3


def test_too_many_failures_stop_the_loop_at_a_step_border(tiny_system, tmp_path):
    folder = folder_of(tmp_path / "a")
    images = load_images(str(folder))
    live = built(tiny_system, images, live_latents=True, max_set_aside=0.01)
    spoil(folder, *range(1, 8))
    groups = [{"params": list(tiny_system.core.parameters()), "scale": 1.0, "name": "core"}]
    state = new_state(tiny_system.core, groups, OPTIONS)
    try:
        fit(tiny_system, live, OPTIONS, state)
    finally:
        STOP.number = 0
    assert state.stopped == DATA_STOP and 0 < state.step < OPTIONS.max_steps
    assert "SK0402" in str(live.failures.refusal()) and "saved" in str(live.failures.refusal("saved"))
    spoil(folder, *range(12))
    with pytest.raises(SanakitError, match="SK0402"):
        built(tiny_system, images, live_latents=True).latents[torch.arange(2), 0]


def test_training_a_vae_alone_reads_the_next_image_too(tmp_path):
    folder = folder_of(tmp_path / "a")
    images = load_images(str(folder))
    config = make_config({"data": {"image_size": 32, "max_set_aside": 0.5}})
    sound = TrainingImages(SimpleNamespace(splits=(images,), config=config), OPTIONS).draw(0)
    first = int(batch_indices(12, 4, 0, OPTIONS.seed)[0])
    spoil(folder, int(images.names[first][:2]))
    stream = TrainingImages(SimpleNamespace(splits=(images,), config=config), OPTIONS)
    drawn = stream.draw(0)
    assert torch.equal(drawn[1:], sound[1:]) and not torch.equal(drawn[0], sound[0])
    assert torch.equal(drawn[0], to_images(images.subset([(first + 1) % 12]).pixels(32))[0])
    assert [row["name"] for row in stream.failures.take_new()] == [images.names[first]]
    spoil(folder, *range(12))
    with pytest.raises(SanakitError, match="SK0402"):
        stream.draw(1)


def test_live_encoders_compute_on_the_device_and_move_once_a_run(fake_device, tiny_system, tmp_path, monkeypatch):
    placement = tiny_system.placement = Placement(torch.device("fakegpu", 0))
    images = load_images(str(folder_of(tmp_path / "a")))
    on_host = draw_batch(tiny_system, built(tiny_system, images), OPTIONS, 0)
    data = built(tiny_system, images, live_latents=True, live_embeddings=True, placement=placement)
    moved, devices = [], set()
    move, posterior, encode = Held.move, tiny_system.vae._posterior, tiny_system.text_encoder._encode

    def counted(self, *args):
        moved.append(self.module)
        move(self, *args)

    def seen_posterior(pixels):
        devices.add(("vae", pixels.device.type))
        return posterior(pixels)

    def seen_encode(prompts):
        devices.add(("text", next(tiny_system.text_encoder.model.parameters()).device.type))
        return encode(prompts)

    monkeypatch.setattr(Held, "move", counted)
    monkeypatch.setattr(tiny_system.vae, "_posterior", seen_posterior)
    monkeypatch.setattr(tiny_system.text_encoder, "_encode", seen_encode)
    drawn = draw_batch(tiny_system, data, OPTIONS, 0)
    assert drawn.latents.device.type == drawn.prompt.embeds.device.type == "cpu"
    assert torch.allclose(drawn.latents, on_host.latents, atol=1e-3)
    assert torch.allclose(drawn.prompt.embeds, on_host.prompt.embeds, atol=2e-2)
    assert devices == {("vae", "fakegpu"), ("text", "fakegpu")}
    moved.clear()
    options = replace(OPTIONS, workers=2)
    groups = [{"params": list(tiny_system.core.parameters()), "scale": 1.0, "name": "core"}]
    state = new_state(tiny_system.core, groups, options, placement=placement)
    fit(tiny_system, data, options, state)
    assert state.step == 6 and devices == {("vae", "fakegpu"), ("text", "fakegpu")}
    assert [moved.count(part) for part in (tiny_system.vae, tiny_system.text_encoder)] == [1, 1]
    assert next(tiny_system.text_encoder.parameters()).device.type == "cpu"


def test_what_chance_explains_ends_no_run():
    failures = Failures([str(i) for i in range(1000)], 0.05)
    failures.count_drawn(100)
    for row in range(14):
        failures.note(row, "x")
    assert not failures.too_many  # 5 expected, 3 standard errors and 3 more
    failures.note(15, "x")
    assert failures.too_many


def test_padding_is_not_kept_and_what_an_earlier_version_kept_is_read(tmp_path, monkeypatch):
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    prompts = ["a b", "c", "d e f g", "", "a b"]
    dense = encoder.encode(prompts)
    dense = replace(dense, embeds=as_kept(dense.embeds, encoder))
    parts = [pack(dense[:2]), pack(dense[2:])]
    rows = PackedRows({name: [part[name] for part in parts] for name in parts[0]}, torch.tensor([4, 0, 3, 2, 1]))
    expected = dense.embeds[[4, 0, 3, 2, 1]]
    assert torch.equal(rows[:], expected) and torch.equal(rows[torch.tensor([[3], [0]])], expected[[3, 0]][:, None])
    assert torch.equal(rows.head(2)[1], expected[1]) and torch.equal(join(parts)["tokens"], pack(dense)["tokens"])

    found = embeddings(encoder, prompts)
    assert torch.equal(found.embeds, dense.embeds) and torch.equal(found.mask, dense.mask)
    entry = next((tmp_path / "cache").glob("embeddings-*"))
    tokens = sum(load_file(file)["tokens"].shape[0] for file in entry.glob("*.safetensors"))
    assert tokens == int(dense.mask.sum()) < dense.mask.numel()
    from sanakit.drift.read import read_samples

    sample = read_samples(entry)["embeddings"]
    old = tmp_path / "old"
    job = embedding_job(encoder, prompts)

    def padded(part):
        return {"embeds": dense.embeds, "mask": dense.mask, "truncated": torch.zeros(5, dtype=torch.long)}

    replace(job, compute=padded).run(old)
    assert torch.equal(embeddings(encoder, prompts, cache=old, must_exist=True).embeds, found.embeds)
    before = read_samples(next(old.glob("embeddings-*")))["embeddings"]
    assert all(np.array_equal(before.blocks[name], values) for name, values in sample.blocks.items())


def test_ahead_where_the_free_disk_holds_it_latents_first():
    sizes = {"num_images": 1000, "num_captions": 2000, "latents": [(4, 8, 8)], "embeddings": [(300, 2304)]}
    needed = bytes_ahead(**sizes)
    assert needed == {"latents": 1000 * 2 * 256 * 6, "embeddings": 2000 * 300 * 4609}
    assert choose_ahead(**sizes, free=10**10) == {"latents": "ahead", "embeddings": "ahead"}
    assert choose_ahead(**sizes, free=10**8) == {"latents": "ahead", "embeddings": "live"}
    assert choose_ahead(**sizes, free=10**5) == {"latents": "live", "embeddings": "live"}
    assert choose_ahead(**sizes, free=0, filled=True) == {"latents": "ahead", "embeddings": "ahead"}


def test_the_file_for_drift_is_a_random_sample_of_stated_size_without_failed_images(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "images")
    monkeypatch.setattr(screen, "SAMPLE", 1)  # of each split
    (source / "03.png").write_bytes((source / "03.png").read_bytes()[:90])
    images, vae = load_images(str(source)), VAES.get("kl-f8c4").tiny()
    monkeypatch.setattr(data_command, "DRIFT_ROWS", 6)
    quiet, placement = (lambda *told: None), host()
    [row] = data_command._fill_latents(
        tmp_path / "out", images, "kl-f8c4", vae, 32, False, None, quiet, placement, None
    )
    assert [failed["name"] for failed in row["failed"]] == ["03.png"] and row["count"] == 12
    with safe_open(row["file"], "pt") as file:
        assert file.metadata()["sample"] == "6 of 11 rows, drawn with seed 0"
        latents = file.get_tensor("latents")
        labels = [bytes(label.tolist()).rstrip(b"\0").decode() for label in file.get_tensor("labels")]
    usable = [place for place, name in enumerate(images.names) if name != "03.png"]
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))[:6].sort().values.tolist()
    assert labels == [images.names[usable[place]] for place in order]
    assert len(latents) == 6 and latents.flatten(1).abs().sum(1).min() > 0
