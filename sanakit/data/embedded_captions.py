"""Captions of the embedded world: a plain title, and the title with measured colours before it and the source's style
behind.

Titles are human words (openclipart's and Unicode's, repaired); colours are measured from the pixels. See docs/data.md.
"""

import re
import unicodedata

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
GREYS = ("black", "grey", "white")  # hue rotation leaves them as they are
PAPER = 24  # levels of 255 below white at which a pixel belongs to the drawing
MAIN_SHARE = {True: 0.12, False: 0.3}  # of the drawing's pixels that makes a colour a main one: chromatic, or not
MAX_COLOURS = 2
CAPTION_KINDS = ("plain", "enriched")  # of an image's captions, in this order
PLAIN, ENRICHED = 0, 1

JOINERS = "\u200d\ufe0e\ufe0f"
TAGS = range(0xE0020, 0xE007F)  # tag characters spell the region of a flag
FLAG_MARKS = ("\U0001f3f4", "\U0001f3f3")
REGIONS = {
    "caon": "ontario", "caqc": "quebec", "debe": "berlin", "deby": "bavaria", "esan": "andalusia", "esar": "aragon",
    "esas": "asturias", "escb": "cantabria", "esce": "ceuta", "escl": "castile and leon", "escm": "castile la mancha",
    "escn": "canary islands", "esct": "catalonia", "esex": "extremadura", "esga": "galicia", "esib": "balearic islands",
    "esmc": "murcia", "esmd": "madrid", "esml": "melilla", "esnc": "navarre", "espv": "basque country",
    "esri": "la rioja", "esvc": "valencia", "frbre": "brittany", "itba": "bari", "mxque": "queretaro",
    "mxyuc": "yucatan", "usal": "alabama", "usca": "california", "usco": "colorado",
    "usdc": "washington", "ustx": "texas",
}  # fmt: skip
PARTS = {  # parts of joined emoji without a name of their own, or with one that says less
    "◉": "record button", "⬡": "hexagon", "▮": "", "mirror ball": "dancing", "A button (blood type)": "letter a",
    "\U0001fbc5": "stick figure", "\U0001fbc6": "stick figure", "\U0001fbc7": "stick figure leaning right",
    "\U0001fbc8": "stick figure leaning left", "\ue0ac": "", "\ue0ad": "", "female sign": "woman", "male sign": "man",
}  # fmt: skip


def name_pixels(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> index into COLOURS of every pixel: black, grey and white by brightness, the rest by hue."""
    values = rgb.astype(np.float32) / 255
    top, low = values.max(-1), values.min(-1)
    chroma = top - low
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    safe = np.maximum(chroma, 1e-6)
    hue = np.select(
        [top == red, top == green], [((green - blue) / safe) % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    degrees = 60 * hue
    edges = np.array([15, 42, 68, 165, 262, 305, 340])
    names = np.array(["red", "orange", "yellow", "green", "blue", "purple", "pink", "red"])
    index = np.array([COLOURS.index(n) for n in names])[np.searchsorted(edges, degrees, side="right")]
    saturation = chroma / np.maximum(top, 1e-6)
    index[(index == COLOURS.index("red")) & (top > 0.8) & (saturation < 0.5)] = COLOURS.index("pink")
    index[(degrees >= 8) & (degrees < 50) & (top < 0.72)] = COLOURS.index("brown")
    grey = (chroma < 0.12) | (saturation < 0.15)
    index[grey] = COLOURS.index("grey")
    index[grey & (top > 0.92)] = COLOURS.index("white")
    index[(top < 0.25) | (grey & (top < 0.33))] = COLOURS.index("black")
    return index


def colour_shares(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (len(COLOURS),) share of each colour among the pixels that are not white paper."""
    drawing = pixels[(255 - pixels.astype(np.int16)).max(-1) > PAPER]
    counts = np.bincount(name_pixels(drawing), minlength=len(COLOURS)).astype(np.float64)
    return counts / max(1.0, counts.sum())


def measure_colours(pixels: np.ndarray) -> list[str]:
    """(H, W, 3) uint8 on white -> one or two main colours, chromatic first, the larger first; [] of blank paper."""
    shares = colour_shares(pixels)
    if not shares.any():
        return []
    order = [COLOURS[i] for i in np.argsort(-shares, kind="stable")]
    main = [c for c in order if shares[COLOURS.index(c)] >= MAIN_SHARE[c not in GREYS]]
    main = sorted(main or order[:1], key=lambda colour: colour in GREYS)
    return main[:MAX_COLOURS]


def rotate_hue(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """(H, W, 3) uint8 with every hue turned; saturation and value stay, and so do black, grey and white."""
    from PIL import Image

    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).copy()
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(degrees / 360 * 256)) % 256
    turned = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    paper = (255 - pixels.astype(np.int16)).max(-1, keepdims=True) <= PAPER // 3
    return np.where(paper, pixels, turned)


def without_colours(title: str) -> str:
    """The title without colour words, unless nothing would be left."""
    kept = [word for word in title.split() if word not in COLOURS]
    while kept and kept[0] in ("and", "with", "of"):
        kept.pop(0)
    return " ".join(kept) or title


def enriched_caption(title: str, colours: list[str], style: str) -> str:
    """Colours and title first, style last: "red and black ladybug, emoji". An empty title is left out."""
    title = without_colours(title) if colours and title else title
    if title in COLOURS and title in colours:
        title = ""
    words = " ".join([" and ".join(colours), title]).strip()
    return f"{words}, {style}" if words else style


def image_captions(title: str, colours: list[str], style: str) -> list[str]:
    """An image's captions, at PLAIN and ENRICHED."""
    return [title, enriched_caption(title, colours, style)]


def emoji_title(text: str) -> str | None:
    """A plain lower-case title of an emoji from Unicode's names; None where a part has none, or for skin tones.

    Joined emoji that have no name of their own are named by their parts; tag sequences by their region.
    """

    if not text:
        return None
    tags = "".join(chr(ord(c) - 0xE0000) for c in text if ord(c) in TAGS)
    if tags:
        name = unicode_name(text) or f"{REGIONS[tags]} flag"
    elif unicode_name(text):
        name = unicode_name(text)
    else:
        parts = [part.strip(JOINERS) for part in text.split("\u200d")]
        names = [part_name(part) for part in parts]
        if len(parts) == 1 or None in names:
            return None
        name = joined_name(text, [n for n in names if n])
    if not name or "skin tone" in name:
        return None
    if len(text) == 2 and all("\U0001f1e6" <= c <= "\U0001f1ff" for c in text):
        name = f"{name} flag"
    plain = unicodedata.normalize("NFKD", name).replace("\u2019", "'").encode("ascii", "ignore").decode().lower()
    return re.sub(r"\s+", " ", re.sub(r"[^a-z0-9 #*'-]", " ", plain)).strip() or None


def unicode_name(text: str) -> str:
    """The name that the emoji package knows the whole text by, or nothing."""
    import emoji

    entry = emoji.EMOJI_DATA.get(text) or emoji.EMOJI_DATA.get(text + "\ufe0f")
    return entry["en"].strip(":").replace("_", " ") if entry else ""


def part_name(part: str) -> str | None:
    if part in FLAG_MARKS:
        return "flag"
    name = PARTS.get(part) if part in PARTS else unicode_name(part)
    name = PARTS.get(name or "", name)
    return name if name or part in PARTS else None


def joined_name(text: str, names: list[str]) -> str:
    """The parts as one title: colours before the thing ("red jar", "blue green and yellow flag"), things after it."""
    first, rest = names[0], names[1:]
    colours = [n.removesuffix(" large square").removesuffix(" square") for n in rest]
    kept = [c for c, n in zip(colours, rest, strict=True) if c != n]
    others = [n for c, n in zip(colours, rest, strict=True) if c == n]
    title = " ".join([*dict.fromkeys(kept), first])
    return f"{title} {' '.join(others)}" if others else title
