"""A data set in one line: how many images and captions, what was set aside, ignored or changed, and what the fit
costs."""

from collections import Counter
from typing import Any

import numpy as np

from sanakit.data.images import image_size
from sanakit.data.names import safe_name
from sanakit.data.table import ImageDataset
from sanakit.errors import warning_text

SAMPLE = 512  # images whose size is read where a data set was not screened
MUCH = 0.25  # share of the area that may be cut or padded without a warning
REASONS = 3  # that the line names
EXAMPLES = 2  # captions that are shown
MEASURED = 64  # images whose sizes are told


def describe(dataset: ImageDataset) -> dict[str, Any]:
    """Facts of a data set for a line, a page or JSON.

    area_share: mean share of an image's area that the crop cuts off, or of the square that is padding; area_largest: of
    the image that loses most. lines: captions that are lines of a caption file with several. reasons: of what was set
    aside.
    """
    counts = dataset.caption_counts()
    shares = _shares(dataset)
    survey = dataset.survey
    return {
        "source": dataset.source,
        "images": len(dataset),
        "captions": int(counts.sum()),
        "captions_per_image": [int(counts.min()), int(counts.max())] if len(counts) else [0, 0],
        "captions_base": bool(dataset.captions_base),
        "lines": int(dataset.indexed.numbers("lines").sum()) if dataset.indexed is not None else 0,
        "set_aside": len(dataset.ledger),
        "reasons": dict(Counter(row["reason"].partition(":")[0] for row in dataset.ledger).most_common()),
        "ignored": survey.ignored.as_dict(),
        "changed": survey.changed.as_dict(),
        "decoded": survey.decoded or len(dataset),
        "fit": dataset.fit,
        "area_share": round(float(shares.mean()), 4),
        "area_largest": round(float(shares.max()), 4),
        "sizes": _sizes_text(dataset),
        "examples": examples(dataset),
    }


def describe_lines(dataset: ImageDataset, *, ledger: str = "ledger.jsonl", buckets: bool = False) -> list[str]:
    """The line that describes a data set, then a line of what was changed or ignored where there is any, and a warning
    (SK0405) where the fit costs much. buckets: training reads whole images in aspect buckets, squares are for
    evaluation."""
    facts, survey = describe(dataset), dataset.survey
    fewest, most = facts["captions_per_image"]
    each = f"{fewest} an image" if fewest == most else f"{fewest} to {most} an image"
    parts = [f"data: {facts['source']}: {facts['images']:,} images, {facts['captions']:,} captions ({each})"]
    if facts["captions_base"]:
        parts.append("the base reads captions_base")
    if facts["lines"]:
        parts.append(
            f"{facts['lines']:,} captions are lines of caption files with several (data.captions=whole joins them)"
        )
    done = "cuts off" if facts["fit"] == "crop" else "adds white to"
    parts.append(f"fit {facts['fit']} {done} {facts['area_share']:.0%} of the area")
    if facts["set_aside"]:
        told = [f"{count:,} {reason}" for reason, count in facts["reasons"].items()][:REASONS]
        told += ["others"] if len(facts["reasons"]) > REASONS else []
        parts.append(f"{facts['set_aside']:,} set aside ({', '.join(told)}), reasons in {ledger}")
    lines = ["; ".join(parts)]
    if survey.changed:
        told = [f"{row['count']:,} {kind} (first {row['first']})" for kind, row in facts["changed"].items()]
        of_sample = f" of {survey.decoded:,} decoded" if survey.decoded else ""
        lines.append(f"  read otherwise than they are{of_sample}: {'; '.join(told)}")
    if survey.ignored:
        lines.append(f"  ignored: {survey.ignored.text()}")
    if facts["examples"]:
        captions = "; ".join(f"{row['caption']:.80} ({row['name']})" for row in facts["examples"])
        lines.append(f"  sizes {facts['sizes']}; captions such as: {captions}")
    if facts["area_share"] > MUCH and not buckets:
        lines.append("warning: " + warning_text("SK0405", _cost(facts)))
    return [safe_name(line) for line in lines]


def _cost(facts: dict[str, Any]) -> str:
    done = "cuts off" if facts["fit"] == "crop" else "is white for"
    return (
        f"data.fit {facts['fit']} {done} {facts['area_share']:.0%} of the area of an image on average "
        f"({facts['area_largest']:.0%} at most), {MUCH:.0%} expected at most"
    )


def examples(dataset: ImageDataset) -> list[dict[str, str]]:
    """The first caption of EXAMPLES images at even distances."""
    chosen = _spread(len(dataset), EXAMPLES)
    return [
        {
            "name": safe_name(dataset.names[i]),
            "caption": safe_name(dataset.captions[i][0] if dataset.captions[i] else ""),
        }
        for i in chosen
    ]


def _spread(length: int, count: int) -> list[int]:
    """At most `count` rows of `length` at even distances."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist() if length else []


def _sizes_text(dataset: ImageDataset) -> str:
    """`96 x 96 px`, or from the smallest to the largest by area, of MEASURED images at even distances."""
    chosen = _spread(len(dataset), MEASURED)
    sizes = sorted((image_size(dataset.images[i]) for i in chosen), key=lambda size: (size[0] * size[1], size))
    if not sizes:
        return ""
    (width, height), (most_width, most_height) = sizes[0], sizes[-1]
    if sizes[0] == sizes[-1]:
        return f"{width} x {height} px"
    return f"{width} x {height} to {most_width} x {most_height} px"


def _shares(dataset: ImageDataset) -> np.ndarray:
    """The share that every image loses; of evenly spread ones where the sizes were not read. (n,)"""
    sizes = dataset.sizes()
    if sizes is None:
        chosen = np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int)
        sizes = np.array([image_size(dataset.images[i]) for i in chosen])
    return 1 - sizes.min(1) / sizes.max(1) if len(sizes) else np.zeros(1)
