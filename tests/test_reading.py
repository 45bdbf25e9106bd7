"""Every file seen is read as it is meant, set aside with the reason, or counted as ignored;
nothing is altered unsaid."""

import io
import json
import os
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin, features

from sanakit.data import ImageDataset, images, load_images
from sanakit.data.cache import raw_latents
from sanakit.data.captions import as_captions, as_scores, decode_text, file_captions
from sanakit.data.describe import describe, describe_lines
from sanakit.data.readers.objects import read_objects
from sanakit.data.survey import reason_of
from sanakit.data.table import decode
from sanakit.errors import SanakitError
from sanakit.vaes import VAES

AVIF = "AVIF" in images.DECODERS and features.check("avif")  # Pillow from 11.3 on has it


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(colour="red", size=(12, 8), mode="RGB", **options):
    return encoded(Image.new(mode, size, colour), **options)


def folder_of(path, files):
    """Files by relative name; bytes or text."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def read(path, **options):
    return load_images(str(path), max_set_aside=1.0, **options)


def reasons(dataset):
    return {row["name"]: row["reason"] for row in dataset.ledger}


# --- captions --------------------------------------------------------------------------------------------------------

WORDS = "Grüße, ein Kätzchen"
READ = {
    "utf-8": WORDS.encode(),
    "utf-8 with a byte order mark": WORDS.encode("utf-8-sig"),
    "utf-16 little endian": b"\xff\xfe" + WORDS.encode("utf-16-le"),
    "utf-16 big endian": b"\xfe\xff" + WORDS.encode("utf-16-be"),
    "windows line ends": WORDS.encode() + b"\r\n",
}
REFUSED = {
    "cp1252": (WORDS.encode("cp1252"), "not utf-8: byte 0xfc at 2"),
    "utf-16 without a mark": ("Gruss" * 3).encode("utf-16-le") and (("Gruss" * 3).encode("utf-16-le"), "zero bytes"),
    "utf-16 cut": (b"\xff\xfeG\0r", "not utf-16"),
    "utf-32": (WORDS.encode("utf-32"), "UTF-32"),
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("reader", ["folder", "shard", "csv", "jsonl"])
def test_captions_in_utf_8_and_utf_16_are_read_by_every_reader(tmp_path, kind, reader):
    data = READ[kind]
    if reader == "folder":
        source = folder_of(tmp_path / "a", {"0.png": png(), "0.txt": data})
    elif reader == "shard":
        source = tar_of(tmp_path / "a.tar", [("0.png", png()), ("0.txt", data)])
    else:
        folder_of(tmp_path, {"0.png": png()})
        rows = {"csv": f'image,caption\n0.png,"{WORDS}"\n', "jsonl": json.dumps({"image": "0.png", "caption": WORDS})}
        mark = data[: len(data) - len(data.lstrip(b"\xef\xbb\xbf\xff\xfe"))]
        codec = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(mark, "utf-8")
        source = tmp_path / f"m.{reader}"
        source.write_bytes(mark + rows[reader].encode(codec))
    assert read(source).captions == [[WORDS]]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("reader", ["folder", "shard"])
def test_captions_that_do_not_decode_are_set_aside_with_the_reason(tmp_path, kind, reader):
    data, reason = REFUSED[kind]
    good = [("1.png", png("blue")), ("1.txt", b"fine")]
    members = [("0.png", png()), ("0.txt", data), *good]
    source = folder_of(tmp_path / "a", dict(members)) if reader == "folder" else tar_of(tmp_path / "a.tar", members)
    dataset = read(source)
    assert dataset.captions == [["fine"]]
    assert reason in next(iter(reasons(dataset).values())) and len(dataset.ledger) == 1


NO_TEXT = {
    "null": "caption is null",
    "NaN": "caption is not a number (NaN)",
    "3.5": "caption is a number (3.5)",
    "true": "caption is a truth value",
    '{"en": "a cat"}': "caption is an object",
    '["a cat", null]': "caption 2 of 2 is null",
    '["a cat", NaN]': "caption 2 of 2 is not a number",
    '["a cat", ["b"]]': "caption 2 of 2 is a list",
    '"half of \\ud83d"': "not valid Unicode",
}


@pytest.mark.parametrize("value", NO_TEXT)
def test_what_is_no_text_never_becomes_words(tmp_path, value):
    record = f'{{"image": "0.png", "caption": {value}}}'
    good = '{"image": "0.png", "caption": "fine"}'
    folder_of(tmp_path, {"0.png": png(), "m.jsonl": f"{record}\n{good}\n"})
    shard = tar_of(
        tmp_path / "a.tar",
        [("0.png", png()), ("0.json", record.encode()), ("1.png", png()), ("1.json", good.encode())],
    )
    for source in (tmp_path / "m.jsonl", shard):
        dataset = read(source)
        assert dataset.captions == [["fine"]] and len(dataset.ledger) == 1
        assert NO_TEXT[value] in dataset.ledger[0]["reason"]


def test_tables_set_aside_what_is_no_text_and_read_the_rest(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"image": png((i, 0, 0)), "captions": c, "name": n} for i, (c, n) in enumerate([(["a"], "x"), (None, "y")])]
    rows += [{"image": png(), "captions": ["b", None], "name": None}, {"image": None, "captions": ["c"], "name": "z"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    dataset = read(tmp_path / "a.parquet")
    assert dataset.names == ["x"] and dataset.captions == [["a"]]
    assert "caption is null" in reasons(dataset)["y"] and "caption 2 of 2 is null" in reasons(dataset)["a.parquet/2"]
    assert "no image: the row holds null" in reasons(dataset)["z"]
    raw = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"image": [png()] * 3, "caption": text}), tmp_path / "b.parquet")
    dataset = read(tmp_path / "b.parquet")
    assert dataset.captions == [["good"], ["fine"]]
    assert reasons(dataset) == {"b.parquet/1": "text that is not UTF-8: byte 0xe9"}
    paths = pa.array([{"bytes": None, "path": "far/away.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": paths, "caption": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(SanakitError, match="SK0401.*only the path far/away.png"):
        read(tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": [png()], "text": ["short"], "caption": ["long"]}), tmp_path / "d.parquet")
    dataset = read(tmp_path / "d.parquet")
    assert dataset.captions == [["long"]] and [*describe(dataset)["ignored"]] == ["columns text beside caption"]


def test_a_csv_row_that_is_wrong_is_set_aside_and_the_others_are_read(tmp_path):
    lines = [b"image,caption", b"0.png,fine", b"0.png", b"0.png,red, round", b"0.png,caf\xe9", b'0.png,"red, round"']
    folder_of(tmp_path, {"0.png": png(), "m.csv": b"\n".join(lines)})
    found = read(tmp_path / "m.csv")
    assert found.captions == [["fine", "red, round"]]  # two rows of one image
    told = [row["reason"] for row in found.ledger]
    assert "caption is null" in told[0] and "3 fields under 2 columns" in told[1] and "not valid Unicode" in told[2]
    folder_of(tmp_path, {"m.csv": 'image,caption\n0.png,fine\n0.png,"never ends\n0.png,lost\n'})
    with pytest.raises(SanakitError, match="SK0401.*m.csv cannot be read: after line 2"):
        read(tmp_path / "m.csv")
    folder_of(tmp_path, {"m.csv": "image,caption,caption\n0.png,lost,read\n"})
    with pytest.raises(SanakitError, match="SK0401.*2 columns are named caption, expected one"):
        read(tmp_path / "m.csv")


def test_a_json_line_that_is_wrong_is_set_aside_and_separators_inside_a_caption_cut_nothing(tmp_path):
    rows = ['{"image": "0.png", "caption": "one\u2028two\x85three"}', "{broken", '{"image": null, "caption": "a"}']
    rows += ['{"image": "gone.png", "caption": "a"}', '{"image": "0.png", "caption": "a", "scores": [NaN]}']
    rows += [json.dumps({"image": name, "caption": "a"}) for name in ("a\0b.png", "a\ud800b.png", "b" * 300)]
    folder_of(tmp_path, {"0.png": png(), "m.jsonl": "\n".join(rows)})
    found = read(tmp_path / "m.jsonl")
    assert found.captions == [["one\u2028two\x85three"]]
    told = [row["reason"] for row in found.ledger]
    kinds = sorted(reason.partition(":")[0] for reason in told)
    assert {"file does not exist", "no JSON", "no image", "embedded null byte"} < set(kinds) and len(kinds) == 7
    assert "scores is [nan]" in " ".join(told) and "surrogates not allowed" in " ".join(told)


def test_a_caption_file_is_a_caption_a_line_or_one_caption(tmp_path):
    folder = folder_of(
        tmp_path / "a", {"0.png": png(), "0.txt": "red\napple\n\n", "1.png": png("blue"), "1.txt": "one"}
    )
    shard = tar_of(tmp_path / "a.tar", [(p.name, p.read_bytes()) for p in sorted(folder.iterdir())])
    for source in (folder, shard):
        dataset = read(source)
        assert dataset.captions == [["red", "apple"], ["one"]]
        assert describe(dataset)["lines"] == 2
        assert "2 captions are lines of caption files with several" in describe_lines(dataset)[0]
        whole = read(source, captions="whole")
        assert whole.captions == [["red apple"], ["one"]] and describe(whole)["lines"] == 0
    folder_of(folder, {"m.csv": "image,caption\n0.png,a\n"})
    for source in (folder / "m.csv", "openclipart"):
        with pytest.raises(SanakitError, match="SK0104.*has no caption files"):
            load_images(str(source), captions="whole")
    for option in ({"captions": "line"}, {"fit": "corp"}):
        with pytest.raises(SanakitError, match="SK0104.*did you mean"):
            load_images(str(folder), **option)


def test_text_scores_and_reasons_by_themselves():
    assert decode_text(b"") == "" and file_captions(b"\xef\xbb\xbf\n\xef\xbb\xbfa\n", "lines") == ["a"]
    assert as_captions("a") == ["a"] and as_captions(["a", "b"]) == ["a", "b"] and as_captions([]) == []
    assert as_scores([1, 0.5]) == [1.0, 0.5] and as_scores(None) is None
    for wrong in ("high", [True], [None], [float("inf")], {"a": 1}):
        with pytest.raises(ValueError, match="expected a list with a finite number"):
            as_scores(wrong)
    assert reason_of(PermissionError(13, "Permission denied")) == "cannot be read: Permission denied"


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    expected = np.round(ramp / 257).astype(int)
    for file_format in ("PNG", "TIFF", "PPM"):
        decoded = decode(encoded(Image.fromarray(ramp), file_format), 64)
        assert np.abs(decoded - expected[..., None]).max() <= 1, file_format
    clear = encoded(Image.fromarray(np.full((8, 8), 300, np.uint16)), transparency=300)
    assert (decode(clear, 8) == 255).all()
    for values in (ramp.astype(np.float32), ramp.astype(np.int32)):
        with pytest.raises(ValueError, match="32 bits a pixel.*range"):
            decode(encoded(Image.fromarray(values), "TIFF"), 64)


def profile(swap=("rXYZ", "gXYZ")):
    """sRGB with two of its primaries exchanged: what it calls red is green."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    places = {bytes(data[132 + 12 * i : 136 + 12 * i]).decode(): 132 + 12 * i for i in range(count)}
    for name, other in (swap, swap[::-1]) if swap else ():
        data[places[name] : places[name] + 4] = other.encode()
    return bytes(data)


def colours():
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("file_format", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("TIFF", "RGB")]
)
def test_a_colour_profile_is_converted_to_srgb(file_format, mode):
    image = colours().convert(mode)
    pixels = np.asarray(image.convert("RGB")).astype(int)
    options = {"lossless": True} if file_format == "WEBP" else {}
    decoded = decode(encoded(image, file_format, icc_profile=profile(), **options), 16)
    assert np.abs(decoded - pixels[..., [1, 0, 2]]).max() <= 2  # the file's red is shown as green
    plain = decode(encoded(image, file_format, icc_profile=profile(swap=None), **options), 16)
    assert np.array_equal(plain, pixels)  # sRGB itself changes no bit


def grey_profile():
    """Grey pixels that are linear in light: half of the light is level 188 of sRGB."""
    white, curve = (
        b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"curv\0\0\0\0" + struct.pack(">IH", 1, 256),
    )
    tags = [(b"wtpt", white, 156), (b"kTRC", curve + b"\0\0", 176)]
    table = struct.pack(">I", 2) + b"".join(n + struct.pack(">II", place, len(data)) for n, data, place in tags)
    header = bytearray(128)
    header[8:12], header[12:24], header[36:40] = b"\x02\x10\0\0", b"mntrGRAYXYZ ", b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    profile = bytes(header) + table + white + curve + b"\0\0"
    return struct.pack(">I", len(profile)) + profile[4:]


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_converted_to_srgb(mode):
    decoded = decode(png((128, 255)[: len(mode)] if mode == "LA" else 128, mode=mode, icc_profile=grey_profile()), 8)
    assert np.abs(decoded.astype(int) - 188).max() <= 1
    assert (decode(png((128,) * 3, icc_profile=grey_profile()), 8) == 128).all()  # not one of colours


def test_alpha_stays_with_a_converted_profile():
    decoded = decode(png((255, 0, 0, 0), mode="RGBA", icc_profile=profile()), 8)
    assert (decoded == 255).all()
    half = decode(png((255, 0, 0, 128), mode="RGBA", icc_profile=profile()), 8)
    assert np.abs(half[0, 0].astype(int) - [127, 255, 127]).max() <= 2


def test_a_profile_that_cannot_be_used_is_read_as_srgb_and_said(tmp_path):
    image = colours()
    files = {
        "garbage.png": encoded(image, icc_profile=b"garbage"),
        "grey.jpg": encoded(image.convert("L"), "JPEG", icc_profile=profile()),  # RGB profile of grey pixels: usable
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", icc_profile=profile()),
        "swapped.png": encoded(image, icc_profile=profile()),
        "deep.png": encoded(Image.fromarray(np.zeros((8, 8), np.uint16))),
        "moving.gif": encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")]),
    }
    folder_of(tmp_path / "a", files | {name.rpartition(".")[0] + ".txt": "x" for name in files})
    dataset = read(tmp_path / "a")
    assert len(dataset) == 6 and not dataset.ledger
    changed = {kind: row["count"] for kind, row in describe(dataset)["changed"].items()}
    assert changed == {
        "colour profile that cannot be used, read as sRGB": 2,
        "converted to sRGB from another colour profile": 2,
        "16 bits a pixel, scaled to 8": 1,
        "several frames, the first is read": 1,
    }
    assert np.array_equal(dataset.subset([dataset.names.index("garbage.png")]).pixels(16)[0], np.asarray(image))
    assert "2 colour profile that cannot be used, read as sRGB (first cmyk.jpg)" in describe_lines(dataset)[1]


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", *(["AVIF"] if AVIF else [])])
def test_of_several_frames_the_first_is_read(file_format):
    first, more = Image.new("RGB", (16, 16), "red"), [Image.new("RGB", (16, 16), c) for c in ("blue", "lime")]
    data = encoded(first, file_format, save_all=True, append_images=more)
    assert np.abs(decode(data, 16).astype(int) - [255, 0, 0]).max() <= 3
    assert images.open_image(data, 16).remarks == ("several frames, the first is read",)


def test_latents_of_images_that_were_decoded_otherwise_before_are_not_taken_from_an_old_cache():
    plain, deep = png(), encoded(Image.fromarray(np.zeros((8, 8), np.uint16)))
    assert images.row_content(plain) is plain
    photo = encoded(colours(), "JPEG", icc_profile=profile())
    for data in (deep, photo, png(icc_profile=profile()), encoded(colours(), "WEBP", icc_profile=profile())):
        assert images.row_content(data) != data
    assert images.row_content(encoded(colours().convert("LA"))) == encoded(colours().convert("LA"))


def test_a_photograph_is_cropped_or_padded_and_the_share_is_said(tmp_path):
    image = np.full((20, 30, 3), 60, np.uint8)
    image[:, :5], image[:, 25:] = 200, 200  # what a square crop cuts off
    folder = folder_of(tmp_path / "a", {"0.png": encoded(Image.fromarray(image)), "0.txt": "a"})
    cropped, padded = read(folder), read(folder, fit="pad")
    assert (cropped.pixels(20) == 60).all() and cropped.fit == "crop"
    assert (padded.pixels(30)[0, :5] == 255).all() and (padded.pixels(30)[0, 5:25] == image).all()
    assert (padded.split(False).subset([]).fit, cropped.fingerprint == padded.fingerprint) == ("pad", False)
    for dataset, told in (
        (cropped, "fit crop cuts off 33% of the area"),
        (padded, "fit pad adds white to 33% of the area"),
    ):
        lines = describe_lines(dataset)
        assert told in lines[0] and "warning: SK0405: data.fit" in lines[-1] and "25% expected" in lines[-1]
        assert not any("SK0405" in line for line in describe_lines(dataset, buckets=True))
    assert not any("SK0405" in line for line in describe_lines(load_images("openclipart")))
    assert load_images("openclipart").fit == "pad" and load_images("openclipart", fit="crop").fit == "crop"


def test_a_cache_of_another_fit_or_size_is_refused_by_name_and_an_old_padded_one_is_found(tmp_path, monkeypatch):
    from sanakit.data import store

    folder = folder_of(
        tmp_path / "a", {f"{i}.png": png((i, 9, 9)) for i in range(4)} | {f"{i}.txt": "a" for i in range(4)}
    )
    vae, out = VAES.get("pca-f8c4").tiny(), tmp_path / "out"
    cropped, padded = read(folder), read(folder, fit="pad")
    with monkeypatch.context() as before:  # versions before wrote no fit, and padded
        write = store.write

        def drop(root, facts, *a, **k):
            return write(root, {n: v for n, v in facts.items() if n != "fit"}, *a, **k)

        before.setattr(store, "write", drop)
        old = raw_latents(vae, padded, 32, cache=out)
    assert torch.equal(raw_latents(vae, padded, 32, cache=out, must_exist=True), old)
    with pytest.raises(SanakitError, match=r"SK0404.*: fit is pad, expected crop\n(.|\n)*--image-size 32 --fit crop"):
        raw_latents(vae, cropped, 32, cache=out, must_exist=True)
    with pytest.raises(SanakitError, match="SK0404.*size is 32, expected 64"):
        raw_latents(vae, padded, 64, cache=out, must_exist=True)
    raw_latents(vae, cropped, 32, cache=out)
    assert len(list(out.glob("latents-*"))) == 2


def test_an_image_whose_exif_cannot_be_read_is_named_and_the_others_are_read(tmp_path):
    bad = PngImagePlugin.PngInfo()
    bad.add_text("Raw profile type exif", "\nexif\n 10\nzz")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    turned = encoded(Image.new("RGB", (12, 8), "red"), exif=exif)
    files = {"bad.png": png(pnginfo=bad), "good.png": png(), "turned.png": turned}
    folder_of(tmp_path / "a", files | {"bad.txt": "x", "good.txt": "y", "turned.txt": "z"})
    found = read(tmp_path / "a")
    assert found.names == ["good.png", "turned.png"] and list(reasons(found)) == ["bad.png"]
    assert found.sizes().tolist() == [[12, 8], [8, 12]]


def test_whatever_a_decoder_raises_sets_one_image_aside(tmp_path, monkeypatch):
    folder_of(tmp_path / "a", {"0.png": png("red"), "0.txt": "x", "1.png": png("blue"), "1.txt": "y"})
    open_image = images.open_image

    def fails(data, least):
        if data == png("red"):
            raise AttributeError("'str' object has no attribute 'decode'")
        return open_image(data, least)

    monkeypatch.setattr("sanakit.data.screen.open_image", fails)
    found = read(tmp_path / "a")
    assert found.names == ["1.png"] and reasons(found)["0.png"].startswith("AttributeError: 'str' object")


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_second_caption_file_of_one_stem_is_counted(tmp_path):
    folder = folder_of(tmp_path / "a", {"0.png": png(), "0.TXT": "read", "0.txt": "counted"})
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this file system does not tell capitals apart")
    dataset = read(folder)
    assert dataset.captions == [["read"]]
    assert describe(dataset)["ignored"] == {
        ".txt that differ from another in capitals alone": {"count": 1, "first": "0.txt"}
    }


def test_every_file_of_a_folder_is_read_set_aside_or_counted(tmp_path):
    image = Image.new("RGB", (8, 8), "red")
    data = {
        "a.TIFF": encoded(image, "TIFF"),
        "b.avif": encoded(image, "AVIF" if AVIF else "PNG"),
        "c.jfif": encoded(image, "JPEG"),
        "d.JPG": encoded(image, "JPEG"),
        "e.jp2": encoded(image, "JPEG2000"),
        "f.image": png(),
        "g": png(),
        "sub/h.png": png(),
    }
    aside = {
        "i.heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
        "j.svg": b"<?xml version='1.0'?><svg/>",
        "k.nef": encoded(image, "TIFF"),
        "l.jpg": b"<!DOCTYPE html><p>404",
        "m.png": b"version https://git-lfs.github.com/spec/v1\n",
        "n.png": b"",
        "o.jxl": b"\xff\x0a\0\0",
    }
    texts = {
        name.rpartition("/")[0] + "/" * ("/" in name) + name.rpartition("/")[2].split(".")[0] + ".TXT": "x"
        for name in data
    }
    texts |= {name.split(".")[0] + ".txt": "x" for name in aside} | {"p.txt": "no image of it"}
    other = {"README.md": "x", "m.jsonl": "{}", "r.tar": "x", "s.tar": "x"}
    hidden = {"._a.png": png(), ".DS_Store": b"x", ".ipynb_checkpoints/a.png": png(), "__MACOSX/sub/a.png": png()}
    uncaptioned = {"q.png": png(), "q.tags": "x", "t.png": png(), "t.txt": "\n"}
    folder = folder_of(tmp_path / "a", data | aside | texts | other | hidden | uncaptioned)
    (folder / "u.png").symlink_to(folder / "gone.png")
    (folder / "u.txt").write_text("x")
    os.mkfifo(folder / "v.pipe")  # to open one would wait for ever
    dataset = read(folder)
    assert dataset.names == sorted(data) and not {name for name in dataset.names if name.startswith(".")}
    told = reasons(dataset)
    assert set(told) == {*aside, "q.png", "t.png", "u.png"}
    for name, part in {
        "i.heic": "HEIC",
        "j.svg": "SVG",
        "k.nef": ".nef with TIFF inside",
        "l.jpg": "found HTML",
        "m.png": "Git LFS pointer",
        "n.png": "an empty file",
        "o.jxl": "JPEG XL",
        "q.png": "no caption: q.txt does not exist, found q.tags",
        "t.png": "no caption: t.txt is empty",
        "u.png": "link to a file that does not exist",
    }.items():
        assert part in told[name], told[name]
    ignored = {kind: row["count"] for kind, row in describe(dataset)["ignored"].items()}
    assert ignored == {
        "hidden files": 2,
        "hidden folders": 2,
        ".md": 1,
        ".jsonl": 1,
        ".tar": 2,
        ".tags": 1,
        ".txt without an image": 1,
        "links and devices": 1,
    }
    seen = len(dataset) + len(told) + sum(ignored.values())
    assert seen == len(data | aside | other) + len(hidden) + 6  # q.png, q.tags, t.png, u.png, v.pipe, p.txt
    line = describe_lines(dataset)[1]
    assert line.startswith("  ignored: 2 .tar, 2 hidden files, 2 hidden folders") and "README.md" in line


def test_names_in_another_encoding_are_escaped_wherever_they_are_told(tmp_path):
    folder = folder_of(tmp_path / "a", {"0.png": png(), "0.txt": "a"})
    for name, content in ((b"caf\xe9.png", png()), (b"caf\xe9.txt", b"b"), (b"th\xe9.md", b""), (b"th\xe9.heic", b"x")):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(content)
    dataset = read(folder)
    assert dataset.names == ["0.png", "caf\\udce9.png"] and dataset.fingerprint
    assert "th\\udce9.md" in describe_lines(dataset)[1] and "\n".join(describe_lines(dataset)).encode()


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    folder = folder_of(tmp_path / "a", {"x/0.png": png(), "x/0.txt": "a"})
    elsewhere = folder_of(
        tmp_path / "b", {"1.png": png("blue"), "1.txt": "b", "deep/2.png": png("green"), "deep/2.txt": "c"}
    )
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder / "x")
    (folder / "x" / "loop").symlink_to(folder)
    dataset = read(folder)
    assert dataset.names == ["linked/1.png", "linked/deep/2.png", "x/0.png"]
    assert describe(dataset)["ignored"]["folders linked twice"]["count"] == 2


def test_a_caption_file_may_be_a_link_out_of_the_folder_as_a_manifest_may_name_any_file(tmp_path):
    (tmp_path / "words.txt").write_text("from elsewhere")
    folder = folder_of(tmp_path / "a", {"0.png": png()})
    (folder / "0.txt").symlink_to(tmp_path / "words.txt")
    linked = read(folder)
    assert list(linked.captions) == [["from elsewhere"]]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.csv").write_text("image,caption\n../a/0.png,from elsewhere\n")
    assert list(read(tmp_path / "m" / "m.csv").captions) == [["from elsewhere"]]
    (tmp_path / "words.txt").write_text("changed words")  # the index follows the link
    assert list(read(folder).captions) == [["changed words"]]


def test_a_registered_data_set_that_is_not_ours_is_screened_and_states_its_own_fit(monkeypatch):
    from sanakit.data import DATASETS

    def mine():
        return ImageDataset(source="mine", names=["a", "b"], captions=[["x"]] * 2, images=[png(), b"broken"], fit="pad")

    monkeypatch.setitem(DATASETS._objects, "mine", mine)
    dataset = read("mine")
    assert dataset.names == ["a"] and dataset.fit == "pad" and "no image that can be read" in reasons(dataset)["b"]
    assert read("mine", fit="crop").fit == "crop"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_what_the_system_refuses_is_set_aside(tmp_path):
    folder = folder_of(tmp_path / "a", {"0.png": png(), "0.txt": "a", "1.png": png(), "1.txt": "b", "c/2.png": png()})
    (folder / "0.png").chmod(0)
    (folder / "c").chmod(0)
    try:
        assert set(reasons(read(folder)).values()) == {
            "cannot be read: Permission denied",
            "folder cannot be read: Permission denied",
        }
    finally:
        (folder / "c").chmod(0o755)


def test_every_member_of_a_shard_is_read_set_aside_or_counted(tmp_path):
    members = [("0.png", png("red")), ("0.txt", b"first"), ("1.png", png()), ("1.txt", b"one"), ("0.png", png("blue"))]
    members += [("0.txt", b"second"), ("0.jpg", encoded(colours(), "JPEG")), ("0.json", b'{"caption": "third"}')]
    members += [("._0.png", png()), ("__MACOSX/0.png", png()), ("2.tif", encoded(colours(), "TIFF")), ("2.TXT", b"two")]
    members += [("3.heic", b"\0\0\0\x18ftypheic"), ("4.cls", b"7"), ("5.image", png()), ("5.txt", b"five")]
    members += [
        ("6.png", png()),
        ("6.json", b"{broken"),
        ("7.png", png()),
        ("7.json", b'{"text": "x"}'),
        ("8.png", png()),
    ]
    members += [("9.png", png()), ("9.json", b'{"caption": ["a"], "scores": ["high"]}')]
    dataset = read(tar_of(tmp_path / "a.tar", members))
    assert dataset.names == [f"a.tar/{i}" for i in (0, 1, 2, 5)]
    assert dataset.captions == [["first", "third"], ["one"], ["two"], ["five"]] and dataset.images[0] == png("red")
    second = [row["reason"] for row in dataset.ledger if row["name"] == "a.tar/0"]
    assert second == [f"second sample of this key: {name} came before" for name in ("0.png", "0.jpg")]
    told = reasons(dataset)
    assert "HEIC" in told["a.tar/3.heic"] and "no JSON" in told["a.tar/6"] and "scores is ['high']" in told["a.tar/9"]
    assert told["a.tar/7"] == "no caption: found .json" and told["a.tar/8"] == "no caption: found the image alone"
    assert describe(dataset)["ignored"] == {
        "hidden files": {"count": 2, "first": "._0.png"},
        ".cls": {"count": 1, "first": "4.cls"},
    }


def test_a_shard_that_was_cut_is_refused_in_a_header_and_counted_between_two_members(tmp_path):
    path = Path(
        tar_of(tmp_path / "a.tar", [part for i in range(4) for part in ((f"{i}.png", png()), (f"{i}.txt", b"x"))])
    )
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        place = tar.getmember("2.png").offset
    path.write_bytes(whole[: place + 200])
    with pytest.raises(SanakitError, match=rf"SK0401.*a.tar is cut or damaged at byte {place}"):
        read(path)
    path.write_bytes(whole[:place] + b"x" * 512 + whole[place + 512 :])
    with pytest.raises(SanakitError, match="SK0401.*cut or damaged"):
        read(path)
    path.write_bytes(whole[:place])
    dataset = read(path)
    assert len(dataset) == 2 and "without an end mark" in next(iter(describe(dataset)["ignored"]))


def test_what_is_not_read_names_what_was_found(tmp_path):
    folder = folder_of(tmp_path / "a", {"metadata.jsonl": "{}"} | {f"{i}.zip": "x" for i in range(4)})
    with pytest.raises(SanakitError, match="SK0401.*holds no image, found 4 .zip, metadata.jsonl"):
        load_images(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SanakitError, match="SK0401.*holds no image, found nothing"):
        load_images(str(tmp_path / "empty"))
    folder_of(folder, {"0.png": png(), "1.png": png()})
    with pytest.raises(SanakitError, match=r"SK0401.*0.png: no caption.*not read: 4 .zip, metadata.jsonl"):
        load_images(str(folder))
    with pytest.raises(SanakitError, match=r"(?s)SK0401.*\{3\.\.0\} runs backwards.*Write \{0\.\.3\}"):
        load_images(str(folder / "{3..0}.tar"))
    folder_of(tmp_path, {"x.zip": "x"})
    with pytest.raises(SanakitError, match="SK0401.*is a .zip; read are"):
        load_images(str(tmp_path / "x.zip"))
    folder_of(tmp_path, {"M.CSV": "image,caption\na/0.png,fine\n"})
    assert load_images(str(tmp_path / "M.CSV")).captions == [["fine"]]


# --- ledgers and descriptions ----------------------------------------------------------------------------------------


def refused_folder(path):
    files = {f"{i}.png": png((i, 0, 0)) if i else b"broken" for i in range(8)} | {f"{i}.txt": "x" for i in range(8)}
    return folder_of(path, files)


def ledger_of(message):
    path = message.partition("all reasons: ")[2].splitlines()[0]
    return path, [json.loads(line) for line in open(path, encoding="utf-8")]  # noqa: PTH123


def test_a_refused_data_set_writes_its_ledger_and_says_where(tmp_path):
    from sanakit.config import make_config
    from sanakit.run import RunFolder
    from sanakit.swap.context import Swap

    folder = refused_folder(tmp_path / "a")
    with pytest.raises(SanakitError, match="SK0402.*1 of 8 images set aside") as error:
        load_images(str(folder))
    path, rows = ledger_of(error.value.found)
    assert path.startswith(str(tmp_path / "cache" / "ledgers")) and [row["name"] for row in rows] == ["0.png"]
    config = make_config({"base": "none", "vae": {"name": "pca-f8c4"}, "data": {"source": str(folder)}})
    swap = Swap(config=config, run=RunFolder(tmp_path, config), ledger=tmp_path / "run" / "ledger.jsonl")
    with pytest.raises(SanakitError, match="SK0402") as error:
        assert swap.images
    assert ledger_of(error.value.found)[0] == str(tmp_path / "run" / "ledger.jsonl")
    config = make_config({"data": {"source": str(folder), "max_set_aside": 1.0}})
    swap = Swap(config=config, run=RunFolder(tmp_path, config), ledger=tmp_path / "few.jsonl")
    with pytest.raises(SanakitError, match="SK0403.*7 images.*1 were set aside, reasons: .*few.jsonl"):
        assert swap.images
    assert "broken" not in (tmp_path / "few.jsonl").read_text() and "0.png" in (tmp_path / "few.jsonl").read_text()


def test_a_run_reads_its_images_and_captions_by_its_configuration(tmp_path):
    from sanakit.config import make_config
    from sanakit.run import RunFolder
    from sanakit.swap.context import Swap

    files = {f"{i}.png": png((i, 0, 0)) for i in range(64)} | {f"{i}.txt": "a\nb" for i in range(64)}
    source = str(folder_of(tmp_path / "a", files))
    for options, fit, captions in (({}, "crop", ["a", "b"]), ({"fit": "pad", "captions": "whole"}, "pad", ["a b"])):
        config = make_config({"data": {"source": source} | options})
        splits = Swap(config=config, run=RunFolder(tmp_path, config)).splits
        assert {half.fit for half in splits} == {fit} and splits[0].captions[0] == captions
    with pytest.raises(SanakitError, match="SK0104.*data.fit"):
        make_config({"data": {"fit": "stretch"}})


def test_encode_writes_the_ledger_of_refused_data_and_describes_what_it_reads(tmp_path, capsys, monkeypatch):
    from sanakit import cli

    VAES.get("pca-f8c4").tiny().save(tmp_path / "vae")
    folder, out = refused_folder(tmp_path / "a"), tmp_path / "out"

    def call(*more):
        arguments = ["sanakit", "encode", "--vae", f"path:{tmp_path}/vae", "--data", str(folder), "--out", str(out)]
        monkeypatch.setattr("sys.argv", [*arguments, "--image-size", "32", *more])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    code, _, message = call()
    assert code == 2 and "SK0402" in message and f"all reasons: {out}/ledger.jsonl" in message
    assert "0.png" in (out / "ledger.jsonl").read_text()
    line = (
        f"data: {folder}: 7 images, 7 captions (1 an image); fit crop cuts off 33% of the area; 1 set aside (1 no image"
    )
    code, text, _ = call("--max-set-aside", "0.5")
    assert code == 0 and line in text and "warning: SK0405" in text
    code, text, errors = call("--max-set-aside", "0.5", "--json", "--fit", "pad", "--captions", "whole")
    document = json.loads(text)
    assert code == 0 and "fit pad adds white to 33%" in errors and document["data"]["fit"] == "pad"
    assert document["entries"][0]["facts"]["fit"] == "pad" and document["data"]["set_aside"] == 1
    code, _, message = call("--fit", "stretch")
    assert code == 2 and "SK0104" in message and "crop or pad" in message


def test_the_line_of_a_data_set_without_images_to_measure_is_still_a_line():
    assert describe(ImageDataset(source="x", names=[], captions=[], images=[]))["area_share"] == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_describes_its_data_on_the_terminal(capsys, tmp_path, as_json):
    from sanakit.cli.view import print_data

    print_data(load_images("openclipart"), tmp_path, as_json=as_json)
    captured = capsys.readouterr()
    told, silent = (captured.err, captured.out) if as_json else (captured.out, captured.err)
    assert told.startswith("data: openclipart: 4,815 images") and not silent
    assert re.search(r"\n  sizes \d+ x \d+.* px; captions such as: .+ \(.+\); .+ \(.+\)\n", told), told


@pytest.mark.parametrize("source", ["./nothing-here", "photos/2024", "~/images"])
def test_a_path_that_is_not_there_is_said_to_be_a_path(source):
    with pytest.raises(SanakitError) as caught:
        load_images(source)
    assert caught.value.code == "SK0101"
    assert "no file or folder" in str(caught.value) and str(Path.cwd()) in str(caught.value)


def wide_grey():
    return Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16))


def turned_photo():
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(Image.linear_gradient("L").resize((16, 8)).convert("RGB"), "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize(
    "data",
    [
        encoded(wide_grey()),
        turned_photo(),
        encoded(Image.new("CMYK", (8, 8), (0, 128, 128, 0)), "JPEG"),
        png(mode="RGBA", colour=(255, 0, 0, 128)),
        encoded(Image.linear_gradient("L").resize((8, 8)).convert("P")),
    ],
    ids=["16-bit grey", "a turned photo", "inks", "transparent", "a palette"],
)
def test_an_image_that_another_library_opened_is_the_same_image(data):
    """Of a data set in memory, as of its file."""
    opened = Image.open(io.BytesIO(data))
    found = read_objects([(opened, "one"), (data, "two")])
    assert len(found) == 2, found.ledger
    first, second = (images.open_image(one, 8).image for one in found.images)
    assert first.size == second.size and np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 2


def test_rows_in_memory_that_say_nothing_sure_are_set_aside():
    wide = Image.fromarray(np.full((8, 8), 70000, np.int32))
    red = {"image": Image.new("RGB", (8, 8), "red"), "text": np.array(["red", "a square"]), "name": "a"}
    found = read_objects([red, red, {"image": wide, "text": "grey", "name": "b"}])
    assert found.captions == [["red", "a square"]]
    assert reasons(found) == {
        "a": "a second row of this name",
        "b": "32 bits a pixel (mode I): the range of the values is unknown",
    }
