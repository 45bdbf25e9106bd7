"""A Lightning module that trains a Sana core on latents, with sanakit's drift callback. Needs `pip install lightning`.

python experiments/examples/lightning_drift.py [--base tiny-sana] [--data openclipart] [--steps 64] [--plant]

--plant doubles the latents from the middle of the run on, as a scaling factor that is applied twice does: the callback
then stops the run.
"""

import argparse

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sanakit as sk
from sanakit.data.cache import to_images
from sanakit.integrations.lightning import DriftCallback


class FlowModule(lightning.LightningModule):
    """Flow matching of a system's core. planted: the batch from which on latents are twice too wide."""

    def __init__(self, base: str, learning_rate: float = 1e-4, planted: int = 0) -> None:
        super().__init__()
        self.system = sk.load_base(base)
        self.core, self.learning_rate, self.planted = self.system.core, learning_rate, planted

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        latents, embeds, mask = batch
        if self.planted and self.trainer.fit_loop.total_batch_idx >= self.planted:
            latents = 2 * latents
        noise, sigmas = torch.randn_like(latents), torch.rand(len(latents), device=latents.device)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None, None])
        velocity = self.core(noisy, embeds, sigmas * 1000, encoder_attention_mask=mask, return_dict=False)[0]
        return {"loss": (velocity - (noise - latents)).square().mean(), "latents": latents.detach()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.core.parameters(), lr=self.learning_rate)


def loader(system: sk.load_base, data: str, count: int, batch_size: int) -> DataLoader:  # type: ignore[valid-type]
    """Batches of latents (B, C, h, w), embeddings (B, L, D) and masks of the first images of the training split."""
    images = sk.load_images(data).split(False)
    images = images.subset(range(min(count, len(images))))
    latents = system.vae.encode(to_images(images.pixels(system.image_size)))
    prompts = system.text_encoder.encode(images.evaluation_captions())
    rows = TensorDataset(latents, prompts.embeds, prompts.mask)
    return DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=True)


def train(base: str, data: str, steps: int, *, plant: bool, batch_size: int = 16, images: int = 256) -> DriftCallback:
    """The callback of a finished run."""
    lightning.seed_everything(0, verbose=False)
    module = FlowModule(base, planted=steps // 2 if plant else 0)
    callback = DriftCallback(lambda batch, outputs: {"latents": outputs["latents"]}, on_alarm="stop")
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="auto",
    )
    trainer.fit(module, loader(module.system, data, images, batch_size))
    print(f"{trainer.global_step} of {steps} steps; {callback.watch.verdict if callback.watch else 'nothing watched'}")
    return callback


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny-sana")
    parser.add_argument("--data", default="openclipart")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--plant", action="store_true")
    given = parser.parse_args()
    train(given.base, given.data, given.steps, plant=given.plant)
