"""The index of a data set: read once, by any number of processes, extended by what is new, and equal to reading it
all."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from sanakit.data import ImageDataset, index, load_images, screen
from sanakit.data.part import Plan
from sanakit.data.readers import shards
from sanakit.errors import SanakitError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


def png(number, size=(12, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def shard_of(path, first, count=8, broken=()):
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            data = png(i)
            members = [
                (f"{i:04d}.png", data[:44] + bytes(6) + data[50:] if i in broken else data),
                (f"{i:04d}.txt", f"image {i}".encode()),
            ]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def folder_of(path, count):
    path.mkdir(exist_ok=True)
    for i in range(count):
        (path / f"{i:04d}.png").write_bytes(png(i))
        (path / f"{i:04d}.txt").write_text(f"image {i}\nanother name")
    return path


def settle(path):
    """Files that were written a second ago: what changes within a moment of being read is read again."""
    for file in path.rglob("*.*"):
        if "cache" not in file.parts:
            os.utime(file, ns=(file.stat().st_mtime_ns - 10**9,) * 2)


@pytest.fixture
def read_parts(monkeypatch):
    """How many parts were read, call by call."""
    keys, read_part = [], index.read_part
    monkeypatch.setattr(index, "read_part", lambda part, home: (keys.append(part.key), read_part(part, home))[1])
    return keys


def in_memory(found):
    """The same data set without its index."""
    lists = {name: list(getattr(found, name)) for name in ("names", "captions", "images", "scores")}
    return ImageDataset(source=found.source, fit=found.fit, **lists)


def test_an_index_gives_what_reading_everything_gives(tmp_path):
    found = load_images(str(folder_of(tmp_path / "a", 300)))
    plain = in_memory(found)
    assert found.indexed is not None and found.images[7] == png(7) and found.captions[3] == ["image 3", "another name"]
    assert found.fingerprint == plain.fingerprint == found.fingerprint
    for held_out in (False, True):
        own, theirs = found.split(held_out), plain.split(held_out)
        assert own.names == theirs.names and own.fingerprint == theirs.fingerprint
        assert list(own.images) == theirs.images and own.captions[-1] == theirs.captions[-1]
    some = found.subset([5, 2]).subset([1])
    assert some.names == ["0002.png"] and np.array_equal(some.pixels(8), plain.subset([2]).pixels(8))
    assert found.caption_counts().tolist() == [2] * 300 and found.sizes()[0].tolist() == [12, 8]


def test_only_what_is_new_or_changed_is_read_again(tmp_path, read_parts):
    for number in range(3):
        shard_of(tmp_path / f"{number}.tar", 8 * number)
    settle(tmp_path)
    first = load_images(f"{tmp_path}/{{0..2}}.tar")
    assert len(read_parts) == 3
    assert load_images(f"{tmp_path}/{{0..2}}.tar").names == first.names and len(read_parts) == 3
    shard_of(tmp_path / "1.tar", 100)
    changed = load_images(f"{tmp_path}/{{0..2}}.tar")
    assert len(read_parts) == 4 and changed.names[8] == "1.tar/0100" and changed.fingerprint != first.fingerprint

    folder = folder_of(tmp_path / "a", 5)
    monkey = load_images(str(folder))
    assert len(monkey) == 5
    (folder / "0002.png").write_bytes(png(99))
    again = load_images(str(folder))
    assert again.images[2] == png(99)
    (folder / "0002.png").write_bytes(png(98))
    with pytest.raises(ValueError, match="changed since it was indexed"):
        again.images[2]


def test_a_file_that_is_added_to_a_folder_reads_one_run_of_it(tmp_path, read_parts, monkeypatch):
    monkeypatch.setattr("sanakit.data.readers.folder.PART_FILES", 16)
    folder = folder_of(tmp_path / "a", 200)
    settle(folder)
    load_images(str(folder))
    before = len(read_parts)
    (folder / "0100a.png").write_bytes(png(500))
    (folder / "0100a.txt").write_text("new")
    found = load_images(str(folder))
    assert before > 6 and len(read_parts) == before + 1 and found.names[101] == "0100a.png"
    assert found.names == sorted(found.names) and len(found) == 201


def test_several_processes_read_what_one_reads_and_import_no_torch(tmp_path, monkeypatch):
    for number in range(3):
        shard_of(tmp_path / f"{number}.tar", 8 * number)
    plan = shards.plan_shards(f"{tmp_path}/{{0..2}}.tar")
    alone = index.build_index(plan, processes=1, cache=tmp_path / "one")
    told = []
    both = index.build_index(
        shards.plan_shards(plan.source), processes=2, cache=tmp_path / "two", progress=lambda *a: told.append(a)
    )
    assert both.names == alone.names and both.fingerprint == alone.fingerprint
    assert sorted(told) == [("indexing", done, 3) for done in (1, 2, 3)]
    (tmp_path / "1.tar").write_bytes((tmp_path / "1.tar").read_bytes()[:300])
    plan = shards.plan_shards(plan.source)
    with pytest.raises(SanakitError, match="SK0401.*1.tar cannot be read"):
        index.build_index(plan, processes=2, cache=tmp_path / "three")
    code = "import sys, sanakit.data.index_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_second_image_of_one_name_is_set_aside_and_equal_names_of_two_folders_are_told_apart(tmp_path):
    for folder in ("00", "01"):
        (tmp_path / folder).mkdir()
        shard_of(tmp_path / folder / "x.tar", 0, 3)
    assert load_images(f"{tmp_path}/{{00..01}}/x.tar").names == [
        f"{f}/x.tar/{i:04d}" for f in ("00", "01") for i in range(3)
    ]
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": png(i), "caption": f"image {i}", "name": n} for i, n in enumerate(["a", "b", "a", "c"])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    found = load_images(str(tmp_path / "d.parquet"), max_set_aside=0.5)
    assert found.names == ["a", "b", "c"] and found.images[2] == png(3)
    assert [row["name"] for row in found.ledger] == ["a"] and "second image of this name" in found.ledger[0]["reason"]
    with pytest.raises(SanakitError, match="SK0402.*1 of 4 images"):
        load_images(str(tmp_path / "d.parquet"))


def test_of_a_large_data_set_a_sample_is_decoded_and_its_share_refuses_before_the_first_step(tmp_path, monkeypatch):
    decoded, open_image = [], screen.open_image
    monkeypatch.setattr(screen, "open_image", lambda data, least: (decoded.append(1), open_image(data, least))[1])
    monkeypatch.setattr(screen, "SAMPLE", 20)
    shard_of(tmp_path / "a.tar", 0, 400, broken=set(range(0, 400, 4)))
    settle(tmp_path)
    with pytest.raises(SanakitError, match=r"SK0402.* of 400 images set aside(.|\n)*decoded") as refused:
        load_images(str(tmp_path / "a.tar"))
    assert len(decoded) == 40 and "a.tar/0" in str(refused.value)
    found = load_images(str(tmp_path / "a.tar"), max_set_aside=0.6)
    assert len(decoded) == 40  # remembered
    assert 360 < len(found) < 400 and len(found) + len(found.ledger) == 400
    bad = {row["name"] for row in found.ledger}
    for held_out in (False, True):  # what is evaluated was decoded
        split = found.split(held_out)
        assert all(int(name[-4:]) % 4 for name in split.names[:14]) and not bad & set(split.names)


def test_a_header_that_is_refused_is_found_without_decoding(tmp_path, monkeypatch):
    from sanakit.data import images, part

    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(part, "MAX_PIXELS", 1000)
    folder = folder_of(tmp_path / "a", 3)
    (folder / "big.png").write_bytes(png(1, size=(40, 40)))
    (folder / "big.txt").write_text("x")
    (folder / "text.png").write_bytes(b"<html></html>")
    (folder / "text.txt").write_text("x")
    found = index.build_index(load_plan(folder))
    assert {row["name"]: row["reason"].partition(":")[0] for row in found.ledger} == {
        "big.png": "too large",
        "text.png": "no image that can be read",
    }


def load_plan(folder) -> Plan:
    from sanakit.data.readers.folder import plan_folder

    return plan_folder(folder)


def test_above_a_million_images_an_epoch_is_shuffled_by_blocks_and_visits_each_once(monkeypatch):
    import torch

    from sanakit.data import order

    below = order.batch_indices(1000, 32, 40, seed=3)
    epoch = torch.randperm(1000, generator=torch.Generator().manual_seed(3 * 7_919 + 1))
    assert torch.equal(below, epoch[280:312]) and order.WHOLE == 1_000_000  # golden losses were drawn in this order
    monkeypatch.setattr(order, "WHOLE", 500)
    monkeypatch.setattr(order, "BLOCK", 64)
    batches = torch.cat([order.batch_indices(1000, 32, step, seed=3) for step in range(64)])
    assert not torch.equal(batches[40 * 32 : 41 * 32], below)
    first, second = batches[:1000], batches[1000:2000]
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(1000))
    assert not torch.equal(first, second) and (first[:64] // 64).unique().numel() <= 2
    monkeypatch.setattr(order, "BLOCK", 65_536)
    monkeypatch.setattr(order, "epoch_order", lambda total, seed: torch.arange(min(total, 65_536)).flip(0))
    far = order.batch_indices(10_000_000, 4, 2_000_000, seed=0)  # nothing of the size of the data set is made
    assert len(far) == 4 and int(far.min()) >= 0 and int(far.max()) < 10_000_000
