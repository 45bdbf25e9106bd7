"""Pipeline folders in: diffusers' SanaPipeline (1.0, 1.5, Sprint) and what `sanakit export` writes.

Read subfolder by subfolder through the same loaders as every component (safetensors only, classes by allowlist),
never through DiffusionPipeline.from_pretrained, so no file of a folder is executed.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.files import refuse_pointer
from sanakit.text_encoders import TEXT_ENCODERS, TextEncoder
from sanakit.weights.find import TRANSFORMERS, find_weights, read_tensors, said

INDEX = "model_index.json"
OWN_CLASS = "SanakitPipeline"
OWN_PATH = f"sanakit.interop.pipeline.{OWN_CLASS}"  # as an index names it, so that diffusers' errors say what to use
PIPELINES = ("SanaPipeline", "SanaSprintPipeline", OWN_CLASS)
SUBFOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
NULL_FILE = "null_embedding.safetensors"  # in the core's folder
SPRINT_SHIFT = 3.0  # SCMScheduler states none; Sana's own at 1024 px


def pipeline_card(reference: str, folder: Path) -> dict[str, Any]:
    """What a base's card.json says, read from a pipeline folder; reference: how its components are named from now on.

    Raises SK0603 for a folder that is no Sana pipeline.
    """
    index = read_index(folder)
    for name in SUBFOLDERS:
        if not (folder / name).is_dir():
            raise SanakitError("SK0603", f"{folder} has no subfolder {name}, expected {', '.join(SUBFOLDERS)}")
    separator = ":" if reference.startswith("hub:") and reference.count(":") == 1 else "/"
    stated = index.get("sanakit")
    return {
        "vae": f"{reference}{separator}vae",
        "text_encoder": f"{reference}{separator}text_encoder",
        "image_size": stated["image_size"] if stated else _stock_image_size(folder, index),
        "flow_shift": flow_shift_of(_read(folder / "scheduler" / "scheduler_config.json")),
        "pipeline": index["_class_name"],
        "licence": stated["licence"] if stated else "as stated by its publisher",
    }


def read_index(folder: Path) -> dict[str, Any]:
    index = _read(folder / INDEX)
    class_name = _class_of(index)
    if class_name not in PIPELINES:
        raise SanakitError("SK0603", f"{folder / INDEX} names {class_name}, expected one of {', '.join(PIPELINES)}")
    if class_name == OWN_CLASS and "sanakit" not in index:
        raise SanakitError("SK0603", f"{folder / INDEX} names {OWN_CLASS} but lacks its section `sanakit`")
    return index | {"_class_name": class_name}


def _class_of(index: dict[str, Any]) -> str:
    """The pipeline class that an index names, with or without its module."""
    return str(index.get("_class_name")).removeprefix(OWN_PATH.removesuffix(OWN_CLASS))


def is_sana_pipeline(folder: Path) -> bool:
    """Whether a folder is one of the pipelines that sanakit reads;
    any other pipeline's encoder is read by its class."""
    return (folder / INDEX).is_file() and _class_of(_read(folder / INDEX)) in PIPELINES


def _read(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0603", f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise SanakitError("SK0603", f"{path} holds {type(content).__name__}, expected an object")
    return content


def _stock_image_size(folder: Path, index: dict[str, Any]) -> int:
    """sample_size times the ratio as SanaPipeline counts it, from the DC-AE's stages."""
    core, vae = _read(folder / "transformer" / "config.json"), _read(folder / "vae" / "config.json")
    if vae.get("_class_name") != "AutoencoderDC":
        raise SanakitError(
            "SK0603",
            f"{index['_class_name']} with a {vae.get('_class_name')}: it decodes AutoencoderDC only, others silently "
            "wrong",
        )
    try:
        return int(core["sample_size"]) * 2 ** (len(vae["encoder_block_out_channels"]) - 1)
    except (KeyError, TypeError) as error:
        raise SanakitError("SK0603", f"{folder}: the configs do not tell the image size: {error}") from error


def flow_shift_of(scheduler: dict[str, Any]) -> float:
    """What a scheduler's config states. Raises SK0603 where it states none."""
    if scheduler.get("_class_name") == "SCMScheduler":
        return SPRINT_SHIFT
    shift = scheduler.get("flow_shift", scheduler.get("shift"))
    if shift is None:
        raise SanakitError("SK0603", f"scheduler {scheduler.get('_class_name')} states no flow shift")
    return float(shift)


def load_pipeline_encoder(folder: Path) -> TextEncoder:
    """The text encoder of a pipeline folder with its tokenizer, by the policy that the index states, or by Sana's."""
    from sanakit.text_encoders.gemma import sana_spec
    from sanakit.text_encoders.tokenizers import rows_of
    from sanakit.text_encoders.transformer import TransformerEncoder, width_of

    stated = read_index(folder).get("sanakit")
    model = _load_text_model(folder / "text_encoder")
    tokenizer = _load_tokenizer(folder / "tokenizer", rows_of(model))
    if stated is None:
        return TransformerEncoder(model, tokenizer, sana_spec(width_of(model)))
    try:
        facts = stated["text_encoder"]
        return _encoder_class(facts["class"])(model, tokenizer, TextSpec(**facts["spec"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SanakitError("SK0603", f"{folder / INDEX}: section `sanakit`: {error}") from error


def _encoder_class(path: str) -> Any:
    """`module:Class` of a registered family; an index cannot make sanakit import anything else."""
    module, _, name = path.partition(":")
    allowed = {entry.module for entry in TEXT_ENCODERS.entries().values()} | {"sanakit.text_encoders.transformer"}
    if module not in allowed:
        raise SanakitError("SK0603", f"the text encoder's class {path} belongs to no registered component")
    encoder_class = getattr(importlib.import_module(module), name, None)
    if not (isinstance(encoder_class, type) and issubclass(encoder_class, TextEncoder)):
        raise SanakitError("SK0603", f"{path} is no text encoder")
    return encoder_class


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file. Raises SK0107, SK0121 or SK0122."""
    tensors = read_tensors(path)
    if name not in tensors:
        raise SanakitError("SK0107", f"{path} holds {', '.join(sorted(tensors)[:3]) or 'no tensor'}, expected {name}")
    return tensors[name]


def _load_text_model(folder: Path) -> nn.Module:
    """A transformers model in the precision that it was saved in, or a static table."""
    if _read(folder / "config.json").get("_class_name") == "Embedding":
        files = find_weights(folder, TRANSFORMERS).files
        return nn.Embedding.from_pretrained(read_tensor(files[0], "weight"))
    from sanakit.text_encoders.architectures import load_transformer

    return load_transformer(folder)


def _load_tokenizer(folder: Path, rows: int | None) -> Any:
    from tokenizers import Tokenizer

    from sanakit.text_encoders.tokenizers import load_tokenizer

    if (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        refuse_pointer(folder / "tokenizer.json")
        try:
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises no narrower type
            raise SanakitError("SK0126", f"{folder / 'tokenizer.json'}: {said(error)}") from error
    return load_tokenizer(folder, rows)


def save_null(encoder: TextEncoder, core_folder: Path) -> None:
    """Hand a kept null embedding on with the core that was trained with it."""
    from safetensors.torch import save_file

    if encoder.kept_null is not None:
        save_file({"embeds": torch.clone(encoder.kept_null.embeds[0])}, core_folder / NULL_FILE)
