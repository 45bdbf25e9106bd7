"""Names that a command is given: refused with what was meant, before anything heavy is imported or a folder is made."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sanakit.errors import SanakitError
from sanakit.files import cache_dir
from sanakit.records import read_json
from sanakit.registry import Registry, with_scheme

OTHER_KIND = {"vaes": "text-encoders", "text-encoders": "vaes"}
NOUNS = {"vaes": "VAE", "text-encoders": "text encoder"}
OTHER_COMMAND = {
    "vaes": "Run `sanakit swap-vae --candidate NAME`.",
    "text-encoders": "Run `sanakit swap-text-encoder --candidate NAME`.",
}


def check_names(config: Any) -> None:
    """Misspelt names and a cache that cannot be written are refused before anything heavy is imported or a run folder
    is made."""
    cache_dir()
    for kind, name in (
        ("vaes", config.vae.name),
        ("text-encoders", config.text_encoder.name),
        ("adapters", config.adapter.name),
        ("strategies", None if config.train.strategy == "auto" else config.train.strategy),
    ):
        name = name.partition("?")[0] if name and kind == "text-encoders" else name
        if not name or name.partition(":")[0] in ("path", "hub"):
            continue
        registry: Registry[Any] = Registry(kind)
        if name not in registry.entries():
            if kind in OTHER_KIND:
                _refuse_what_was_meant(kind, name)
            registry.get(name)  # raises with suggestions
    base = config.base
    if base.partition(":")[0] not in ("path", "hub") and (wanted := with_scheme(base)):
        raise SanakitError("SK0101", f"{base!r} is a path, expected a name", fix=f"Use --base {wanted}")


def _refuse_what_was_meant(kind: str, name: str) -> None:
    """A path without its `path:`, or a component of the other kind."""
    if wanted := with_scheme(name):
        raise SanakitError("SK0101", f"{name!r} is a path, expected a name", fix=f"Use {wanted}")
    other = OTHER_KIND[kind]
    registry: Registry[Any] = Registry(other)
    if name in registry.entries():
        raise SanakitError(
            "SK0101",
            f"{name!r} is a {NOUNS[other]}, expected a {NOUNS[kind]}",
            fix=OTHER_COMMAND[other].replace("NAME", name),
        )


def model_named(model: str) -> str:
    """The base that `--model` names: a run folder is its model, another folder or file itself. Raises SK0106 for a run
    without a model."""
    path = Path(model.removeprefix("path:")).expanduser()
    if not path.exists():
        return model
    if (path / "config.yaml").is_file() and not (path / "card.json").is_file():
        if not (path / "model" / "card.json").is_file():
            raise SanakitError(
                "SK0106",
                f"{path} is a run that holds no model",
                fix=f"sanakit validate --stage full --run-dir {path}",
            )
        path = path / "model"
    return f"path:{path}"


def require_run(run_dir: Path) -> None:
    """Raises SK0130 where the folder is no run; it names the runs whose names are near."""
    if (run_dir / "config.yaml").is_file():
        return
    known = [path.parent for place in (run_dir.parent, Path("runs")) for path in sorted(place.glob("*/config.yaml"))]
    names = {str(path): path.name for path in known}
    close = get_close_matches(run_dir.name, list(names.values()), n=2, cutoff=0.5)
    near = [path for path, name in names.items() if name in close]
    hint = f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""
    raise SanakitError("SK0130", f"{run_dir} holds no config.yaml{hint}")


def stage_to_resume(run_dir: Path) -> str:
    """The stage that was interrupted, else the first that was not run; the last one where all are done."""
    try:
        stages = read_json(run_dir / "validation.json", {}).get("stages")
    except (OSError, ValueError):
        stages = None  # the run says what is wrong with it
    done = stages if isinstance(stages, dict) else {}
    if "smoke" not in done and (run_dir / "race").is_dir():
        return "smoke"
    if "full" not in done and any((run_dir / "checkpoints").glob("step-*")):
        return "full"
    return next((stage for stage in ("component", "smoke", "full") if stage not in done), "full")
