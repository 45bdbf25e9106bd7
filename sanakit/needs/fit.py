"""The device that a dry run assumes, whether what was asked for fits it, and which options would make it fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sanakit.config import Config
from sanakit.errors import SanakitError
from sanakit.placement import DTYPES, FUSED, Placement
from sanakit.swap.fitting import SHARE

if TYPE_CHECKING:
    from sanakit.needs.outline import Cost
    from sanakit.needs.stages import Needs, Phase

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
LEAST_MEMORY = 10**6  # bytes of a device; fewer are a number whose unit was forgotten
LARGEST_MEMORY = 10**18


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """memory: bytes of the device, None where nobody says. half: whether it computes in bf16. fused_attention: whether
    its attention keeps no matrix of tokens x captions. dtypes: of the frozen parts as the configuration states them."""

    memory: int | None = None
    half: bool = True
    fused_attention: bool = True
    dtypes: tuple[tuple[str, str], ...] = ()

    @property
    def room(self) -> int | None:
        """What the phases may take; the rest is the driver's, the kernels' and the allocator's."""
        return None if self.memory is None else int(SHARE * self.memory)

    def dtype(self, part: str) -> torch.dtype:
        stated = dict(self.dtypes).get(part, "auto")
        automatic = "bf16" if self.half and part != "vae" else "fp32"
        return getattr(torch, DTYPES[automatic if stated == "auto" else stated])

    def at_once(self, cost: "Cost", most: int) -> int:
        """Rows of an encoding batch: as many as fit, at least one."""
        if self.room is None:
            return most
        return max(1, min(most, (self.room - cost.weights) // max(1, cost.each)))

    def resolved(self, config: Config, checkpointing: bool = False, micro_batch: int | str = "auto") -> Config:
        """The training section with `auto` replaced."""
        changes: dict[str, Any] = {}
        train = config.train
        if train.precision == "auto":
            changes["precision"] = "bf16" if self.half else "fp32"
        if train.gradient_checkpointing == "auto":
            changes["gradient_checkpointing"] = checkpointing
        if train.micro_batch == "auto" and micro_batch != "auto":
            changes["micro_batch"] = micro_batch
        return config.model_copy(update={"train": train.model_copy(update=changes)})


def assumed_from(config: Config, placement: Placement, memory: int | None) -> Assumed:
    """The machine's own accelerator where it has one and `memory` does not name another; with `memory` and none, a
    device that computes in bf16; the CPU otherwise."""
    dtypes = (("vae", config.vae.dtype), ("text_encoder", config.text_encoder.dtype))
    present = placement.memory()
    half = placement.train_precision("auto") == "bf16" if placement.accelerated else memory is not None
    return Assumed(
        memory=memory if memory is not None else present[1] if present else None,
        half=half,
        fused_attention=placement.device.type in FUSED,
        dtypes=dtypes,
    )


def parse_size(text: str) -> int:
    """`24GB`, `80GiB`, `16e9` in bytes. Raises SK0104."""
    plain = text.strip().upper().replace(" ", "")
    unit = next((u for u in sorted(UNITS, key=len, reverse=True) if plain.endswith(u)), "")
    try:
        size = int(float(plain.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):  # OverflowError: infinity
        size = 0
    if not 0 < size <= LARGEST_MEMORY:
        raise SanakitError("SK0104", f"--device-memory {text!r} is no size", fix="Write 24GB or 80GiB.")
    if size < LEAST_MEMORY:
        hint = f" (did you mean {plain}GB?)" if not unit else ""
        raise SanakitError("SK0104", f"--device-memory {text!r} is {size:,} bytes{hint}", fix="Write 24GB or 80GiB.")
    return size


def require_fit(needs: "Needs", assumed: Assumed, again: Callable[[Config], "Needs"]) -> None:
    """Raises SK0907 where a phase takes more than the device's room, with the options that would make it fit. again:
    the needs of another configuration."""
    room = assumed.room
    if room is None or needs.peak <= room:
        return
    worst = max(needs.phases, key=lambda phase: phase.peak)
    told = (
        "; ".join(_offers(needs, room, again))
        or "none of train.precision, checkpointing, micro-batch, optimiser is enough"
    )
    raise SanakitError(
        "SK0907",
        f"stage {worst.stage}, {worst.name}: {_gb(worst.peak)} ({_of(worst)}), the device has room for {_gb(room)} of "
        f"{_gb(assumed.memory or 0)}",
        fix=f"Would fit: {told}.",
    )


def _offers(needs: "Needs", room: int, again: Callable[[Config], "Needs"]) -> Iterator[str]:
    """Options that alone, or with those before them, make everything fit; each with what it then takes."""
    config, together = needs.config, []
    for text, section, changes in _options(config):
        if not _applies(config, section, changes):
            continue
        alone = again(_changed(needs.config, section, changes))
        if alone.peak <= room:
            yield f"--set {text} ({_gb(alone.peak)})"
            continue
        config = _changed(config, section, changes)
        together.append(f"--set {text}")
        if len(together) > 1:
            both = again(config)
            if both.peak <= room:
                yield f"{' '.join(together)} ({_gb(both.peak)})"
                return


def _options(config: Config) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("train.precision=bf16", "train", {"precision": "bf16"}),
        ("train.gradient_checkpointing=true", "train", {"gradient_checkpointing": True}),
        ("train.micro_batch=1", "train", {"micro_batch": 1}),
        ("train.optimizer=adamw-8bit", "train", {"optimizer": "adamw-8bit"}),
        ("train.strategy=lora", "train", {"strategy": "lora"}),
        ("vae.dtype=bf16", "vae", {"dtype": "bf16"}),
        ("smoke.held_out=16", "smoke", {"held_out": 16}),
    ]


def _applies(config: Config, section: str, changes: dict[str, Any]) -> bool:
    return any(getattr(getattr(config, section), name) != value for name, value in changes.items())


def _changed(config: Config, section: str, changes: dict[str, Any]) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})


def _of(phase: "Phase") -> str:
    return ", ".join(f"{name} {_gb(size)}" for name, size in phase.device.items())


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
