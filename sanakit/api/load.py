"""A VAE, a text encoder, a base or images: by name, from a folder, or from an object that is in memory already.

A live module is used as it is, in its own precision and on its own device. It is put into eval mode and its parameters
no longer ask for gradients; a copy keeps the original as it was.
"""

import copy
import os
from dataclasses import replace
from typing import Any

import torch
from diffusers import SanaPipeline
from torch import nn

from sanakit import loading
from sanakit.api.options import as_number
from sanakit.assembly import LatentDiffusion
from sanakit.contracts import LatentStats
from sanakit.core.dit import fold_guidance
from sanakit.data import ImageDataset
from sanakit.data import load_images as read_images
from sanakit.data.load import screen
from sanakit.data.readers.objects import read_objects
from sanakit.errors import SanakitError
from sanakit.formats.pipeline_folder import PIPELINES, flow_shift_of
from sanakit.interop.pipeline import SanakitPipeline
from sanakit.text_encoders import TextEncoder
from sanakit.text_encoders.gemma import sana_spec
from sanakit.text_encoders.live import wrap_transformer
from sanakit.text_encoders.query import with_fields
from sanakit.vaes import VAE
from sanakit.vaes.live import renormalised, wrap_autoencoder
from sanakit.vaes.normalisation import from_scaling

Named = str | os.PathLike[str]
MAX_SET_ASIDE = 0.05  # as `data.max_set_aside`
ROW = (
    "Give rows {'image': ..., 'caption': 'text'} or pairs (image, 'text'); an image is a PIL image, encoded bytes, a "
    "file, uint8 pixels, or floats from 0 to 1."
)


def load_vae(x: Named | nn.Module, *, scaling_factor: float | None = None, stats: LatentStats | None = None) -> VAE:
    """A VAE from a name of `list_vaes`, `path:DIR`, `hub:owner/repo`, a pathlib path, a live diffusers autoencoder, or
    a VAE itself.

    scaling_factor: latents = (raw - mean) * scaling_factor, instead of what the component states. stats: mean and std
    of the channels, instead. Raises SK0104 for both or for what they cannot be, SK0101, SK0106, SK0127, SK0202, or what
    loading a folder raises.
    """
    if scaling_factor is not None and stats is not None:
        raise SanakitError("SK0104", "the normalisation was given twice: scaling_factor and stats", fix="Give one.")
    if scaling_factor is not None:
        scaling_factor = as_number("scaling_factor", scaling_factor, above=0)
    if stats is not None and not isinstance(stats, LatentStats):
        fix = "Give stats=sk.LatentStats(mean=(...), std=(...)), one value or one a channel."
        raise SanakitError("SK0104", f"stats is a {type(stats).__name__}, expected a LatentStats", fix=fix)
    if isinstance(x, str | os.PathLike):
        vae = loading.load_vae(name_of(x))
    elif isinstance(x, VAE):
        vae = x
    elif isinstance(x, nn.Module):
        return wrap_autoencoder(x, scaling_factor=scaling_factor, stats=stats)
    else:
        raise SanakitError(
            "SK0106",
            f"a {type(x).__name__} is no VAE, expected a name, a path or a diffusers autoencoder",
            fix="Give the part: its `.vae`." if hasattr(x, "vae") else None,
        )
    if scaling_factor is not None:
        stats = replace(from_scaling(scaling_factor), mean=vae.stats.mean)
    return vae if stats is None else renormalised(vae, stats)


def load_text_encoder(x: Named | nn.Module, *, tokenizer: Any = None, **reading: Any) -> TextEncoder:
    """A text encoder from a name of `list_text_encoders`, `path:DIR`, `hub:owner/repo`, a pathlib path, a live
    transformers model with its tokenizer, or a text encoder itself.

    reading: fields of its record: max_tokens, instruction, lower_case, and of transformers models select, layer and
    attend_padding. Raises SK0104 for a tokenizer beside a name, SK0101, SK0106, SK0126, SK0306, or what loading a
    folder raises.
    """
    if isinstance(x, nn.Module) and not isinstance(x, TextEncoder):
        return wrap_transformer(x, tokenizer, reading)
    if tokenizer is not None:
        raise SanakitError("SK0104", f"{x!r:.60} brings its own tokenizer, found another", fix="Leave tokenizer out.")
    if isinstance(x, str | os.PathLike):
        encoder = loading.load_text_encoder(name_of(x))
    elif isinstance(x, TextEncoder):
        encoder = copy.copy(x) if reading else x
    else:
        raise SanakitError(
            "SK0106",
            f"a {type(x).__name__} is no text encoder, expected a name, a path or a transformers model",
            fix="Give the part: its `.text_encoder`, of a pipeline of diffusers with tokenizer= its `.tokenizer`."
            if hasattr(x, "text_encoder")
            else None,
        )
    if reading:
        encoder.set_spec(with_fields(encoder, reading))
    return encoder


def load_base(x: Named | SanaPipeline | LatentDiffusion) -> LatentDiffusion:
    """The model that works today: a name of `list_bases`, `path:DIR`, `hub:owner/repo`, a pathlib path, a live Sana
    pipeline of diffusers (1.0, 1.5, Sprint), or a system itself.

    A pipeline's transformer is used as it is where it is fp32, else as an fp32 copy. Of a result of `swap` it is the
    system. Raises SK0101, SK0106, SK0603.
    """
    x = system_in(x)
    if isinstance(x, LatentDiffusion):
        return x
    if isinstance(x, str | os.PathLike):
        return loading.load_base(name_of(x)).system()
    if isinstance(x, SanakitPipeline):
        vae, encoder, size = x.vae, x.text_encoder, x.image_size
    elif type(x).__name__ in PIPELINES:
        if type(x.vae).__name__ != "AutoencoderDC":
            raise SanakitError(
                "SK0603", f"a {type(x).__name__} with a {type(x.vae).__name__}, expected an AutoencoderDC"
            )
        vae = load_vae(x.vae)
        encoder = load_text_encoder(x.text_encoder, tokenizer=x.tokenizer)
        encoder.set_spec(sana_spec(encoder.spec.embed_dim))
        size = x.transformer.config.sample_size * vae.spec.spatial_compression_ratio
    else:
        raise SanakitError(
            "SK0603", f"a {type(x).__name__} is no base, expected a name, a path or one of {', '.join(PIPELINES)}"
        )
    scheduler = dict(x.scheduler.config) | {"_class_name": type(x.scheduler).__name__}
    core = x.transformer
    if core.dtype != torch.float32:
        core = copy.deepcopy(core).float()
    if core.config.guidance_embeds:
        core = fold_guidance(core)
    return LatentDiffusion(
        vae=vae, text_encoder=encoder, core=core, image_size=size, flow_shift=flow_shift_of(scheduler)
    )


def load_images(x: Any, *, max_set_aside: float = MAX_SET_ASIDE) -> ImageDataset:
    """Images with captions: what `--data` takes (a name, a folder, .csv, .jsonl, .tar, .parquet, `hf:owner/name`), a
    Hugging Face or torch data set, a table of pandas or a list of rows (sanakit/data/readers/objects.py says what a row
    is), or an ImageDataset itself.

    max_set_aside: share of rows that may be unreadable; they are in `.ledger` with the reason. Raises SK0401, SK0402.
    """
    if isinstance(x, ImageDataset):
        return x
    if isinstance(x, str | os.PathLike):
        return read_images(os.fspath(x), max_set_aside=max_set_aside)
    try:
        return screen(read_objects(x), max_set_aside=max_set_aside)
    except SanakitError as error:
        if error.code != "SK0402" and " rows: " not in error.found:
            raise
        raise SanakitError(error.code, error.found, fix=ROW) from error


def system_in(x: Any) -> Any:
    """The system of a result of `swap`; anything else as it is."""
    system = getattr(x, "system", None)
    return system if isinstance(system, LatentDiffusion) else x


def name_of(x: Named) -> str:
    """A pathlib path as `path:`; a text as it is."""
    return x if isinstance(x, str) else f"path:{os.fspath(x)}"
