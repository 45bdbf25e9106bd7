"""Images behind an address: read once, kept on the local disk up to a bound, and never trusted."""

import io
import sqlite3
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sanakit.data import load_images, nearby, places
from sanakit.errors import SanakitError

COUNT = 40


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A shard behind an address; a list that grows by every range that is asked for."""
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    system, ranges = fsspec.filesystem("memory"), []
    whole = type(system).cat_file
    rng = np.random.default_rng(0)
    with system.open("/far/0.tar", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(COUNT):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(96, 96, 3), dtype=np.uint8)).save(buffer, "PNG")
            for name, content in ((f"{i:02d}.png", buffer.getvalue()), (f"{i:02d}.txt", f"image {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    monkeypatch.setattr(
        type(system), "cat_file", lambda self, path, **k: (ranges.append(path), whole(self, path, **k))[1]
    )
    yield ranges
    system.rm("/far", recursive=True)


def test_an_image_is_fetched_once_and_comes_back_equal(fetched):
    images = load_images("memory://far/0.tar")  # screening decodes all of so few
    assert len(fetched) == COUNT
    first = list(images.images)
    assert len(fetched) == COUNT and len(set(first)) == COUNT
    assert nearby.nearby_path().stat().st_size > sum(map(len, first))
    nearby.nearby_path().unlink()
    nearby._local.key = None
    assert list(images.images) == first and len(fetched) == 2 * COUNT


def test_no_more_is_kept_than_the_bound_and_the_rest_is_fetched_again(fetched, monkeypatch):
    monkeypatch.setenv(nearby.SETTING, "0.0004")
    images = load_images("memory://far/0.tar")
    first = list(images.images)
    before, kept = len(fetched), nearby.nearby_path().stat().st_size
    assert list(images.images) == first
    assert 200_000 < kept <= 400_000 < sum(map(len, first))
    assert 0 < COUNT - (len(fetched) - before) < COUNT  # some from the disk, the others from the address
    monkeypatch.setenv(nearby.SETTING, "0")
    before = len(fetched)
    assert list(images.images) == first and len(fetched) == before + COUNT
    monkeypatch.setenv(nearby.SETTING, "much")
    with pytest.raises(SanakitError, match="SK0104.*SANAKIT_REMOTE_CACHE_GB='much'"):
        images.images[0]


def test_a_row_group_behind_an_address_is_fetched_once_for_all_its_images(tmp_path, monkeypatch):
    """Images of a batch lie in any row group: each would otherwise cost the whole group again."""
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    rng, system, fetched = np.random.default_rng(0), fsspec.filesystem("memory"), []
    rows = []
    for number in range(30):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "caption": f"image {number}"})
    with system.open("/rows/0.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=5)
    read_group = places._read_group.__wrapped__

    def counted(path, group, written):
        fetched.append(group)
        return read_group(path, group, written)

    monkeypatch.setattr(places, "_read_group", counted)
    try:
        images = load_images("memory://rows/0.parquet")  # screening decodes all of so few
        assert sorted(fetched) == list(range(6))
        assert [images.images[row] for row in (29, 0, 14)] == [rows[row]["image"]["bytes"] for row in (29, 0, 14)]
        assert len(fetched) == 6
        monkeypatch.setenv(nearby.SETTING, "0")
        assert images.images[29] == rows[29]["image"]["bytes"] and fetched[6:] == [5]
    finally:
        system.rm("/rows", recursive=True)


def test_a_copy_that_is_damaged_or_locked_is_fetched_again(fetched, monkeypatch):
    images = load_images("memory://far/0.tar")
    first, before = images.images[0], len(fetched)
    with sqlite3.connect(nearby.nearby_path()) as other:
        other.execute("UPDATE images SET data = x'00'")
    assert images.images[0] == first and len(fetched) == before + 1
    assert images.images[0] == first and len(fetched) == before + 1  # replaced by the right one
    monkeypatch.setattr(nearby, "WAIT", 0.01)
    nearby._local.key = None
    other = sqlite3.connect(nearby.nearby_path(), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert images.images[0] == first and len(fetched) == before + 2
    other.close()
    nearby._local.key = None
    nearby.nearby_path().write_bytes(b"no database" * 1000)
    assert images.images[0] == first and len(fetched) == before + 3
