"""Plain English titles for the packed openclipart images, and their measured colours: the words of their captions.

    python experiments/assets/name_openclipart.py

Reads sanakit/assets/openclipart-96.parquet and writes sanakit/assets/openclipart-titles.tsv: `name`, `title`,
`colours`. A title that says nothing ("icon", "people", an author's name) gives way to the file's own name, then to
the collection's folder; Italian and French titles are translated by experiments/assets/words/openclipart_english.tsv.
A folder whose images look alike names itself in the title ("niger flag", "home icon").
"""

import argparse
import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track

from sanakit.data.embedded_captions import measure_colours
from sanakit.data.images import decode

ASSETS = Path("sanakit/assets")
WORDS = Path(__file__).parent / "words"
SIZE = 96
MAX_WORDS = 7  # of a title: with two colours, the style and the two ends it is read within 16 tokens

RULES = json.loads((WORDS / "openclipart_rules.json").read_text())
VAGUE = set(RULES["vague"])  # titles that say nothing
CONCRETE = set(RULES["concrete"])  # those of them that stay where nothing better is known
NOISE, PARTS = set(RULES["noise"]), set(RULES["parts"])  # words that go; words that file names glue together
SPELLING = RULES["spelling"]
SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades"}
RANKS = {"a": "ace", "j": "jack", "q": "queen", "k": "king", "1": "ace"}
KINDS = (  # folder, the words that its images are known by, and words that make them superfluous
    ("computer/icons/", "icon", "icon"),
    ("computer/buttons/", "button", "button"),
    ("signs_and_symbols/flags/", "flag", "flag"),
    ("signs_and_symbols/map_symbols/", "map symbol", "symbol"),
    ("recreation/games/cards/", "playing card", "card|clubs|spades|hearts|diamonds"),
    ("special/patterns/", "pattern", "pattern"),
    ("people/stickmen/", "stick figure", "stick"),
    ("people/smilies/", "smiley", "smiley|smile"),
    ("transportation/roadsigns/", "road sign", "sign"),
    ("shapes/arrows/", "arrow", "arrow"),
    ("shapes/stars/", "star", "star"),
    ("shapes/jigsaw/", "jigsaw piece", "jigsaw|puzzle"),
    ("shapes/flowchart/", "flowchart shape", "shape"),
    ("shapes/callouts/", "speech bubble", "bubble|callout"),
    ("signs_and_symbols/led/", "light", "light|diodes"),
)  # fmt: skip


def split_compound(word: str) -> str:
    """downarrow -> down arrow, where every part is a known word; else the word itself."""
    if word in PARTS:
        return word
    for cut in range(len(word) - 2, 1, -1):
        if word[:cut] in PARTS:
            rest = split_compound(word[cut:])
            if rest.split(" ")[0] in PARTS:
                return f"{word[:cut]} {rest}"
    return word


def tidy(text: str, creator: str = "") -> str:
    """Lower-case English words only: no numbers, marks, serials, authors."""
    text = re.sub(r"&#? ?\w*;?", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", text)).lower()
    words = re.findall(r"[^\W\d_]+(?:['’][a-z]+)?", re.sub(r"\(.*", " ", text))
    authors = {w for w in re.findall(r"[^\W\d_]+", creator.lower()) if len(w) > 2}
    words = [split_compound(w) for w in words if w not in NOISE and w not in authors]
    kept = [w for w in words if len(w) > 1 or w == "a"]
    return " ".join(dict.fromkeys(" ".join(kept).split())).strip()


def stem_words(name: str, creator: str) -> str:
    """The file's own name without serials and without the author, which the collection cuts off after 25 characters."""
    stem = name.rsplit("/", 1)[-1]
    words = [w for w in re.split(r"[_\-\d+]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", stem)) if w]
    authors = re.findall(r"[^\W\d_]+", creator.lower())
    while len(words) > 1 and any(a.startswith(words[-1].lower()) for a in authors):
        words.pop()
    return tidy(" ".join(words), creator)


def card_title(name: str) -> str:
    match = re.search(r"/cards/\w+/(\w+?)_([cdhs])_(\w+)$", name)
    return f"{RANKS.get(match[3], match[3])} of {SUITS[match[2]]} playing card" if match else ""


def folder_words(name: str) -> str:
    parts = [p for p in name.split("/")[:-1] if p not in ("signs_and_symbols", "special", "unsorted", "recreation")]
    words = tidy(parts[-1].replace("-theme", "").replace("flat", "")) if parts else ""
    return re.sub(r"(?<=[a-z]{3}[^s])s$", "", words) if words else ""


def plain_title(name: str, raw: str, creator: str, keywords: list[str], english: dict[str, str]) -> str:
    """One image's title by the rules of this file's first docstring."""
    if card := card_title(name):
        return card
    title = english.get(raw, "")
    if not title:
        stem = english.get(stem_words(name, creator), stem_words(name, creator))
        vague = raw in VAGUE or tidy(raw, creator) in VAGUE | {""}
        title = (stem if vague and len(stem) > 2 else "") or tidy(raw, creator)
        title = english.get(title, title)
    if points := re.search(r"star_(\d+)pt", name):
        title = f"star with {points[1]} points"
    useful = [tidy(k) for k in keywords]
    useful = [k for k in useful if k and k not in VAGUE and not k.endswith("s") and "theme" not in k]
    if len(title) < 3 or title in VAGUE - CONCRETE:
        title = next(iter(useful), "") or folder_words(name) or title or "drawing"
    title = " ".join(SPELLING.get(word, word) for word in title.split())
    for folder, kind, known in KINDS:
        if name.startswith(folder) and not re.search(rf"\b({known})", title):
            title = f"{title} {kind}" if title.split()[-1] != kind.split()[0] else f"{title} {kind.split()[-1]}"
    if colour := re.search(r"jigsaw_(\w+?)_\d", name):
        title = f"{colour[1]} jigsaw piece"
    title = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return " ".join(english.get(title, title).split()[:MAX_WORDS])


def read_english() -> dict[str, str]:
    """Titles that are translated or set right by hand."""
    return dict(line.split("\t") for line in (WORDS / "openclipart_english.tsv").read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS / "openclipart-titles.tsv")
    args = parser.parse_args()
    table = pd.read_parquet(ASSETS / "openclipart-96.parquet")
    english = read_english()
    rows = []
    for row in track(table.itertuples(), "naming", total=len(table)):
        keywords = row.captions[-1].split(", ")[1:]
        title = plain_title(row.name, row.captions[0], row.creator, keywords, english)
        colours = measure_colours(np.asarray(decode(row.image, SIZE, "pad")))
        rows.append((row.name, title, " ".join(colours)))
    with args.out.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("name", "title", "colours"), *rows])
    shared = Counter(title for _, title, _ in rows)
    alike = sum(n for n in shared.values() if n > 1)
    card = {
        "recipe": "experiments/assets/name_openclipart.py (no random number is drawn)",
        "data": {
            "source": "openclipart-96.parquet",
            "sha256": hashlib.sha256((ASSETS / "openclipart-96.parquet").read_bytes()).hexdigest(),
        },
        "quality": {"titles": len(rows), "that_others_share": alike},
        "licence": "public domain (each image's own metadata)",
    }
    args.out.with_suffix(".card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"{len(rows)} titles, {alike} share one; {shared.most_common(40)}")


if __name__ == "__main__":
    main()
