"""Write a plugin: pyproject.toml with its entry point, one module, one test that passes, a README."""

import importlib.util
import keyword
import re
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from sanakit import __version__
from sanakit.errors import SanakitError, did_you_mean
from sanakit.registry import Registry

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 60  # characters of a name


@dataclass(frozen=True, kw_only=True)
class Kind:
    """listing: as `sanakit ls` names it. attribute: what the module defines. noun: for texts. check: of
    sanakit.testing. use: a command that uses the plugin."""

    listing: str
    attribute: str
    noun: str
    check: str
    use: str


KINDS = {
    "vae": Kind(
        listing="vaes",
        attribute="Candidate",
        noun="VAE",
        check="check_vae",
        use="sanakit swap-vae --candidate $name",
    ),
    "text-encoder": Kind(
        listing="text-encoders",
        attribute="Candidate",
        noun="text encoder",
        check="check_text_encoder",
        use="sanakit swap-text-encoder --candidate $name",
    ),
    "gate": Kind(
        listing="gates",
        attribute="gate",
        noun="gate",
        check="check_gate",
        use="sanakit validate --stage component --vae pca-f8c4",
    ),
    "statistic": Kind(
        listing="drift",
        attribute="statistic",
        noun="drift statistic",
        check="check_statistic",
        use="sanakit drift REFERENCE CURRENT",
    ),
    "strategy": Kind(
        listing="strategies",
        attribute="Ours",
        noun="strategy",
        check="check_strategy",
        use="sanakit swap-vae --candidate pca-f8c4 --strategy $name",
    ),
    "dataset": Kind(
        listing="datasets",
        attribute="dataset",
        noun="data set",
        check="check_dataset",
        use="sanakit swap-vae --candidate pca-f8c4 --data $name",
    ),
    "metric": Kind(
        listing="metrics",
        attribute="measured",
        noun="metric",
        check="check_metric",
        use="sanakit evaluate --metrics $name",
    ),
}


MEASURED = {  # what the example of a gate reads: key of the evidence, code, metric, thresholds
    "component": ("psnr", "SK0201", "PSNR (dB)", "20.0", "22.0"),
    "smoke": ("prompt_gain", "SK0503", "prompt gain", "0.0", "0.1"),
    "full": ("prompt_gain", "SK0503", "prompt gain", "0.0", "0.1"),
}


def write_plugin(kind: str, name: str, out: Path | None = None) -> Path:
    """The folder of a new plugin. kind: a key of KINDS. name: small letters, digits and hyphens; of a gate with its
    stage before a slash, component where it is left out. out: the folder, by default NAME here. Raises SK0104 for a
    kind, SK0116 for a name or a folder."""
    if kind not in KINDS:
        raise SanakitError("SK0104", f"no kind {kind!r}{did_you_mean(kind, [*KINDS])}; known: {', '.join(KINDS)}")
    stage, _, plain = name.rpartition("/")
    _refuse_name(kind, stage, plain)
    record = KINDS[kind]
    registered = f"{stage or 'component'}/{plain}" if kind == "gate" else plain
    registry: Registry[Any] = Registry(record.listing)
    taken = registry.entries().get(registered)
    if taken is not None:
        raise SanakitError(
            "SK0116", f"{record.listing} has {registered!r} of {taken.origin} already", fix="Take another."
        )
    folder = Path(plain) if out is None else out
    if folder.exists():
        raise SanakitError("SK0116", f"{folder} exists already", fix="Give --out with a folder that does not.")
    values = {
        "name": registered,
        "distribution": plain,
        "module": plain.replace("-", "_"),
        "listing": record.listing,
        "group": "sanakit." + record.listing.replace("-", "_"),
        "attribute": record.attribute,
        "noun": record.noun,
        "check": record.check,
        "version": __version__,
    }
    values |= dict(zip(("key", "code", "metric", "default", "strict"), MEASURED[stage or "component"], strict=True))
    values["use"] = Template(record.use).substitute(values)
    _write(kind, folder, values)
    return folder


def _refuse_name(kind: str, stage: str, plain: str) -> None:
    if stage and (kind != "gate" or stage not in MEASURED):
        expected = "component/, smoke/ or full/ before it" if kind == "gate" else "no slash"
        raise SanakitError("SK0116", f"the name is {stage + '/' + plain!r}, expected {expected}")
    module = plain.replace("-", "_")
    if not NAME.fullmatch(plain) or len(plain) > LONGEST:
        found = f"the name is {plain!r:.80}, expected small letters, digits and single hyphens, at most {LONGEST}"
        raise SanakitError("SK0116", found)
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise SanakitError("SK0116", f"{module!r} is a module of Python or of an installed package already")


def _write(kind: str, folder: Path, values: dict[str, str]) -> None:
    """All files or none: they are written beside the folder, which is renamed."""
    module = values["module"]
    files = {
        "pyproject.toml": "pyproject.toml.txt",
        "README.md": "README.md.txt",
        f"{module}.py": f"{kind}.py.txt",
        f"test_{module}.py": f"test_{kind}.py.txt",
    }
    aside = folder.resolve().parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        aside.mkdir(parents=True)
        for file, template in files.items():
            text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(values)
            (aside / file).write_text(text, encoding="utf-8")
        aside.rename(folder)
    except OSError as error:
        raise SanakitError("SK0903", f"{folder}: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
