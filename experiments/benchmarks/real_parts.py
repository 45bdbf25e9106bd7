"""Parts at published sizes with random weights: a stock Sana pipeline folder, a FLUX.1-shaped VAE, a folder of
images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from sanakit.core.dit import new_core
from sanakit.needs.published import SANA_600M
from sanakit.vaes.dc_ae import Sana10

DC_AE_F32C32: dict[str, Any] = {**Sana10.published, "scaling_factor": 0.41407}
FLUX_1 = {  # FLUX.1's vae/config.json
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
WORDS = ("red", "blue", "green", "round", "small", "large", "apple", "house", "tree", "boat", "cat", "lamp")


def build_base(
    folder: Path,
    size: int,
    *,
    core: dict[str, Any] = SANA_600M,
    vae: dict[str, Any] = DC_AE_F32C32,
    text: dict[str, Any] | None = None,
) -> None:
    """A stock SanaPipeline folder as its publisher lays it out. text: of Gemma2Config; by default two layers of
    Gemma-2-2b's width with a vocabulary of 128, so that a small machine holds everything."""
    words = {w: i for i, w in enumerate(["<pad>", "<bos>", "<unk>", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    encoder = Gemma2Model(Gemma2Config(**text or {"vocab_size": 128, "num_hidden_layers": 2, "pad_token_id": 0}))
    scheduler = DPMSolverMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction")
    model = new_core(core | {"sample_size": size // 32}, seed=0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    SanaPipeline(tokenizer, encoder, AutoencoderDC(**vae), model, scheduler).save_pretrained(folder)


def write_images(folder: Path, count: int, size: int) -> None:
    """Coloured gradients with a disc, one caption file each: no two alike, and compressible as photographs are."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:size, 0:size] / size
    for number in range(count):
        corners = generator.uniform(0, 255, (4, 3))
        plane = (
            corners[0] * ((1 - rows) * (1 - columns))[..., None]
            + corners[1] * ((1 - rows) * columns)[..., None]
            + corners[2] * (rows * (1 - columns))[..., None]
            + corners[3] * (rows * columns)[..., None]
        )
        centre, radius = generator.uniform(0.3, 0.7, 2), generator.uniform(0.1, 0.3)
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        plane[disc] = generator.uniform(0, 255, 3)
        noisy = plane + generator.normal(0, 6, plane.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.png")
        words = generator.choice(WORDS, 4, replace=False)
        (folder / f"{number:04}.txt").write_text(f"{' '.join(words)} {number}\n")
