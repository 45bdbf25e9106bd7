"""Presets: a run is a function that returns a configuration; `sanakit train --preset NAME --dry-run` prints it.

All of them run on the embedded world as they stand.
"""

from collections.abc import Callable

from sanakit.config import Config, TextEncoderSection, TrainSection, VAESection


def swap_vae() -> Config:
    """The base with another VAE: closed form, then every layer, deeper ones slower."""
    return Config(vae=VAESection(name="dc-f16c16"), train=TrainSection(strategy="finetune", max_steps=400))


def swap_text_encoder() -> Config:
    """The base with another text encoder: closed form, then every layer, deeper ones slower."""
    return Config(
        text_encoder=TextEncoderSection(name="wordllama"), train=TrainSection(strategy="finetune", max_steps=400)
    )


def pretrain() -> Config:
    """The base's architecture and components from scratch, on many pairs, with a weight average."""
    train = TrainSection(
        strategy="scratch", max_steps=10_000, batch_size=64, warmup=500, ema_decay=0.999, checkpoint_every=500
    )
    return Config(train=train)


def finetune() -> Config:
    """The base on a few thousand pairs: interface layers at full rate, early blocks slowest,
    what was learnt protected."""
    train = TrainSection(
        strategy="finetune",
        max_steps=1_000,
        learning_rate=2e-4,
        layer_decay=0.8,
        rates={"input": 0.1, "output": 0.1, "cross_attention": 0.5, "core": 0.5},
        ema_decay=0.99,
    )
    return Config(train=train)


def lora() -> Config:
    """The base with low-rank adapters in every attention and nothing else moving; merged before export."""
    interface = {"input": 0.0, "output": 0.0, "caption": 0.0}
    train = TrainSection(strategy="lora", max_steps=400, learning_rate=1e-3, rates=interface, lora_rank=16)  # type: ignore[arg-type]
    return Config(train=train)


def joint_text_encoder() -> Config:
    """The base with its text encoder trained beside it, far slower: own group, own rate, own monitor; captions and the
    null embedding are encoded anew every step."""
    train = TrainSection(strategy="finetune", max_steps=1_000, learning_rate=2e-4, ema_decay=0.99)
    return Config(train=train, text_encoder=TextEncoderSection(learning_rate=1e-5, gradient_checkpointing=True))


def vae_finetune() -> Config:
    """A VAE whose latents turn and scale with the image, images held: RUN/vae serves as `path:DIR`."""
    train = TrainSection(
        target="vae", max_steps=500, batch_size=16, learning_rate=1e-4, weight_decay=0.0, ema_decay=0.99
    )
    return Config(vae=VAESection(name="dc-f16c32"), train=train)


def vae_decoder() -> Config:
    """The base's VAE with a better decoder, its latents as they are: RUN/model is the base that decodes with it."""
    train = TrainSection(
        target="vae-decoder", max_steps=500, batch_size=16, learning_rate=2e-4, weight_decay=0.0, ema_decay=0.99
    )
    return Config(train=train)


PRESETS: dict[str, Callable[[], Config]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "swap-vae": swap_vae,
    "swap-text-encoder": swap_text_encoder,
    "joint-text-encoder": joint_text_encoder,
    "vae-finetune": vae_finetune,
    "vae-decoder": vae_decoder,
    "lora": lora,
}
