"""Where a component named by `path:` lies: the folder itself, a snapshot of the hub's cache, a part of a pipeline."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from sanakit.errors import SanakitError, did_you_mean
from sanakit.files import read_config, require_name, require_utf8

HUB_FOLDER = "models--"  # of huggingface_hub's cache: models--owner--repo/{blobs,refs,snapshots}
PIPELINE_INDEX = "model_index.json"
NAMED = 8  # parts of a folder that a message names


def local_path(text: str) -> Path:
    """The path that `path:TEXT` names: `~` expanded, and in a folder of the hub's cache its snapshot. It need not
    exist.

    Raises SK0104 for an empty text, SK0106 for a cache folder with several snapshots, none of which is `main`.
    """
    path = Path(require_name(text, "path:")).expanduser()
    for parent in (path, *path.parents):
        if parent.name.startswith(HUB_FOLDER) and (parent / "snapshots").is_dir():
            inside = path.relative_to(parent).parts
            if inside[:1] == ("snapshots",):
                if len(inside) > 1:
                    return path
                inside = ()
            return snapshot(parent).joinpath(*inside)
    return path


def from_anywhere(reference: str) -> str:
    """A component's name that does not depend on the working folder: `path:DIR` with its full path, any other as it
    is."""
    scheme, _, rest = reference.partition(":")
    if scheme != "path":
        return reference
    plain, question, query = rest.partition("?")
    return f"path:{os.path.normpath(Path(plain).expanduser().absolute())}{question}{query}"


def snapshot(folder: Path) -> Path:
    """The snapshot of a `models--owner--repo` folder: that of `refs/main`, or the only one. Raises SK0106."""
    snapshots = sorted(p for p in (folder / "snapshots").iterdir() if p.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text(encoding="utf-8").strip()
        if named in snapshots:
            return named
    if len(snapshots) != 1:
        names = ", ".join(p.name for p in snapshots[:3]) or "none"
        raise SanakitError(
            "SK0106",
            f"{folder} is a folder of the hub's cache with {len(snapshots)} snapshots: {names}",
            cause="The files of a cached repository lie in its snapshots, and none of these is the branch main.",
            fix=f"Name one of them: path:{folder}/snapshots/REVISION",
        )
    return snapshots[0]


def require_folder(folder: Path, name: str, known: list[str]) -> Path:
    """Raises SK0106 for a path that is no folder, or that is not UTF-8. known: registered names, to suggest one."""
    require_utf8(folder, "the component", "SK0106")
    if folder.is_dir():
        return folder
    if folder.is_file():
        fix = f"Name the folder with this file and its config.json: path:{folder.parent}"
        raise SanakitError("SK0106", f"{folder} is a file, expected a folder", fix=fix)
    raise SanakitError("SK0106", f"{folder} is not a folder{did_you_mean(name, known)}")


def spellings(folder: Path) -> list[Path]:
    """The folder by its full path as it was named, and where symbolic links lead: what lies beside it may lie beside
    either."""
    named = Path(os.path.normpath(folder.absolute()))
    real = named.resolve()
    return [named] if real == named else [named, real]


def refuse_whole_pipeline(folder: Path, name: str, kind: str, fits: Callable[[Path], bool]) -> None:
    """Raises SK0124 for a folder without config.json whose subfolders hold components. name: what the user gave. kind:
    what was expected. fits: whether a subfolder is of that kind."""
    if (folder / "config.json").is_file():
        return
    parts = sorted(p for p in folder.iterdir() if (p / "config.json").is_file())
    is_pipeline = (folder / PIPELINE_INDEX).is_file()
    suited = [p.name for p in parts if fits(p)]
    if not is_pipeline and not suited:
        return
    separator = ":" if name.startswith("hub:") and name.count(":") == 1 else "/"
    base = name.rstrip("/")
    if suited and name.startswith("path:") and not local_path(f"{base[5:]}/{suited[0]}").is_dir():
        base = f"path:{folder}"  # `snapshots` in the hub's cache stands for the folder of a revision
    offers = " or ".join(f"{base}{separator}{part}" for part in suited[:NAMED])
    names = ", ".join(p.name for p in parts[:NAMED]) or "no component"
    names += f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
    raise SanakitError(
        "SK0124",
        f"{folder} is {'a pipeline' if is_pipeline else 'a folder of components'} ({names}), expected {kind}",
        fix=f"Use {offers}."
        if suited
        else f"Name a pipeline with {kind} in it; this one has none that sanakit can load.",
    )


def class_named(folder: Path, key: str) -> str:
    """`_class_name` or `model_type` of a folder's config.json; empty where there is none to read."""
    try:
        return str(read_config(folder).get(key, ""))
    except (SanakitError, json.JSONDecodeError):
        return ""
