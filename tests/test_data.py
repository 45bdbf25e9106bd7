"""Splits that never move, ledgers that lose nothing, caches that say what differs."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sanakit.data import ImageDataset, load_images, store
from sanakit.data import images as data_images
from sanakit.data import table as data_base
from sanakit.data.cache import embeddings, raw_latents, to_images
from sanakit.data.dataset import build_dataset
from sanakit.drift.shown import shown_rows
from sanakit.errors import SanakitError
from sanakit.loading import load_vae
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
        (path / f"{i}.txt").write_text(f"image {i}\nanother name")
    return path


def test_split_depends_on_the_name_alone_and_holds_out_a_tenth():
    names = [str(i) for i in range(5000)]
    held = [data_base.is_held_out(name) for name in names]
    assert 0.08 < np.mean(held) < 0.12
    dataset = ImageDataset(source="x", names=names, captions=[["a"]] * 5000, images=[b""] * 5000)
    assert set(dataset.split(True).names) == {n for n, h in zip(names, held, strict=True) if h}
    assert len(dataset.split(True)) + len(dataset.split(False)) == 5000


def named(names):
    return ImageDataset(source="", names=names, captions=[["x"] for _ in names], images=[b""] * len(names))


@pytest.mark.parametrize("held_out", [False, True])
def test_the_first_images_of_a_split_are_a_random_sample_that_never_moves(held_out):
    """Files sorted by class, as folders are: any first K holds the classes in proportion, whatever the files' order."""
    names = [f"{letter}/{i}.png" for letter in "abcd" for i in range(2500)]
    order = named(names).split(held_out).names
    for count in (64, 128, 192):
        first = [name[0] for name in order[:count]]
        assert all(
            0.25 - 3 * (0.1875 / count) ** 0.5 < first.count(c) / count < 0.25 + 3 * (0.1875 / count) ** 0.5
            for c in "abcd"
        )
    assert named(names[::-1]).split(held_out).names == order
    fewer = [name for i, name in enumerate(names) if i % 3]
    assert named(fewer).split(held_out).names == [name for name in order if name in set(fewer)]


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_images_of_the_embedded_world_come_from_both_sources(held_out):
    split = load_images("embedded").split(held_out)
    emoji = [name.startswith("openmoji/") for name in split.names]
    share = sum(emoji) / len(emoji)
    for count in (128, 192, 256):
        assert abs(sum(emoji[:count]) / count - share) < 3 * (share * (1 - share) / count) ** 0.5


def test_openclipart_is_packed_with_captions_and_unique_names():
    dataset = load_images("openclipart")
    assert len(dataset) > 4000 and len(set(dataset.names)) == len(dataset)
    assert all(c and all(c) for c in dataset.captions)
    assert dataset.subset(range(3)).pixels(96).shape == (3, 96, 96, 3)


def test_folder_and_manifest_give_the_same_images(tmp_path):
    folder = folder_of(tmp_path / "a")
    dataset = load_images(str(folder))
    assert len(dataset) == 10 and dataset.captions[0] == ["image 0", "another name"]
    rows = [
        {"image": name, "caption": captions} for name, captions in zip(dataset.names, dataset.captions, strict=True)
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "m.csv").write_text("image,caption\n" + "".join(f"{r['image']},{r['caption'][0]}\n" for r in rows))
    assert load_images(str(folder / "m.jsonl")).fingerprint == dataset.fingerprint
    assert len(load_images(str(folder / "m.csv"))) == 10


def test_bad_images_are_set_aside_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(data_images, "MAX_PIXELS", 10_000)
    folder = folder_of(tmp_path / "a")
    (folder / "corrupt.png").write_bytes(png()[:60])
    (folder / "corrupt.txt").write_text("x")
    (folder / "huge.png").write_bytes(png(size=(200, 200)))
    (folder / "huge.txt").write_text("x")
    (folder / "silent.png").write_bytes(png())
    dataset = load_images(str(folder), max_set_aside=0.5)
    reasons = {row["name"]: row["reason"] for row in dataset.ledger}
    assert len(dataset) == 10 and set(reasons) == {"corrupt.png", "huge.png", "silent.png"}
    assert "40000" in reasons["huge.png"] or "200 x 200" in reasons["huge.png"]
    assert "no caption" in reasons["silent.png"]
    with pytest.raises(SanakitError, match="SK0402.*3 of 13"):
        load_images(str(folder), max_set_aside=0.05)


@pytest.mark.parametrize("text", ["", "image,text\na,b\n", "[]", "\x00"])
def test_manifests_that_are_none(tmp_path, text):
    for name in ("m.csv", "m.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(SanakitError, match="SK0401"):
            load_images(str(tmp_path / name))


def test_empty_folder_and_unknown_name(tmp_path):
    with pytest.raises(SanakitError, match="SK0401"):
        load_images(str(tmp_path))
    with pytest.raises(SanakitError, match="SK0101"):
        load_images("openclip")


def test_alpha_lies_on_white_and_exif_rotation_is_applied():
    clear = data_base.decode(png((255, 0, 0, 0), mode="RGBA"), 16)
    assert (clear == 255).all()
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    turned = data_base.decode(buffer.getvalue(), 40, "pad")
    assert (turned[:, 0] > 200).all() and turned[0, 20, 2] > 200  # upright: white at the sides, blue at the top


def test_a_large_jpeg_is_decoded_near_the_size_that_is_asked_for(monkeypatch):
    decoded = []
    pad, fit = data_images.ImageOps.pad, data_images.ImageOps.fit
    monkeypatch.setattr(
        data_images.ImageOps, "pad", lambda image, *a, **k: (decoded.append(image.size), pad(image, *a, **k))[1]
    )
    monkeypatch.setattr(
        data_images.ImageOps, "fit", lambda image, *a, **k: (decoded.append(image.size), fit(image, *a, **k))[1]
    )
    noise = np.random.default_rng(0).integers(256, size=(15, 20, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = image.getexif()
    exif[0x0112] = 6
    for options, wide in (({}, True), ({"exif": exif}, False)):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95, **options)
        upright = image if wide else image.rotate(-90, expand=True)
        assert (
            np.abs(
                data_base.decode(buffer.getvalue(), 64, "pad") - np.asarray(pad(upright, (64, 64), color="white")) * 1.0
            ).mean()
            < 2
        )
        data_base.decode(buffer.getvalue(), (48, 96))
        assert decoded == ([(200, 150), (400, 300)] if wide else [(150, 200), (300, 400)])
        decoded.clear()
        data_base.decode(buffer.getvalue(), 601)
        assert decoded.pop() == upright.size


def test_the_posterior_s_spread_is_kept_and_drawn_from_by_request(tmp_path):
    dataset = load_images(str(folder_of(tmp_path / "a")))
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    torch.manual_seed(0)
    vae = VAES.get("kl-f8c4").tiny()

    def build(**options):
        return build_dataset(vae, encoder, dataset, 32, mirror=True, **options)

    plain, drawn = build(), build(sample_posterior=True)
    mean, std = vae.encode_posterior(to_images(dataset.pixels(32)))
    assert plain.spread is None and torch.allclose(plain.latents[:, 0], vae.normalize(mean), atol=1e-5)
    assert torch.allclose(drawn.spread[:, 0].float(), std / vae.latents_std, rtol=0.01) and drawn.spread.shape[1] == 2
    rows, view = torch.arange(10), torch.zeros(10, dtype=torch.long)
    draws = torch.stack([drawn.draw(rows, view, torch.Generator(), rows + 10 * i) for i in range(400)])
    assert torch.allclose(draws.std(0), drawn.spread[:, 0].float(), rtol=0.25)
    assert torch.allclose(draws.mean(0), plain.latents[:, 0], atol=float(0.3 * drawn.spread.float().max()))
    assert torch.equal(drawn.draw(rows[3:5], view[:2], torch.Generator(), rows[3:5]), draws[0][3:5])
    assert torch.equal(plain.draw(rows, view, torch.Generator(), rows), plain.latents[:, 0])
    one = build_dataset(vae, encoder, dataset, 32, mirror=False, sample_posterior=True)  # a view of the mirrored entry
    assert torch.equal(one.spread[:], drawn.spread[:, :1])
    with pytest.raises(SanakitError, match="SK0104.*pca-f8c4 has no posterior"):
        fixed = VAES.get("pca-f8c4").tiny()
        fixed.name = "pca-f8c4"
        build_dataset(fixed, encoder, dataset, 32, mirror=True, sample_posterior=True)


def test_latents_are_computed_once_and_a_foreign_cache_is_refused(tmp_path):
    dataset = load_images(str(folder_of(tmp_path / "a")))
    vae = VAES.get("pca-f8c4").tiny()
    calls = []
    first = raw_latents(vae, dataset, 32, mirror=True, progress=lambda *a: calls.append(a))
    assert first.shape == (10, 2, 4, 4, 4) and calls
    calls.clear()
    assert torch.equal(raw_latents(vae, dataset, 32, mirror=True, progress=lambda *a: calls.append(a)), first)
    assert not calls
    other = raw_latents(vae, dataset, 64)
    assert other.shape[-1] == 8
    manifests = sorted((tmp_path / "cache").glob("latents-*/manifest.json"))
    swapped = [file.read_bytes() for file in manifests]
    for file, content in zip(manifests, reversed(swapped), strict=True):
        file.write_bytes(content)
    assert torch.equal(raw_latents(vae, dataset, 64), other)  # neither manifest is believed; the entry is made anew
    assert torch.equal(raw_latents(vae, dataset, 32, mirror=True), first)
    assert [json.loads(file.read_text())["facts"] for file in manifests] == [json.loads(s)["facts"] for s in swapped]
    shards = sorted((tmp_path / "cache").glob("latents-*/0*.safetensors"))
    blob = bytearray(shards[0].read_bytes())
    blob[-1] ^= 1
    shards[0].write_bytes(blob)
    with pytest.raises(SanakitError, match=f"SK0404.*{shards[0].name} is damaged"):
        raw_latents(vae, dataset, 32, mirror=True), raw_latents(vae, dataset, 64)


def test_encoding_hashes_weights_and_images_once_and_decodes_and_encodes_each_image_once(tmp_path, monkeypatch):
    dataset, vae = load_images(str(folder_of(tmp_path / "a", 40))), VAES.get("pca-f8c4").tiny()
    calls = []

    def watch(owner, name):
        return monkeypatch.setattr(
            owner, name, lambda *a, f=getattr(owner, name), **k: (calls.append(name), f(*a, **k))[1]
        )

    watch(vae, "fingerprint"), watch(vae, "encode_posterior"), watch(store, "row_hashes"), watch(data_base, "decode")
    raw_latents(vae, dataset, 32)
    assert {name: calls.count(name) for name in set(calls)} == {
        "fingerprint": 1,  # the images' hashes lie in the index
        "decode": 40,
        "encode_posterior": 2,
    }


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
        members += [(f"{i}.txt", f"image {i} of {shard}\n\nby hand".encode()) for i in range(3)]
        members += [("3.json", json.dumps({"caption": ["first", "second"], "score": 1}).encode())]
        members += [("evil.pyd", b"cos\nsystem\n(S'touch /tmp/x'\ntR."), ("9.txt", b"no image")]
        tar_of(tmp_path / f"part-{shard:02d}.tar", members)
    dataset = load_images(f"{tmp_path}/part-{{00..02}}.tar", max_set_aside=0.5)
    assert dataset.names == [f"part-{s:02d}.tar/{i}" for s in range(3) for i in range(4)]
    assert dataset.captions[0] == ["image 0 of 0", "by hand"] and dataset.captions[3] == ["first", "second"]
    assert [row["name"] for row in dataset.ledger] == [f"part-{s:02d}.tar/9" for s in range(3)]
    for bad in (f"{tmp_path}/part-{{00..03}}.tar", "pipe:cat x.tar", "nonsense://bucket/x.tar"):
        with pytest.raises(SanakitError, match="SK0401"):
            load_images(bad)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "part-00.tar").read_bytes()[:300])
    with pytest.raises(SanakitError, match="SK0401.*cannot be read"):
        load_images(str(tmp_path / "cut.tar"))


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
    texts_only = arguments.replace(f"--vae path:{tmp_path}/vae ", "").replace(" --image-size 32 --mirror", "")
    assert [(e["kind"], e["reused"]) for e in json.loads(call(texts_only)[1])["entries"]] == [("embeddings", True)]
    code, _, message = call(texts_only + " --aspect-buckets")
    assert code == 2 and "SK0104" in message and "name a --vae" in message
    assert first["set_aside"] == 1 and "broken.png" in (out / "ledger.jsonl").read_text()
    latents, texts = (load_file(e["file"]) for e in first["entries"])
    assert latents["latents"].shape == (24, 4, 4, 4)
    assert (
        texts["embeddings"].shape[::2] == (48, 256) and texts["attention_mask"].shape == texts["embeddings"].shape[:2]
    )
    assert latents["images"].shape == (24, 32, 32, 3) and latents["images"].dtype == torch.uint8
    for source in (out, Path(first["entries"][0]["folder"])):
        shown = shown_rows(source, "latents", [7])[7]
        assert np.array_equal(shown.image, load_images(str(folder)).subset([7]).pixels(32)[0])
    assert shown_rows(out, "embeddings", [3])[3].label == load_images(str(folder)).captions[1][1]

    vae, encoder = load_vae(f"path:{tmp_path}/vae"), TEXT_ENCODERS.get("wordllama").load()
    half = load_images(str(folder)).subset(range(5, 15))
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
    assert "removed" in call(f"sanakit cache prune {out} --damaged --yes")[1] and not shard.exists()


def test_a_spot_check_names_what_changed_under_an_unchanged_key(tmp_path, monkeypatch):
    dataset, vae = load_images(str(folder_of(tmp_path / "a"))), VAES.get("pca-f8c4").tiny()
    raw_latents(vae, dataset, 32)
    manifest = next((tmp_path / "cache").glob("latents-*/manifest.json"))
    record = json.loads(manifest.read_text())
    record["environment"]["torch"] = "1.0"
    manifest.write_text(json.dumps(record))
    encode = vae._encode
    monkeypatch.setattr(vae, "_encode", lambda images: encode(images) * 1.05)
    with pytest.raises(SanakitError, match=r"SK0404.*row \d computed again differs by 0\.0\d+ .*torch was 1.0"):
        raw_latents(vae, dataset, 32)


def rows_of(count=4):
    return [
        {
            "image": {"bytes": png((40 * i, 0, 0)), "path": None},
            "captions": [f"good {i}", f"bad {i}"],
            "scores": [1.0, 0.0],
        }
        for i in range(count)
    ]


def test_parquet_files_saved_data_sets_and_remote_shards_give_every_row(tmp_path):
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows_of())
    for number in range(2):
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    dataset = load_images(f"{tmp_path}/part-{{0..1}}.parquet")
    assert dataset.names == [f"part-{n}.parquet/{i}" for n in range(2) for i in range(4)]
    assert dataset.captions[1] == ["good 1", "bad 1"] and dataset.scores[1] == [1.0, 0.0]

    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    (saved.parent / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    for folder in (saved, saved.parent):
        assert load_images(str(folder)).images == dataset.images[:4]
    assert load_images(str(saved.parent)).survey.ignored.as_dict() == {"split test": {"count": 1, "first": "test"}}
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../../../x.arrow"}]}')
    with pytest.raises(SanakitError, match="SK0401.*outside its folder"):
        load_images(str(saved))
    pq.write_table(table.rename_columns(["photo", "captions", "scores"]), tmp_path / "other.parquet")
    with pytest.raises(SanakitError, match="SK0401.*columns photo, captions, scores; expected image"):
        load_images(str(tmp_path / "other.parquet"))

    record = json.dumps({"caption": ["one", "two"], "scores": [0.5, 0.1]}).encode()
    tar_of(tmp_path / "a.tar", [("0.png", png()), ("0.json", record), ("1.png", png("blue")), ("1.json", record)])
    remote = fsspec.filesystem("memory")
    for number in range(2):
        remote.pipe(f"/shards/{number}.tar", (tmp_path / "a.tar").read_bytes())
    shards = load_images("memory://shards/{0..1}.tar")
    assert shards.names == ["0.tar/0", "0.tar/1", "1.tar/0", "1.tar/1"] and shards.scores == [[0.5, 0.1]] * 4
    with pytest.raises(SanakitError, match="SK0401"):
        load_images("memory://shards/9.tar")


def test_a_saved_data_set_of_the_package_datasets_is_read_and_hf_names_need_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(rows_of()).cast_column("image", datasets.Image())
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    for source in (f"{tmp_path}/saved", f"hf:{tmp_path}/hub"):
        dataset = load_images(source)
        assert dataset.images == [row["image"]["bytes"] for row in rows_of()] and dataset.scores == [[1.0, 0.0]] * 4


def test_captions_are_drawn_by_score_and_temperature():
    from sanakit.data.dataset import CHOICES, LatentDataset, caption_chances

    scores = [[2.0, 1.0, 0.0], [0.0], [1.0, 1.0]]
    count = torch.tensor([3, 1, 2])
    choice = torch.randint(CHOICES, (30_000,), generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 2.0, 1e-3):
        data = LatentDataset(
            names=["a", "b", "c"],
            latents=torch.zeros(3, 1, 1, 1, 1),
            captions=None,
            first=count.cumsum(0) - count,
            count=count,
            chances=caption_chances(scores, temperature),
        )
        for image, image_scores in enumerate(scores):
            rows = data.caption_rows(torch.full_like(choice, image), choice) - data.first[image]
            expected = (torch.tensor(image_scores) / temperature).softmax(0)
            assert torch.allclose(torch.bincount(rows, minlength=len(image_scores)) / len(choice), expected, atol=0.01)
        largest = torch.full(
            (3,), CHOICES - 1
        )  # float32 rounds CHOICES - 1 over CHOICES to 1: the next image's caption
        numbers = (data.caption_rows(torch.arange(3), largest) - data.first).tolist()
        assert numbers == ([2, 0, 1] if temperature > 0.1 else [0, 0, 1])


@pytest.mark.parametrize("cell", [8, 14, 16, 32, 64])
def test_bucket_sizes_fit_any_ratio_and_area(cell):
    from sanakit.data.buckets import assign, bucket_sizes

    sizes = bucket_sizes(512, cell, 2.0)
    assert len(sizes) > 4 and len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % cell == width % cell == 0 and max(height / width, width / height) <= 2
        assert abs(height * width / 512**2 - 1) < cell / 256
    assert {(w, h) for h, w in sizes} == set(sizes)
    height, width = sizes[assign([1.0], sizes)[0]]
    assert abs(height - width) <= cell
    chosen = assign([0.5, 0.52, 1.0, 1.0, 1.0, 1.9], sizes, at_least=3)
    assert len(set(chosen)) == 1  # no bucket of fewer than three is left


def test_buckets_show_every_image_as_often_as_any_other():
    """Every sample id of three rounds of a bucket, over two ranks and whatever step one begins at."""
    from sanakit.data.order import bucket_batch_indices

    members = [torch.arange(0, 10), torch.arange(10, 15), torch.arange(15, 40)]
    batches = [bucket_batch_indices(members, 5, step, seed=3) for step in range(40)]
    for bucket in members:
        mine = [b for b in batches if b[0] in bucket]
        assert all(set(b.tolist()) <= set(bucket.tolist()) for b in mine)
        stream = torch.cat(mine).tolist()
        for start in range(0, len(stream), len(bucket)):
            assert sorted(stream[start : start + len(bucket)]) == bucket.tolist()
    assert torch.bincount(torch.cat(batches)).tolist() == [5] * 40
    first = torch.bincount(torch.cat(batches[:8]), minlength=40)  # an epoch's worth: no more than a batch astray
    assert first.max() <= 2 and abs(int(first.sum()) - 40) == 0
    again = [bucket_batch_indices(members, 5, step, seed=3) for step in (17, 3)]
    assert torch.equal(again[0], batches[17]) and torch.equal(again[1], batches[3])


def test_bucketed_latents_have_the_shape_of_their_images(tmp_path):
    from sanakit.data.buckets import bucket_sizes

    folder = tmp_path / "a"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i:02d}.png").write_bytes(png((10 * i, 0, 0), size=((40, 40), (80, 40), (40, 80))[i % 3]))
        (folder / f"{i:02d}.txt").write_text(f"image {i}")
    vae, encoder = VAES.get("pca-f8c4").tiny(), TEXT_ENCODERS.get("minilm").tiny()
    dataset = load_images(str(folder))
    data = build_dataset(vae, encoder, dataset, 32, mirror=True, buckets=bucket_sizes(32, 8, 2.0), at_least=4)
    shapes = {tuple(block.shape[1:]) for block in data.latents.blocks}
    assert shapes == {(2, 4, 4, 4), (2, 4, 3, 5), (2, 4, 5, 3)} or len(shapes) == 3
    assert sorted(torch.cat(data.members).tolist()) == list(range(24))
    wide = data.members[int(data.latents.block[1])]
    assert wide.tolist() == list(range(1, 24, 3))
    rows = wide[:3]
    latents = data.latents[rows, torch.zeros(3, dtype=torch.long)]
    height, width = (8 * side for side in latents.shape[-2:])
    assert width > height
    encoded = vae.encode(to_images(dataset.subset(rows.tolist()).pixels((height, width))))
    assert torch.allclose(latents, encoded, atol=1e-5)
