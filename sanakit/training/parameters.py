"""All parameters at once: gradients clipped, the moving average, and what has moved since a step."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sanakit.distributed import local
from sanakit.errors import SanakitError


def clip_gradients(trained: list[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; the norm before, still on the device. Sharded
    and whole parameters (a text encoder beside a sharded core) are measured apart, as torch does not mix them."""
    kinds = [[p for p in trained if hasattr(p, "full_tensor") == sharded] for sharded in (True, False)]
    if not all(kinds):
        return _gathered(nn.utils.clip_grad_norm_(trained, limit))
    norms = [_gathered(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    total = torch.stack(norms).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, limit, total.to(kind[0].device))
    return total


def _gathered(norm: Tensor) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], core: nn.Module, decay: float) -> None:
    pairs = [(ema[name], local(value)) for name, value in core.state_dict().items() if value.is_floating_point()]
    averages: Iterable[Tensor] = [a for a, _ in pairs]
    torch._foreach_lerp_(list(averages), [v for _, v in pairs], 1 - decay)


def parameter_digests(core: nn.Module) -> dict[str, str]:
    """SHA-256 of every parameter (this rank's shard), to see what moved."""
    return {
        name: hashlib.sha256(local(p).detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        for name, p in core.named_parameters()
    }


def check_movement(core: nn.Module, before: dict[str, str], waiting: Iterable[nn.Parameter] = ()) -> None:
    """SK0508 when a parameter that is trained stands still, or a frozen one moved, since `before`. waiting: may do
    either, since they join about now."""
    now, late = parameter_digests(core), {id(p) for p in waiting}
    wanted = {n: p.requires_grad and local(p).numel() > 0 and id(p) not in late for n, p in core.named_parameters()}
    still = [name for name in now if wanted[name] and now[name] == before[name]]
    moved = [name for name, p in core.named_parameters() if not p.requires_grad and now[name] != before[name]]
    if still or moved:
        parts = [f"{len(still)} trained parameters stand still, first {still[0]}"] if still else []
        parts += [f"{len(moved)} frozen parameters moved, first {moved[0]}"] if moved else []
        raise SanakitError("SK0508", "; ".join(parts))
