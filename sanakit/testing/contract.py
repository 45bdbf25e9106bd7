"""What every check shares: a component by its name or as an object, and the error that a broken contract raises."""

from typing import Any

import torch
from torch import Tensor

from sanakit.errors import SanakitError
from sanakit.registry import Registry


def require(condition: bool, name: str, found: str, fix: str) -> None:
    """Raises SK0115 where the condition does not hold. found: what was found and what is expected."""
    if not condition:
        raise SanakitError("SK0115", f"{name}: {found}", fix=fix)


def require_close(first: Tensor, second: Tensor, name: str, found: str, fix: str, *, tolerance: float = 1e-4) -> None:
    """Raises SK0115 where two tensors of one shape differ by more than rounding."""
    require(first.shape == second.shape, name, f"{found}: {tuple(first.shape)} against {tuple(second.shape)}", fix)
    differ = f"{found}: they differ by {(first - second).abs().max():.3g}"
    require(torch.allclose(first, second, atol=tolerance, rtol=1e-3), name, differ, fix)


def resolve(component: Any, registry: Registry[Any]) -> tuple[Any, str]:
    """The object behind a registered name, and what messages call it. Raises SK0101 to SK0103 for a name, SK0115 where
    the listing shows no title."""
    if not isinstance(component, str):
        named = vars(component) if isinstance(component, type) else {"name": getattr(component, "name", "")}
        return component, str(named.get("name") or getattr(component, "__name__", type(component).__name__))
    item = registry.get(component)
    entry = registry.entries().get(component)
    if entry is not None:
        require(
            bool(entry.title) and ":" not in entry.title.split(" ")[0],
            component,
            f"`sanakit ls` shows the title {entry.title!r}, expected the decorator's own",
            f'Register it with literals: @X.register("{component}", title="...", licence="...").',
        )
    return item, component


def changed_weight(model: torch.nn.Module) -> "ChangedWeight":
    """A context in which one weight of the model is another; it is put back afterwards."""
    return ChangedWeight(model)


class ChangedWeight:
    def __init__(self, model: torch.nn.Module) -> None:
        tensors = (*model.parameters(), *model.state_dict().values())  # a buffer may be a normalisation: not hashed
        self.tensor = next((t for t in tensors if t.is_floating_point()), None)

    def __enter__(self) -> bool:
        """Whether there is a weight to change."""
        if self.tensor is None:
            return False
        self.kept = self.tensor.detach().clone()
        with torch.no_grad():
            self.tensor.add_(1)
        return True

    def __exit__(self, *error: object) -> None:
        if self.tensor is not None:
            with torch.no_grad():
                self.tensor.copy_(self.kept)
