"""Splits that never move, ledgers that lose nothing, caches that say what differs."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sanakit.data import Pictures, load_pictures
from sanakit.data import base as data_base
from sanakit.data.cache import build_dataset, embeddings, raw_latents
from sanakit.errors import SanakitError
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES, load_vae


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


def tar_of(path, members):
    import tarfile

    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_webdataset_shards_lose_no_sample_and_open_nothing_else(tmp_path):
    for shard in range(3):
        members = [(f"{i}.png", png((shard, i, 0))) for i in range(4)]
        members += [(f"{i}.txt", f"picture {i} of {shard}\n\nby hand".encode()) for i in range(3)]
        members += [("3.json", json.dumps({"caption": ["first", "second"], "score": 1}).encode())]
        members += [("evil.pyd", b"cos\nsystem\n(S'touch /tmp/x'\ntR."), ("9.txt", b"no picture")]
        tar_of(tmp_path / f"part-{shard:02d}.tar", members)
    found = load_pictures(f"{tmp_path}/part-{{00..02}}.tar", max_set_aside=0.5)
    assert found.names == [f"part-{s:02d}.tar/{i}" for s in range(3) for i in range(4)]
    assert found.captions[0] == ["picture 0 of 0", "by hand"] and found.captions[3] == ["first", "second"]
    assert [row["name"] for row in found.ledger] == [f"part-{s:02d}.tar/9" for s in range(3)]
    for bad in (f"{tmp_path}/part-{{00..03}}.tar", "pipe:cat x.tar", "nonsense://bucket/x.tar"):
        with pytest.raises(SanakitError, match="SK0401"):
            load_pictures(bad)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "part-00.tar").read_bytes()[:300])
    with pytest.raises(SanakitError, match="SK0401.*cannot be read"):
        load_pictures(str(tmp_path / "cut.tar"))


def test_encode_fills_a_cache_that_train_reads_and_drift_reads(tmp_path, capsys, monkeypatch):
    from safetensors.torch import load_file

    from sanakit import cli

    folder, out = folder_of(tmp_path / "a", 24), tmp_path / "out"
    VAES.get("pca-f8c4").tiny().save(tmp_path / "vae")
    (folder / "broken.png").write_bytes(b"x")
    arguments = f"sanakit encode --vae path:{tmp_path}/vae --text-encoder wordllama --data {folder} --out {out}"
    arguments += " --image-size 32 --mirror --json"

    def call(text):
        monkeypatch.setattr("sys.argv", text.split())
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    first, second = (json.loads(call(arguments)[1]) for _ in range(2))
    assert [e["reused"] for e in first["entries"]] == [False, False]
    assert [e["reused"] for e in second["entries"]] == [True, True]
    assert first["set_aside"] == 1 and "broken.png" in (out / "ledger.jsonl").read_text()
    latents, texts = (load_file(e["file"]) for e in first["entries"])
    assert latents["latents"].shape == (24, 4, 4, 4)
    assert (
        texts["embeddings"].shape[::2] == (48, 256) and texts["attention_mask"].shape == texts["embeddings"].shape[:2]
    )

    vae, encoder = load_vae(f"path:{tmp_path}/vae"), TEXT_ENCODERS.get("wordllama").load()
    half = load_pictures(str(folder)).subset(range(5, 15))
    for mirror, views in ((True, 2), (False, 1)):
        data = build_dataset(vae, encoder, half, 32, mirror=mirror, cache=out)
        assert data.latents.shape == (10, views, 4, 4, 4)
        assert torch.allclose(data.latents[:, 0], latents["latents"][5:15])
    monkeypatch.setattr("sanakit.data.cache.RESIDENT_BYTES", 0)
    lazy = build_dataset(vae, encoder, half, 32, mirror=False, cache=out)
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(lazy.latents[rows, torch.zeros(3, dtype=torch.long)], data.latents[rows, 0])
    assert torch.equal(lazy.prompts(rows, rows).embeds, data.prompts(rows, rows).embeds)
    with pytest.raises(SanakitError, match="SK0404.*size is 32, expected 64"):
        build_dataset(vae, encoder, half, 64, mirror=True, cache=out)
    with torch.no_grad():
        vae.model.components.mul_(1.1)
    with pytest.raises(SanakitError, match="SK0404.*encoder is "):
        build_dataset(vae, encoder, half, 32, mirror=True, cache=out)

    assert call(f"sanakit cache verify {out}")[0] == 0
    assert len(json.loads(call(f"sanakit cache ls {out} --json")[1])) == 2
    shard = next(out.glob("embeddings-*/00000.safetensors"))
    blob = bytearray(shard.read_bytes())
    blob[-3] ^= 4
    shard.write_bytes(blob)
    code, text, _ = call(f"sanakit cache verify {out}")
    assert code == 1 and f"{shard} is damaged" in text
    assert "removed" in call(f"sanakit cache prune {out} --damaged")[1] and not shard.exists()


def test_a_spot_check_names_what_changed_under_an_unchanged_key(tmp_path, monkeypatch):
    pictures, vae = load_pictures(str(folder_of(tmp_path / "a"))), VAES.get("pca-f8c4").tiny()
    raw_latents(vae, pictures, 32)
    manifest = next((tmp_path / "cache").glob("latents-*/manifest.json"))
    record = json.loads(manifest.read_text())
    record["environment"]["torch"] = "1.0"
    manifest.write_text(json.dumps(record))
    encode = vae._encode
    monkeypatch.setattr(vae, "_encode", lambda images: encode(images) * 1.05)
    with pytest.raises(SanakitError, match=r"SK0404.*row \d computed again differs by 0\.0\d+ .*torch was 1.0"):
        raw_latents(vae, pictures, 32)
