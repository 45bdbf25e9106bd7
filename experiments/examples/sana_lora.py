"""Train a LoRA of a Sana pipeline on a folder of images. The five lines marked `# watch` add sanakit's drift monitor.

python experiments/examples/sana_lora.py --pipeline DIR --images DIR --out lora [--steps 500] [--report-to tensorboard]

A short form of diffusers' own training script: any SanaPipeline folder, captions in .txt files beside the images. The
monitor alarms where latents or prompts of the loop are no longer what they were at its beginning: another crop, a scale
that is applied twice, captions that got lost.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import SanaPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageOps

from sanakit.integrations.accelerate import AccelerateWatch  # watch

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def read_image(path: Path, size: int) -> torch.Tensor:
    """(3, size, size) in [-1, 1]."""
    with Image.open(path) as image:
        square = ImageOps.fit(image.convert("RGB"), (size, size))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1


def lora_core(pipe: SanaPipeline, rank: int) -> torch.nn.Module:
    """The pipeline's transformer, frozen but for low-rank adapters of its attentions."""
    for part in (pipe.vae, pipe.text_encoder, pipe.transformer):
        part.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    pipe.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return pipe.transformer.train()


def train(arguments: argparse.Namespace) -> AccelerateWatch:
    tracker = arguments.report_to or None
    accelerator = Accelerator(log_with=tracker, project_dir=arguments.out / "logs" if tracker else None)
    if tracker:
        accelerator.init_trackers("sana-lora")
    pipe = SanaPipeline.from_pretrained(arguments.pipeline, torch_dtype=torch.float32)
    core = lora_core(pipe, arguments.rank)
    optimizer = torch.optim.AdamW([p for p in core.parameters() if p.requires_grad], lr=arguments.learning_rate)
    core, optimizer = accelerator.prepare(core, optimizer)
    pipe.vae.to(accelerator.device), pipe.text_encoder.to(accelerator.device)
    paths = sorted(path for path in arguments.images.iterdir() if path.suffix.lower() in SUFFIXES)
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    watch = AccelerateWatch(accelerator, steps=arguments.steps)  # watch
    generator = torch.Generator().manual_seed(arguments.seed + accelerator.process_index)
    for _ in range(arguments.steps):
        rows = torch.randint(len(paths), (arguments.batch_size,), generator=generator).tolist()
        pixels = torch.stack([read_image(paths[row], arguments.image_size) for row in rows]).to(accelerator.device)
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent * pipe.vae.config.scaling_factor
            texts = [captions[row] for row in rows]
            embeds, mask, _, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, device=accelerator.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        sigmas = torch.sigmoid(torch.randn(len(rows), generator=generator)).to(latents.device)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
        predicted = core(noisy, embeds, timestep=sigmas * 1000, encoder_attention_mask=mask, return_dict=False)[0]
        loss = (predicted - (noise - latents)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        watch(latents=latents, embeddings=(embeds, mask))  # watch
    layers = get_peft_model_state_dict(accelerator.unwrap_model(core))
    if accelerator.is_main_process:
        SanaPipeline.save_lora_weights(arguments.out, transformer_lora_layers=layers)
        print(f"{arguments.out}: {watch.verdict}, last loss {loss.item():.4f}")  # watch
    accelerator.end_training()
    return watch  # watch


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, required=True, help="A SanaPipeline folder.")
    parser.add_argument("--images", type=Path, required=True, help="A folder of images with .txt captions.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-to", default="", help="tensorboard, wandb, mlflow ...; nothing by default.")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
