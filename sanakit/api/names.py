"""What can be asked for by name, plugins included; nothing is imported for it."""

from pathlib import Path

from sanakit.registry import Registry

CORES = Path(__file__).parents[1] / "assets" / "cores"


def list_vaes(*, embedded: bool | None = None) -> list[str]:
    """Names of VAEs. embedded: only those that need no model hub (True), or only those that do (False)."""
    return _names("vaes", embedded)


def list_text_encoders(*, embedded: bool | None = None) -> list[str]:
    """Names of text encoders. embedded: as in `list_vaes`."""
    return _names("text-encoders", embedded)


def list_datasets(*, embedded: bool | None = None) -> list[str]:
    """Names of data sets of images and captions. embedded: as in `list_vaes`."""
    return _names("datasets", embedded)


def list_strategies() -> list[str]:
    """Names of strategies, cheapest first."""
    return _names("strategies", None)


def list_bases() -> list[str]:
    """Names of bases that come with sanakit; any other is `path:DIR` or `hub:owner/repo`."""
    return sorted(path.name for path in CORES.iterdir() if (path / "card.json").is_file())


def _names(kind: str, embedded: bool | None) -> list[str]:
    registry: Registry[object] = Registry(kind)
    return [name for name, entry in registry.entries().items() if embedded in (None, entry.embedded)]
