"""The decision study's plan: which swaps are run, and which of them only the final evaluation reads.

The list stood before any of these swaps was run. Swaps that the earlier study ran (EARLIER, on bases and captions of
then) may fit the forecast; the evaluation third is drawn by a seeded rule from the others. Changing this file after
runs have begun changes `plan_fingerprint`, which every run carries.
"""

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

SEED = 2  # of the draw of the evaluation third
EVALUATED = {"vae": 10, "text": 6}  # swaps of the evaluation third
SECOND = 1  # the second seed, for swaps that arrive after LATE steps
LATE = 200


@dataclass(frozen=True, order=True, kw_only=True)
class StudySwap:
    """base: of study_world.BASES. kind: "vae" or "text". candidate: as study_candidates.name_of reads it. scratch: is
    the core trained from scratch too, and is the candidate "near" the base's own component or one of the "others";
    "" for not."""

    base: str
    kind: str
    candidate: str
    scratch: str = ""

    @property
    def name(self) -> str:
        return f"{self.base} {self.kind} {self.candidate}"


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One swap with one seed."""

    swap: StudySwap
    seed: int
    evaluation: bool

    @property
    def name(self) -> str:
        return f"{self.swap.name} seed {self.seed}"

    @property
    def folder(self) -> str:
        return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in self.name)


def swaps(base: str, kind: str, candidates: str, scratch: str = "") -> list[StudySwap]:
    return [StudySwap(base=base, kind=kind, candidate=name, scratch=scratch) for name in candidates.split()]


EARLIER = [
    *swaps("dc-minilm", "vae", "near-dc moved-dc", "near"),
    *swaps("dc-minilm", "vae", "dc-f16c16 kl-f8c4 pca-f8c8", "others"),
    *swaps("dc-minilm", "vae", "pca-f16c32"),
    *swaps("dc-minilm", "text", "wordllama minilm-5 untrained-minilm"),
    *swaps("pca-wordllama", "vae", "pca-f16c24 pca-f16c48 pca-rotated", "near"),
    *swaps("pca-wordllama", "vae", "dc-f16c16 pca-f16c16", "others"),
    *swaps("pca-wordllama", "vae", "dc-f16c32"),
    *swaps("pca-wordllama", "text", "minilm untrained-minilm"),
]
NEW = [
    *swaps("tiny-sana", "vae", "dc-f16c16 kl-f8c4 pca-f16c32"),
    *swaps("tiny-sana", "text", "wordllama minilm?layer=3 mpnet-packaged"),
    *swaps("dc-minilm", "vae", "far-dc moved-dc16 moved-kl cosine-f16c32 pca-f8c12 pca-f16c64 pca-emoji"),
    *swaps("dc-minilm", "text", "minilm?layer=3 minilm?layer=mean minilm-noise-20 wordllama-64"),
    *swaps("dc-minilm", "text", "mpnet-packaged gemma-3-270m-gguf"),
    *swaps("pca-wordllama", "vae", "pca-f16c20 pca-f16c40 pca-tilted pca-tilted-more pca-emoji"),
    *swaps("pca-wordllama", "vae", "cosine-f16c32 cosine-f8c8 pca-f32c96"),
    *swaps("pca-wordllama", "text", "wordllama-64 wordllama-noise minilm?layer=1"),
    *swaps("pca-wordllama", "text", "mpnet-packaged?layer=6 gemma-3-270m-gguf?layer=9"),
]
SWAPS = EARLIER + NEW


def evaluation_third() -> set[StudySwap]:
    """The swaps that only the final evaluation reads: of every kind,
    those of NEW with the lowest hash of seed and name."""
    chosen: set[StudySwap] = set()
    for kind, count in EVALUATED.items():
        eligible = [swap for swap in NEW if swap.kind == kind]
        chosen |= set(sorted(eligible, key=draw)[:count])
    return chosen


def draw(swap: StudySwap) -> str:
    return hashlib.sha256(f"{SEED} {swap.name}".encode()).hexdigest()


def runs(late: Collection[str] = ()) -> list[StudyRun]:
    """In the order in which they are run: the evaluation third, the other swaps, then second seeds. late: names of
    swaps that arrived after LATE steps at the first seed."""
    held = evaluation_third()
    ordered = sorted(SWAPS, key=lambda swap: swap not in held)  # stable: else as listed
    first = [StudyRun(swap=swap, seed=0, evaluation=swap in held) for swap in ordered]
    second = [StudyRun(swap=swap, seed=SECOND, evaluation=swap in held) for swap in ordered if swap.name in late]
    return first + second


def plan_fingerprint(listed: Iterable[StudySwap] = tuple(SWAPS)) -> str:
    """Of the swaps, and of which of them are held back."""
    held = evaluation_third()
    return hashlib.sha256(json.dumps([[asdict(swap), swap in held] for swap in sorted(listed)]).encode()).hexdigest()[
        :12
    ]
