"""Images with an embedded ICC profile to sRGB, by LittleCMS as Pillow wraps it.

A profile that cannot be used (damaged, or of another colour space than the pixels) is left aside and the pixels are
read as sRGB, as web browsers do; the caller is told.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

SAME = 2  # levels of 255: a profile that moves no colour further is sRGB itself
CONVERTED = "converted to sRGB from another colour profile"
UNUSABLE = "colour profile that cannot be used, read as sRGB"
GREYS = ("1", "L", "LA", "La")


def to_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The image as RGB or RGBA in sRGB, and what was done, if anything."""
    grey, stated, profile = image.mode in GREYS, "icc_profile" in image.info, image.info.get("icc_profile")
    if image.mode not in ("RGB", "L", "CMYK") or "transparency" in image.info:
        image = image.convert("RGBA")
    if not stated:
        return _plain(image), ""
    try:
        transform, mode = _transform(profile or b"")
        if (mode == "L" and not grey) or (mode == "CMYK") != (image.mode == "CMYK"):
            return _plain(image), UNUSABLE
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return _plain(image), UNUSABLE
    if transform is None:
        return _plain(image), ""
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    colours = image if image.mode == "CMYK" else image.convert("RGB")
    out = ImageCms.applyTransform(colours.getchannel("R") if mode == "L" else colours, transform)
    assert out is not None  # None would be of a transform in place
    if alpha is not None:
        out.putalpha(alpha)
    return out, CONVERTED


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGBA" else image.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The transform to sRGB, None where it would change nothing, and the mode it reads: RGB, L or CMYK."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = str(opened.profile.xcolor_space).strip()
    mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
    if mode is None:
        raise ValueError(f"a profile of colour space {space}")
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return transform, mode
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    probe = Image.fromarray(cube) if mode == "RGB" else Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - np.asarray(probe.convert("RGB"))
    return (None if np.abs(moved).max() <= SAME else transform), mode
