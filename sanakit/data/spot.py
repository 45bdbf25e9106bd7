"""Rows of a cache entry, computed again before anything is trained on them."""

from collections.abc import Callable

import torch
from torch import Tensor

from sanakit.data.store import Entry, environment
from sanakit.errors import SanakitError

SPOT_CHECKS = 4
SPOT_TOLERANCE = 0.01  # relative L2; other kernels of the same model stay below it, another model does not


def spot_check(
    entry: Entry,
    where: Tensor,
    stored: Callable[[Tensor], Tensor],
    recompute: Callable[[list[int]], Tensor],
    tolerance: float = SPOT_TOLERANCE,
) -> None:
    """Compute some rows again; SK0404 names the row, the difference and the packages that have changed."""
    chosen = torch.linspace(0, len(where) - 1, min(SPOT_CHECKS, len(where))).long()
    old, new = stored(where[chosen]).float(), recompute(chosen.tolist()).float()
    error = ((old - new).flatten(1).norm(dim=1) / new.flatten(1).norm(dim=1).clamp_min(1e-6)).tolist()
    worst = max(range(len(error)), key=error.__getitem__)
    if not error[worst] <= tolerance:
        now, then = environment(), entry.manifest["environment"]
        changed = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
        told = f"{entry.folder}: row {int(chosen[worst])} computed again differs by {error[worst]:.2g} of its size, "
        told += f"at most {tolerance} expected; {'; '.join(changed) or 'the packages are the same'}"
        raise SanakitError("SK0404", told)
