"""Names that a shell completes: read from sources and cards, nothing is imported for them."""

import glob
from pathlib import Path

from sanakit.registry import PACKAGES, Registry

CORES = Path(__file__).parent.parent / "assets" / "cores"


def components(kind: str, incomplete: str) -> list[str]:
    """Registered names of a kind that begin so."""
    registry: Registry[object] = Registry(kind)
    return [name for name in registry.names() if name.startswith(incomplete)]


def vaes(incomplete: str) -> list[str]:
    return components("vaes", incomplete)


def text_encoders(incomplete: str) -> list[str]:
    return components("text-encoders", incomplete)


def candidates(incomplete: str) -> list[str]:
    return vaes(incomplete) + text_encoders(incomplete)


def strategies(incomplete: str) -> list[str]:
    return [name for name in ["auto", *components("strategies", "")] if name.startswith(incomplete)]


def bases(incomplete: str) -> list[str]:
    return sorted(path.parent.name for path in CORES.glob(f"{glob.escape(incomplete)}*/card.json"))


def kinds(incomplete: str) -> list[str]:
    return [kind for kind in [*PACKAGES, "bases"] if kind.startswith(incomplete)]
