"""Pack the public-domain openclipart collection into one parquet file for the embedded world.

    apt-get download openclipart-svg openclipart-png
    for deb in openclipart-*.deb; do dpkg-deb -x $deb openclipart; done
    python experiments/assets/pack_openclipart.py openclipart/usr/share/openclipart \\
        --out sanakit/assets/openclipart-96.parquet

One row per image: `name` (the path inside the collection, the identity that the split hashes), `captions`
(title, title with keywords), `creator`, `image` (WebP, 96 px, on white). The SVG of an image gives its words
and its licence, the PNG its pixels. An image stays only if its own metadata carries the public-domain tag,
it opens, it shows something and nothing already packed evaluations the same. Everything set aside is a row of the
ledger beside the output, with the reason.
"""

import argparse
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.progress import track

SIZE = 96
MAX_SAME_CAPTION = 40  # a thousand polygons that are all called "star" teach a core nothing
PUBLIC_DOMAIN = ("http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/")
CC, DC = "{http://web.resource.org/cc/}", "{http://purl.org/dc/elements/1.1/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
Image.MAX_IMAGE_PIXELS = 50_000_000  # a few PNGs exceed 100 megapixels; Pillow refuses at twice this


@dataclass(kw_only=True)
class Drawing:
    name: str
    title: str = ""
    keywords: list[str] = field(default_factory=list)
    creator: str = ""
    image: bytes = b""
    signature: np.ndarray | None = None
    reason: str = ""


def read_metadata(path: Path, drawing: Drawing) -> None:
    root = ElementTree.parse(path).getroot()
    work = root.find(f".//{CC}Work")
    licence = None if work is None else work.find(f"{CC}license")
    resource = "" if licence is None else licence.get(f"{RDF}resource", "")
    if resource not in PUBLIC_DOMAIN:
        drawing.reason = f"licence tag is {resource or 'missing'}"
        return
    drawing.title = tidy(work.findtext(f"{DC}title") or "")
    drawing.keywords = [tidy(item.text or "") for item in work.iterfind(f"{DC}subject//{RDF}li")]
    drawing.creator = (work.findtext(f"{DC}creator//{DC}title") or "").strip()


def tidy(text: str) -> str:
    """Human words only: no underscores, no serial numbers, no author suffix."""
    text = re.sub(r"[_/]+", " ", text)
    text = re.sub(r"(?i)\b(clip ?arts?( by .*)?|open ?clip ?art.*|svg|unsorted|remix|version|hash)\b", " ", text)
    text = re.sub(r"(?i)\bby [A-Z].*$", " ", text)
    text = re.sub(r"\b\w*\d\w*\b", " ", text)
    return re.sub(r"\s+", " ", text).strip(" .,;:-+()'\"").lower()


def render(path: Path, drawing: Drawing) -> None:
    with Image.open(path) as file:
        layer = file.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    pixels = np.asarray(canvas, np.float32)
    if pixels.std() < 8 or (np.abs(pixels - 255).max(-1) > 24).mean() < 0.03:
        drawing.reason = "empty: almost one colour"
        return
    small = canvas.resize((12, 12), Image.Resampling.BOX)
    drawing.signature = np.asarray(small, np.float32).reshape(-1)
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=88, method=6)
    drawing.image = buffer.getvalue()


def load(job: tuple[Path, Path]) -> Drawing:
    root, path = job
    relative = path.relative_to(root / "svg").with_suffix("")
    drawing = Drawing(name=relative.as_posix())
    try:
        read_metadata(path, drawing)
        if not drawing.reason:
            render((root / "png" / relative).with_suffix(".png"), drawing)
    except (ElementTree.ParseError, OSError, Image.DecompressionBombError) as error:
        drawing.reason = f"broken: {error}"
    return drawing


def captions(drawing: Drawing, common_titles: set[str]) -> list[str]:
    """Title alone, then title with up to four keywords; categories stand in where a title says nothing."""
    category = [tidy(part) for part in drawing.name.split("/")[:-1]]
    creator = drawing.creator.lower()
    words = [w for w in drawing.keywords + category[::-1] if len(w) > 1 and w != creator]
    words = list(dict.fromkeys(w for w in words if w != drawing.title))
    title = drawing.title
    if len(title) < 3 or title in common_titles or len(title) > 60:
        stem = tidy(re.sub(r"_\w+_+\d+$", "", drawing.name.rsplit("/", 1)[-1]).replace("-", " "))
        title = stem if 3 <= len(stem) <= 40 else ""
    first = title or (words[0] if words else "")
    rest = [w for w in words if w != first][:4]
    return list(dict.fromkeys(c for c in (first, ", ".join([first, *rest])) if c))


def drop_duplicates(drawings: list[Drawing]) -> None:
    """The same drawing: thumbnails (12 x 12) that differ by under a tenth of what the image itself differs from
    white."""
    candidates = [p for p in drawings if not p.reason]
    signatures = np.stack([p.signature for p in candidates])
    ink = np.abs(signatures - 255).mean(1)
    kept: list[int] = []
    for index, drawing in enumerate(track(candidates, "duplicates")):
        similar = [k for k in kept if abs(ink[k] - ink[index]) < 0.1 * ink[index]]
        if similar:
            distance = np.abs(signatures[similar] - signatures[index]).mean(1)
            nearest = int(distance.argmin())
            if distance[nearest] < 0.1 * ink[index]:
                drawing.reason = f"resembles {candidates[similar[nearest]].name}"
                continue
        kept.append(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="folder that holds svg/ and png/")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    jobs = [(args.collection, path) for path in sorted((args.collection / "svg").rglob("*.svg"))]
    with ProcessPoolExecutor() as pool:
        drawings = list(track(pool.map(load, jobs, chunksize=16), "rendering", total=len(jobs)))
    drop_duplicates(drawings)

    titles = Counter(p.title for p in drawings if not p.reason)
    common = {title for title, count in titles.items() if count > 12}
    rows = []
    uses: Counter[str] = Counter()
    for drawing in drawings:
        if drawing.reason:
            continue
        texts = captions(drawing, common)
        if not texts:
            drawing.reason = "no title and no keywords"
        elif uses[texts[-1]] >= MAX_SAME_CAPTION:
            drawing.reason = f"{MAX_SAME_CAPTION} images with this caption already: {texts[-1]}"
        else:
            uses[texts[-1]] += 1
            rows.append({"name": drawing.name, "captions": texts, "creator": drawing.creator, "image": drawing.image})
    pd.DataFrame(rows).to_parquet(args.out, index=False, compression="zstd")

    ledger = [{"name": p.name, "reason": p.reason} for p in drawings if p.reason]
    args.out.with_suffix(".ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    card = {
        "recipe": "experiments/assets/pack_openclipart.py",
        "data": {"source": "Debian openclipart-svg and openclipart-png", "sha256": digest},
        "quality": {"images": len(rows), "set_aside": len(ledger), "size_px": SIZE},
        "licence": "public domain (each image's own metadata)",
    }
    args.out.with_suffix(".card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{len(rows)} images, {len(ledger)} set aside, {args.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
