"""Layouts in which data sets lie about: each is read, and gives the same images and captions as any other."""

import gzip
import io
import json
import tarfile
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sanakit.data import load_images
from sanakit.data.describe import describe
from sanakit.errors import SanakitError

COUNT = 3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


def png(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def images_in(folder, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(COUNT):
        (folder / f"{i}{suffix}").write_bytes(png(i))
    return folder


def tar_of(path, numbers=range(COUNT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            for name, content in ((f"{i}.png", png(i)), (f"{i}.txt", f"image {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def table_of(path, numbers=range(COUNT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"image": png(i), "text": f"image {i}"} for i in numbers]), path)
    return path


def imagefolder_jsonl(root):
    images_in(root / "train")
    rows = [{"file_name": f"{i}.png", "text": f"image {i}"} for i in range(COUNT)]
    (root / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8-sig")
    return root


def imagefolder_csv(root):
    images_in(root / "sub")
    lines = [f"sub/{i}.png,image {i}" for i in range(COUNT)]
    (root / "metadata.csv").write_text("\n".join(["file_name,prompt", *lines]))
    return root


def caption_files(root):
    images_in(root, ".PNG")
    for i in range(COUNT):
        (root / f"{i}.{'caption' if i else 'txt'}").write_text(f"image {i}")
    (root / "0.caption").write_text("beside")
    return root


def manifest(root, name, separator, columns):
    images_in(root)
    lines = [separator.join([f"{i}.png", f"image {i}"]) for i in range(COUNT)]
    (root / name).write_text("\n".join([separator.join(columns), *lines]))
    return root / name


def jsonl_with_mark(root):
    images_in(root)
    rows = [{"image": f"{i}.png", "caption": f"image {i}"} for i in range(COUNT)]
    (root / "m.JSONL").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8-sig")
    return root / "m.JSONL"


def folder_of_shards(root):
    tar_of(root / "a" / "0.tar", [0])
    tar_of(root / "b" / "0.TAR", [1, 2])
    (root / "README.md").write_text("x")
    return root


def folder_of_tables(root):
    table_of(root / "data" / "0.parquet", [0])
    table_of(root / "data" / "1.parquet", [1, 2])
    return root


def compressed(root):
    plain = tar_of(root / "x.tar")
    (root / "y.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    return root / "y.tar.gz"


def globbed(root):
    tar_of(root / "one" / "0.tar", [0])
    tar_of(root / "two" / "1.tar", [1, 2])
    return root / "*" / "?.tar"


def linked(root):
    images_in(root / "real")
    for i in range(COUNT):
        (root / "real" / f"{i}.txt").write_text(f"image {i}")
    (root / "seen").mkdir()
    (root / "seen" / "link").symlink_to(root / "real")
    return root / "seen"


LAYOUTS = {
    "imagefolder with metadata.jsonl": imagefolder_jsonl,
    "imagefolder with metadata.csv": imagefolder_csv,
    ".caption files, suffixes in capitals": caption_files,
    "semicolons": lambda root: manifest(root, "m.csv", ";", ("image", "prompt")),
    "tabs": lambda root: manifest(root, "m.tsv", "\t", ("image", "text")),
    "tabs in a .csv": lambda root: manifest(root, "M.CSV", "\t", ("file_name", "caption")),
    "JSONL with a byte order mark": jsonl_with_mark,
    "folder of shards": folder_of_shards,
    "folder of tables": folder_of_tables,
    "tar.gz": compressed,
    "glob": globbed,
    "linked folder": linked,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read(tmp_path, layout):
    found = load_images(str(LAYOUTS[layout](tmp_path / "data")), max_set_aside=0)
    assert list(found.images) == [png(i) for i in range(COUNT)]
    assert found.captions == [[f"image {i}"] for i in range(COUNT)]


def test_what_a_layout_leaves_out_is_counted(tmp_path):
    root = imagefolder_csv(tmp_path / "data")
    (root / "more.png").write_bytes(png(5))
    assert describe(load_images(str(root)))["ignored"] == {
        "images that metadata.csv does not name": {"count": 1, "first": "more.png"}
    }
    beside = describe(load_images(str(caption_files(tmp_path / "beside"))))["ignored"]
    assert beside == {".caption beside .txt": {"count": 1, "first": "0.caption"}}


def test_a_licence_beside_an_imagefolder_is_no_caption(tmp_path):
    root = imagefolder_csv(tmp_path / "data")
    (root / "LICENSE.txt").write_text("CC0")
    assert load_images(str(root), max_set_aside=0).captions == [[f"image {i}"] for i in range(COUNT)]
    (root / "sub" / "0.txt").write_text("of its own")
    assert load_images(str(root), max_set_aside=1).captions[0] == ["of its own"]


def test_a_table_that_was_written_anew_is_read_anew(tmp_path):
    path = table_of(tmp_path / "t.parquet")
    assert list(load_images(str(path)).images) == [png(i) for i in range(COUNT)]
    table_of(path, range(COUNT, 0, -1))
    assert list(load_images(str(path), max_set_aside=0).images) == [png(i) for i in range(COUNT, 0, -1)]


def test_captions_of_ones_own_on_an_indexed_data_set_are_those_that_are_read(tmp_path):
    found = load_images(str(table_of(tmp_path / "t.parquet", range(6))))
    mine = [[f"mine {i}", "and more"] for i in range(6)]
    told = replace(found, captions=mine)
    rows = [name for half in (told.split(False), told.split(True)) for name in half.captions]
    assert sorted(rows) == mine and told.texts() == [text for row in mine for text in row]
    assert told.fingerprint != found.fingerprint and list(told.images) == list(found.images)
    assert told.caption_counts().tolist() == [2] * 6


def test_a_glob_of_two_kinds_is_refused_and_an_unpacked_shard_comes_back(tmp_path):
    tar_of(tmp_path / "0.tar")
    table_of(tmp_path / "1.parquet")
    with pytest.raises(SanakitError, match="SK0401.*files of one kind"):
        load_images(str(tmp_path / "?.*"))
    source = compressed(tmp_path / "z")
    load_images(str(source))
    copy = next((tmp_path / "cache" / "shards").iterdir())
    copy.unlink()
    assert load_images(str(source)).images[0] == png(0) and copy.is_file()
    source.write_bytes(source.read_bytes()[:40])
    with pytest.raises(SanakitError, match="SK0401.*cannot be read"):
        load_images(str(source))
