"""Splits that never move, ledgers that lose nothing, caches that say what differs."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sanakit.data import Pictures, load_pictures
from sanakit.data import base as data_base
from sanakit.data.cache import embeddings, raw_latents
from sanakit.errors import SanakitError
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


def png(colour="red", size=(40, 30), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG", **options)
    return buffer.getvalue()


def folder_of(path, count=10):
    path.mkdir()
    for i in range(count):
        (path / f"{i}.png").write_bytes(png((20 * i, 0, 0)))
        (path / f"{i}.txt").write_text(f"picture {i}\nanother name")
    return path


def test_split_depends_on_the_name_alone_and_holds_out_a_tenth():
    names = [str(i) for i in range(5000)]
    held = [data_base.is_held_out(name) for name in names]
    assert 0.08 < np.mean(held) < 0.12
    pictures = Pictures(source="x", names=names, captions=[["a"]] * 5000, images=[b""] * 5000)
    assert set(pictures.split(True).names) == {n for n, h in zip(names, held, strict=True) if h}
    assert len(pictures.split(True)) + len(pictures.split(False)) == 5000


def test_openclipart_is_packed_with_captions_and_unique_names():
    pictures = load_pictures("openclipart")
    assert len(pictures) > 4000 and len(set(pictures.names)) == len(pictures)
    assert all(c and all(c) for c in pictures.captions)
    assert pictures.subset(range(3)).pixels(96).shape == (3, 96, 96, 3)


def test_folder_and_manifest_give_the_same_pictures(tmp_path):
    folder = folder_of(tmp_path / "a")
    found = load_pictures(str(folder))
    assert len(found) == 10 and found.captions[0] == ["picture 0", "another name"]
    rows = [{"image": name, "caption": captions} for name, captions in zip(found.names, found.captions, strict=True)]
    (folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "m.csv").write_text("image,caption\n" + "".join(f"{r['image']},{r['caption'][0]}\n" for r in rows))
    assert load_pictures(str(folder / "m.jsonl")).fingerprint == found.fingerprint
    assert len(load_pictures(str(folder / "m.csv"))) == 10


def test_bad_pictures_are_set_aside_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(data_base, "MAX_PIXELS", 10_000)
    folder = folder_of(tmp_path / "a")
    (folder / "corrupt.png").write_bytes(png()[:60])
    (folder / "corrupt.txt").write_text("x")
    (folder / "huge.png").write_bytes(png(size=(200, 200)))
    (folder / "huge.txt").write_text("x")
    (folder / "silent.png").write_bytes(png())
    found = load_pictures(str(folder), max_set_aside=0.5)
    reasons = {row["name"]: row["reason"] for row in found.ledger}
    assert len(found) == 10 and set(reasons) == {"corrupt.png", "huge.png", "silent.png"}
    assert "40000" in reasons["huge.png"] or "200 x 200" in reasons["huge.png"]
    assert "no caption" in reasons["silent.png"]
    with pytest.raises(SanakitError, match="SK0402.*3 of 13"):
        load_pictures(str(folder), max_set_aside=0.05)


@pytest.mark.parametrize("text", ["", "image,text\na,b\n", "[]", "\x00"])
def test_manifests_that_are_none(tmp_path, text):
    for name in ("m.csv", "m.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(SanakitError, match="SK0401"):
            load_pictures(str(tmp_path / name))


def test_empty_folder_and_unknown_name(tmp_path):
    with pytest.raises(SanakitError, match="SK0401"):
        load_pictures(str(tmp_path))
    with pytest.raises(SanakitError, match="SK0101"):
        load_pictures("openclip")


def test_alpha_lies_on_white_and_exif_rotation_is_applied():
    clear = data_base.decode(png((255, 0, 0, 0), mode="RGBA"), 16)
    assert (clear == 255).all()
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    turned = data_base.decode(buffer.getvalue(), 40)
    assert (turned[:, 0] > 200).all() and turned[0, 20, 2] > 200  # upright: white at the sides, blue at the top


def test_latents_are_computed_once_and_a_foreign_cache_is_refused(tmp_path):
    pictures = load_pictures(str(folder_of(tmp_path / "a")))
    vae = VAES.get("pca-f8c4").tiny()
    calls = []
    first = raw_latents(vae, pictures, 32, mirror=True, progress=lambda *a: calls.append(a))
    assert first.shape == (10, 2, 4, 4, 4) and calls
    calls.clear()
    assert torch.equal(raw_latents(vae, pictures, 32, mirror=True, progress=lambda *a: calls.append(a)), first)
    assert not calls
    other = raw_latents(vae, pictures, 64)
    assert other.shape[-1] == 8
    manifests = sorted((tmp_path / "cache").glob("latents-*/manifest.json"))
    swapped = [file.read_bytes() for file in manifests]
    for file, content in zip(manifests, reversed(swapped), strict=True):
        file.write_bytes(content)
    with pytest.raises(SanakitError, match="SK0404.*renamed or its facts edited"):
        raw_latents(vae, pictures, 64)
    for file, content in zip(manifests, swapped, strict=True):
        file.write_bytes(content)
    shards = sorted((tmp_path / "cache").glob("latents-*/0*.safetensors"))
    blob = bytearray(shards[0].read_bytes())
    blob[-1] ^= 1
    shards[0].write_bytes(blob)
    with pytest.raises(SanakitError, match=f"SK0404.*{shards[0].name} is damaged"):
        raw_latents(vae, pictures, 32, mirror=True), raw_latents(vae, pictures, 64)


def test_other_weights_or_captions_are_another_cache(tmp_path):
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    first = embeddings(encoder, ["a b", "c"])
    with torch.no_grad():
        next(encoder.model.parameters()).mul_(-2)
    assert not torch.equal(embeddings(encoder, ["a b", "c"]).embeds, first.embeds)
    assert len(list((tmp_path / "cache").glob("embeddings-*"))) == 2
