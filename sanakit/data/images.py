"""Encoded images to sRGB pixels: upright, colour profiles converted, alpha on white, cropped or padded to the size.

What a file is, is told by its first bytes, never by its suffix.
"""

import io
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sanakit.data.colour import to_srgb

SIDE = 48  # pixels of what caches and snapshots carry: at most 6.9 KB per image

MAX_PIXELS = 64_000_000  # a decompression bomb is set aside before it is decoded
AVIF = ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()  # Pillow 11.2 and later
DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", *AVIF)
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pnm"),
)
FITS = ("crop", "pad")
SPARE = 2  # a JPEG is decoded at the smallest eighth that leaves this many times the size that is asked for
PREPROCESSING = f"Lanczos, JPEG at {SPARE}x"  # part of a cache's key
COLOUR_MARKS = (b"ICC_PROFILE\0", b"iCCP", b"ICCP")  # a colour profile in JPEG, PNG and WebP
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_EXIF = (b"eXIf", b"Raw profile type", b"com.adobe.xmp")  # where a PNG may state its orientation
SWAPPED = (5, 6, 7, 8)  # orientations that exchange width and height
HEAD = 512  # bytes that `found_format` reads
SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"\0\0\1\0", "icon"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x8b", "gzip"),
    (b"version https://git-lfs", "Git LFS pointer (git lfs pull fetches the file)"),
)
FOREIGN = ("HEIC", "JPEG XL", "Photoshop", "OpenEXR", "icon", "SVG")  # images that are not read


@dataclass(frozen=True, kw_only=True)
class Opened:
    """image: RGB, upright, a JPEG perhaps at a fraction of its size. width, height: of the whole image as it is shown.
    remarks: what was changed on the way, one text a kind."""

    image: Image.Image
    width: int
    height: int
    remarks: tuple[str, ...]


def decode(data: bytes, size: int | tuple[int, int], fit: str = "crop") -> np.ndarray:
    """(size, size, 3) uint8 sRGB; for a pair (height, width) always cropped.

    fit: `crop` scales the image to cover the size and keeps the middle; `pad` scales it to lie inside, on white. Raises
    ValueError, or what Pillow raises, for what cannot be decoded.
    """
    height, width = (size, size) if isinstance(size, int) else size
    image = open_image(data, SPARE * max(height, width)).image
    if image.size != (width, height):
        if fit == "pad" and isinstance(size, int):
            image = ImageOps.pad(image, (width, height), Image.Resampling.LANCZOS, color="white")
        else:
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def open_image(data: bytes, least: int) -> Opened:
    """Decode an image. least: a JPEG is decoded at the smallest eighth whose sides are still this many pixels.

    Raises ValueError that names the format found, or what Pillow raises for a damaged file.
    """
    with _open(data) as file:
        width, height = shown_size(file)
        animated = file.format != "MPO" and getattr(file, "is_animated", False)
        file.draft(None, (least, least))
        file.load()
        turn = TURNS.get(file.getexif().get(ORIENTATION, 1))
        image: Image.Image = file if turn is None else file.transpose(turn)
    remarks = ["several frames, the first is read"] if animated else []
    if image.mode.startswith(("I", "F")):
        image, remarks = _eight_bits(image, file.format), [*remarks, "16 bits a pixel, scaled to 8"]
    image, remark = to_srgb(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return Opened(image=image, width=width, height=height, remarks=(*remarks, *([remark] if remark else [])))


def as_shown(image: Image.Image) -> Image.Image:
    """An image that another library has opened, in a mode that a PNG holds: upright, 16-bit grey scaled, inks as sRGB.
    Raises ValueError for 32 bits a pixel."""
    file_format = image.format
    if file_format != "TIFF" and image.getexif().get(ORIENTATION, 1) in TURNS:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image, file_format or "TIFF")
    return image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else to_srgb(image)[0]


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height as the image is shown. Raises as `open_image` for what its header already refuses."""
    with _open(data) as file:
        if file.format == "PNG" and not any(mark in data for mark in PNG_EXIF):
            return file.width, file.height  # Pillow decodes a PNG to find EXIF behind the pixels
        return shown_size(file)


def _open(data: bytes) -> Image.Image:
    try:
        file = Image.open(io.BytesIO(data), formats=DECODERS)
    except UnidentifiedImageError as error:
        raise ValueError(f"no image that can be read: found {found_format(data)}") from error
    if file.width * file.height > MAX_PIXELS:
        raise ValueError(f"too large: {file.width} x {file.height} pixels, cap {MAX_PIXELS}")
    return file


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as the image is shown, from its header alone."""
    with Image.open(io.BytesIO(data), formats=DECODERS) as file:
        return shown_size(file)


def shown_size(file: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after its EXIF rotation; Pillow turns a TIFF by itself."""
    turned = file.format != "TIFF" and file.getexif().get(ORIENTATION, 1) in SWAPPED
    return (file.height, file.width) if turned else (file.width, file.height)


def row_content(data: bytes) -> bytes:
    """What a row of the cache is keyed by: the bytes of the image, marked where earlier versions decoded them otherwise
    (colour profile ignored, 16-bit grey clipped), so that such a row is encoded again."""
    wide_grey = data[:8] == SIGNATURES[0][0] and data[24:26] == b"\x10\0"
    return data + b"sRGB" if wide_grey or any(mark in data for mark in COLOUR_MARKS) else data


def found_format(data: bytes) -> str:
    """The format that the first bytes tell, for messages; readable ones carry Pillow's names."""
    head = data[:HEAD]
    if not head:
        return "an empty file"
    for signature, name in SIGNATURES:
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "BMP"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "AVIF" if brand in (b"avif", b"avis") else "HEIC" if brand[:2] in (b"he", b"mi", b"ms") else "video"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    return f"bytes {head[:8].hex(' ')}"


def _eight_bits(image: Image.Image, file_format: str | None) -> Image.Image:
    """16-bit grey to L, or to LA where one value is transparent. Raises ValueError for 32 bits, whose range is
    unknown."""
    if not image.mode.startswith("I;16") and (image.mode != "I" or file_format == "TIFF"):
        raise ValueError(f"32 bits a pixel (mode {image.mode}): the range of the values is unknown")
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).clip(0, 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    grey.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return grey
