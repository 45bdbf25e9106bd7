"""Published Sana bases by their repository: what their config.json files say, so that a dry run asks no network."""

from typing import Any

SANA_600M = {
    "in_channels": 32,
    "out_channels": 32,
    "num_layers": 28,
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "patch_size": 1,
}
SANA_1600M = SANA_600M | {
    "num_layers": 20,
    "num_attention_heads": 70,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
}
OWNER = "Efficient-Large-Model"
CORES = {  # repository -> configuration of the core, image size
    f"{OWNER}/Sana_600M_512px_diffusers": (SANA_600M, 512),
    f"{OWNER}/Sana_600M_1024px_diffusers": (SANA_600M, 1024),
    f"{OWNER}/Sana_1600M_512px_diffusers": (SANA_1600M, 512),
    f"{OWNER}/Sana_1600M_1024px_diffusers": (SANA_1600M, 1024),
    f"{OWNER}/Sana_1600M_1024px_BF16_diffusers": (SANA_1600M, 1024),
}


def published_base(name: str) -> dict[str, Any] | None:
    """Core, components and image size of `hub:owner/repo[@revision]`; None for one that is not recorded."""
    repository = name.removeprefix("hub:").partition("@")[0]
    if repository not in CORES:
        return None
    core, size = CORES[repository]
    return {
        "core": core | {"sample_size": size // 32},
        "vae": "dc-ae-f32c32-sana-1.0",
        "text_encoder": "gemma-2-2b-it",
        "image_size": size,
    }
