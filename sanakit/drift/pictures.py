"""Pictures of single rows, from sides that carry them: a tensor `pictures` (N, H, W, 3) uint8 beside the latents."""

import base64
import io
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sanakit.errors import SanakitError

SIZE = 96


def pictures_of(source: Path, rows: list[int]) -> dict[int, str]:
    """{row: PNG as a data URI}, rows counted over the shards of a folder; empty where there are no pictures."""
    from PIL import Image

    found, start = {}, 0
    for path in sorted(source.glob("*.safetensors")) if source.is_dir() else [source]:
        try:
            with safe_open(path, "pt") as handle:
                if "pictures" not in handle.keys():  # noqa: SIM118  a safetensors handle is no mapping
                    return {}
                stored = handle.get_slice("pictures")
                count, *shape = stored.get_shape()
                if len(shape) != 3 or shape[-1] != 3 or stored.get_dtype() != "U8":
                    raise SanakitError(
                        "SK0701", f"{path}: `pictures` is {stored.get_shape()}, expected uint8 (N, H, W, 3)"
                    )
                for row in (r for r in rows if start <= r < start + count):
                    picture = Image.fromarray(stored[row - start : row - start + 1][0].numpy())
                    picture.thumbnail((SIZE, SIZE))
                    buffer = io.BytesIO()
                    picture.save(buffer, "PNG")
                    found[row] = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        except (SafetensorError, OSError) as error:
            raise SanakitError("SK0701", f"{path} is no readable safetensors file: {error}") from error
        start += count
    return found
