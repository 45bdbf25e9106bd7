"""Pipeline folders out: stock where SanaPipeline renders the same, by measurement; else under sanakit's own class.

Written aside, read back, then renamed: a folder that exists is whole.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Gemma2PreTrainedModel

from sanakit.adapters import adapters_of
from sanakit.core.dit import save_core
from sanakit.errors import SanakitError
from sanakit.formats.pipeline_folder import INDEX, OWN_PATH, save_null
from sanakit.loading import load_vae
from sanakit.text_encoders import TextEncoder
from sanakit.text_encoders.gemma import INSTRUCTION, sana_spec
from sanakit.vaes import VAE
from sanakit.vaes.saving import write_vae

STOCK_SIZES = {16: 512, 32: 1024, 64: 2048, 128: 4096}  # sample_size to pixels, as SanaPipeline's resolution bins say
PROBE = "A red apple"


def export_pipeline(
    out: Path,
    *,
    core: SanaTransformer2DModel,
    vae: VAE,
    text_encoder: TextEncoder,
    image_size: int,
    flow_shift: float,
    licence: str = "",
    lora: Path | None = None,
    card: Callable[[list[str]], str] | None = None,
) -> list[str]:
    """Write a pipeline folder; returns why it is not stock, nothing if it is. card: README.md from these.
    lora: a run's low-rank adapter and interface layers, handed on as they are; the core holds them folded in.

    Raises SK0604 for a component without a format on disk, SK0606 for a folder that holds something.
    """
    refuse_full(out)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    reasons = why_not_stock(core, vae, text_encoder, image_size, scheduler)
    with written_aside(out) as aside:
        save_core(core, aside / "transformer")
        save_null(text_encoder, aside / "transformer")
        scheduler.save_pretrained(aside / "scheduler")
        save_vae(vae, aside / "vae", stock=not reasons)
        save_text_model(text_encoder, aside / "text_encoder")
        save_tokenizer(text_encoder, aside / "tokenizer")
        index = {
            "_class_name": OWN_PATH if reasons else "SanaPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", type(scheduler).__name__],
            "text_encoder": _library(text_encoder.model),
            "tokenizer": _library(text_encoder.tokenizer),
            "transformer": ["diffusers", type(core).__name__],
            "vae": _library(vae.model),
        }
        if reasons:
            index |= refused_by_diffusers(index)
            refuse_unbuildable(text_encoder)
            index["sanakit"] = {"image_size": image_size, "licence": licence, "text_encoder": _policy(text_encoder)}
        (aside / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        if lora is not None and lora.is_dir():
            shutil.copytree(lora, aside / "lora")
        if card:
            (aside / "README.md").write_text(card(reasons), encoding="utf-8")
    return reasons


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out` when everything is written, and is gone where something was raised.
    Raises SK0606 where `out` holds something."""
    refuse_full(out)
    aside = out.resolve().parent / f".{out.name}-{uuid.uuid4().hex}"
    aside.mkdir(parents=True)
    try:
        yield aside
        if out.is_dir():
            out.rmdir()
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refused_by_diffusers(index: dict[str, Any]) -> dict[str, list[str]]:
    """Every component of an index under a library that no process can import: a pipeline class of diffusers then stops
    at the first one, before it loads anything, with a message that begins with what reads the folder."""
    return {part: [f"{OWN_PATH}.from_pretrained", row[1]] for part, row in index.items() if isinstance(row, list)}


def write_encoder(text_encoder: TextEncoder, folder: Path) -> None:
    """A text encoder alone, with its tokenizer and policy: `path:FOLDER/text_encoder` reads it back."""
    refuse_unbuildable(text_encoder)
    save_text_model(text_encoder, folder / "text_encoder")
    save_tokenizer(text_encoder, folder / "tokenizer")
    index = {"_class_name": OWN_PATH, "sanakit": {"text_encoder": _policy(text_encoder)}}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _policy(text_encoder: TextEncoder) -> dict[str, Any]:
    kind = type(text_encoder)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "spec": asdict(text_encoder.spec)}


def refuse_full(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SanakitError("SK0606", f"{out} is {'not empty' if out.is_dir() else 'a file'}")


@torch.no_grad()
def why_not_stock(
    core: SanaTransformer2DModel, vae: VAE, text_encoder: TextEncoder, image_size: int, scheduler: Any
) -> list[str]:
    """What SanaPipeline would get wrong with these parts; its own text path is run and compared on a probe."""
    reasons = []
    if adapters_of(core):
        reasons.append(f"it builds a plain core, this one has {', '.join(adapters_of(core))}")
    mean, std, ratio = vae.latents_mean, vae.latents_std, vae.spec.spatial_compression_ratio
    if not isinstance(vae.model, AutoencoderDC):
        reasons.append(f"it decodes AutoencoderDC, the VAE is {type(vae.model).__name__}")
    elif 2 ** (len(vae.model.config.encoder_block_out_channels) - 1) != ratio:
        reasons.append(f"it takes a spatial ratio from the number of stages, the VAE's is {ratio}")
    if mean.abs().max() > 0 or std.max() > std.min():
        reasons.append(
            "it only divides latents by a scaling factor, this VAE has a shift or a mean and std per channel"
        )
    if STOCK_SIZES.get(core.config.sample_size) != image_size:
        reasons.append(f"its sizes are {list(STOCK_SIZES.values())} px at ratio 32, here {image_size} px at {ratio}")
    if not isinstance(text_encoder.model, Gemma2PreTrainedModel):
        reasons.append(f"it is written for Gemma-2, the text encoder is {type(text_encoder.model).__name__}")
    elif not reasons and not _same_text(core, vae, text_encoder, scheduler):
        reasons.append("it reads prompts another way: its embeddings of a probe prompt differ from those trained with")
    return reasons


def _same_text(core: SanaTransformer2DModel, vae: VAE, text_encoder: TextEncoder, scheduler: Any) -> bool:
    if text_encoder.spec != sana_spec(text_encoder.spec.embed_dim):
        return False
    stock = SanaPipeline(text_encoder.tokenizer, text_encoder.model, vae.model, core, scheduler)
    embeds, mask, null, null_mask = stock.encode_prompt(PROBE, complex_human_instruction=INSTRUCTION.split("\n"))
    ours, own_null = text_encoder.encode([PROBE]), text_encoder.null()
    pairs = ((ours, embeds, mask), (own_null, null, null_mask))
    return all(
        bool(mine.mask.any())  # with nothing to attend to, SanaPipeline attends to padding
        and torch.equal(mine.mask, theirs_mask.bool())
        and torch.allclose(mine.embeds, theirs.float() * theirs_mask[..., None], atol=1e-4)
        for mine, theirs, theirs_mask in pairs
    )


def save_vae(vae: VAE, folder: Path, *, stock: bool) -> None:
    """The VAE in its own format with the normalisation in force, then read back and compared on a probe."""
    write_vae(vae, folder)
    side = getattr(vae, "fixed_image_size", None) or 4 * vae.spec.spatial_compression_ratio
    probe = torch.randn(1, *vae.spec.shape(side, side), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if stock:
            model = AutoencoderDC.from_pretrained(folder)
            decoded = model.decode(probe / model.config.scaling_factor).sample.clamp(-1, 1)
        else:
            decoded = load_vae(f"path:{folder}").decode(probe)
    difference = (decoded - vae.decode(probe)).abs().max().item()
    if not difference < 1e-3:
        raise SanakitError(
            "SK0604", f"the VAE {vae.name} reads back otherwise: a probe differs by {difference:.3g} of 2"
        )


def save_text_model(text_encoder: TextEncoder, folder: Path) -> None:
    model = text_encoder.model
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    elif type(model) is nn.Embedding:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": "Embedding"}) + "\n")
        save_file({"weight": _plain(model.weight)}, folder / "model.safetensors")
    else:
        raise SanakitError("SK0604", f"the text encoder {text_encoder.name} is a {type(model).__name__}")


def refuse_unbuildable(text_encoder: TextEncoder) -> None:
    """A reader builds the class from model, tokenizer and spec: what holds more would read back otherwise."""
    kept = text_encoder.encode([PROBE])
    build: Callable[..., TextEncoder] = type(text_encoder)  # the three that a reader has; the class may want others
    try:
        rebuilt = build(text_encoder.model, text_encoder.tokenizer, text_encoder.spec).encode([PROBE])
        same = torch.equal(kept.mask, rebuilt.mask) and torch.allclose(kept.embeds, rebuilt.embeds, atol=1e-5)
    except (TypeError, AttributeError) as error:
        raise SanakitError("SK0604", f"the text encoder {text_encoder.name}: {error}") from error
    if not same:
        raise SanakitError("SK0604", f"the text encoder {text_encoder.name} holds more than model, tokenizer and spec")


def save_tokenizer(text_encoder: TextEncoder, folder: Path) -> None:
    tokenizer: Any = getattr(text_encoder, "tokenizer", None)
    if isinstance(tokenizer, Tokenizer):
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"))
    elif hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    else:
        raise SanakitError("SK0604", f"the tokenizer of {text_encoder.name} is a {type(tokenizer).__name__}")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _library(part: Any) -> list[str]:
    return [type(part).__module__.split(".")[0], type(part).__name__]
