"""Pack the public-domain openclipart collection into one parquet file for the embedded world.

    apt-get download openclipart-svg openclipart-png
    for deb in openclipart-*.deb; do dpkg-deb -x $deb openclipart; done
    python experiments/pack_openclipart.py openclipart/usr/share/openclipart --out sanakit/assets/openclipart-96.parquet

One row a picture: `name` (the path inside the collection, the identity that the split hashes), `captions`
(title, title with keywords), `creator`, `image` (WebP, 96 px, on white). The SVG of a picture gives its words
and its licence, the PNG its pixels. A picture stays only if its own metadata carries the public-domain tag,
it opens, it shows something and nothing already packed looks the same. Everything set aside is a row of the ledger beside the output, with the reason.
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
class Picture:
    name: str
    title: str = ""
    keywords: list[str] = field(default_factory=list)
    creator: str = ""
    image: bytes = b""
    signature: np.ndarray | None = None
    reason: str = ""


def read_metadata(path: Path, picture: Picture) -> None:
    root = ElementTree.parse(path).getroot()
    work = root.find(f".//{CC}Work")
    licence = None if work is None else work.find(f"{CC}license")
    resource = "" if licence is None else licence.get(f"{RDF}resource", "")
    if resource not in PUBLIC_DOMAIN:
        picture.reason = f"licence tag is {resource or 'missing'}"
        return
    picture.title = tidy(work.findtext(f"{DC}title") or "")
    picture.keywords = [tidy(item.text or "") for item in work.iterfind(f"{DC}subject//{RDF}li")]
    picture.creator = (work.findtext(f"{DC}creator//{DC}title") or "").strip()


def tidy(text: str) -> str:
    """Human words only: no underscores, no serial numbers, no author suffix."""
    text = re.sub(r"[_/]+", " ", text)
    text = re.sub(r"(?i)\b(clip ?arts?( by .*)?|open ?clip ?art.*|svg|unsorted|remix|version|hash)\b", " ", text)
    text = re.sub(r"(?i)\bby [A-Z].*$", " ", text)
    text = re.sub(r"\b\w*\d\w*\b", " ", text)
    return re.sub(r"\s+", " ", text).strip(" .,;:-+()'\"").lower()


def render(path: Path, picture: Picture) -> None:
    with Image.open(path) as file:
        layer = file.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    pixels = np.asarray(canvas, np.float32)
    if pixels.std() < 8 or (np.abs(pixels - 255).max(-1) > 24).mean() < 0.03:
        picture.reason = "empty: almost one colour"
        return
    small = canvas.resize((12, 12), Image.Resampling.BOX)
    picture.signature = np.asarray(small, np.float32).reshape(-1)
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=88, method=6)
    picture.image = buffer.getvalue()


def load(job: tuple[Path, Path]) -> Picture:
    root, path = job
    relative = path.relative_to(root / "svg").with_suffix("")
    picture = Picture(name=relative.as_posix())
    try:
        read_metadata(path, picture)
        if not picture.reason:
            render((root / "png" / relative).with_suffix(".png"), picture)
    except (ElementTree.ParseError, OSError, Image.DecompressionBombError) as error:
        picture.reason = f"broken: {error}"
    return picture


def captions(picture: Picture, common_titles: set[str]) -> list[str]:
    """Title alone, then title with up to four keywords; categories stand in where a title says nothing."""
    category = [tidy(part) for part in picture.name.split("/")[:-1]]
    creator = picture.creator.lower()
    words = [w for w in picture.keywords + category[::-1] if len(w) > 1 and w != creator]
    words = list(dict.fromkeys(w for w in words if w != picture.title))
    title = picture.title
    if len(title) < 3 or title in common_titles or len(title) > 60:
        stem = tidy(re.sub(r"_\w+_+\d+$", "", picture.name.rsplit("/", 1)[-1]).replace("-", " "))
        title = stem if 3 <= len(stem) <= 40 else ""
    first = title or (words[0] if words else "")
    rest = [w for w in words if w != first][:4]
    return list(dict.fromkeys(c for c in (first, ", ".join([first, *rest])) if c))


def drop_duplicates(pictures: list[Picture]) -> None:
    """The same picture: thumbnails (12 x 12) that differ by under a tenth of what the picture itself differs from white."""
    candidates = [p for p in pictures if not p.reason]
    signatures = np.stack([p.signature for p in candidates])
    ink = np.abs(signatures - 255).mean(1)
    kept: list[int] = []
    for index, picture in enumerate(track(candidates, "duplicates")):
        similar = [k for k in kept if abs(ink[k] - ink[index]) < 0.1 * ink[index]]
        if similar:
            distance = np.abs(signatures[similar] - signatures[index]).mean(1)
            nearest = int(distance.argmin())
            if distance[nearest] < 0.1 * ink[index]:
                picture.reason = f"looks like {candidates[similar[nearest]].name}"
                continue
        kept.append(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="folder that holds svg/ and png/")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    jobs = [(args.collection, path) for path in sorted((args.collection / "svg").rglob("*.svg"))]
    with ProcessPoolExecutor() as pool:
        pictures = list(track(pool.map(load, jobs, chunksize=16), "rendering", total=len(jobs)))
    drop_duplicates(pictures)

    titles = Counter(p.title for p in pictures if not p.reason)
    common = {title for title, count in titles.items() if count > 12}
    rows = []
    uses: Counter[str] = Counter()
    for picture in pictures:
        if picture.reason:
            continue
        texts = captions(picture, common)
        if not texts:
            picture.reason = "no title and no keywords"
        elif uses[texts[-1]] >= MAX_SAME_CAPTION:
            picture.reason = f"{MAX_SAME_CAPTION} pictures with this caption already: {texts[-1]}"
        else:
            uses[texts[-1]] += 1
            rows.append({"name": picture.name, "captions": texts, "creator": picture.creator, "image": picture.image})
    pd.DataFrame(rows).to_parquet(args.out, index=False, compression="zstd")

    ledger = [{"name": p.name, "reason": p.reason} for p in pictures if p.reason]
    args.out.with_suffix(".ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    digest = hashlib.sha256(args.out.read_bytes()).hexdigest()
    card = {
        "recipe": "experiments/pack_openclipart.py",
        "data": {"source": "Debian openclipart-svg and openclipart-png", "sha256": digest},
        "quality": {"pictures": len(rows), "set_aside": len(ledger), "size_px": SIZE},
        "licence": "public domain (each picture's own metadata)",
    }
    args.out.with_suffix(".card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{len(rows)} pictures, {len(ledger)} set aside, {args.out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")


if __name__ == "__main__":
    main()
