"""What a dry run says: phases of stages, and what they need together."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sanakit.config import Config


@dataclass(frozen=True, kw_only=True)
class Phase:
    """device: bytes by part, all there at once. at_once: images or prompts that go through together. steps: of
    training, at most. flops: of the whole phase, over all ranks. decoded: images that are read and decoded for it,
    beside the device. shared: over the ranks; otherwise every rank does the whole."""

    stage: str
    name: str
    device: dict[str, int]
    at_once: int = 0
    steps: int = 0
    flops: int = 0
    decoded: int = 0
    shared: bool = True

    @property
    def peak(self) -> int:
        return sum(self.device.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"peak": self.peak}


@dataclass(kw_only=True)
class Needs:
    """phases: of the stages in order. host, disk: bytes by what takes them. train: how a step is cut. step_flops: of
    the strategy that the given seconds a step belong to."""

    config: Config
    world_size: int
    num_images: int
    phases: list[Phase]
    host: dict[str, int]
    disk: dict[str, int]
    train: dict[str, Any]
    step_flops: int
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(phase.peak for phase in self.phases)

    def seconds(self, phase: Phase, per_step: float | None, per_image: float | None) -> float | None:
        """Of a phase on `world_size` ranks: operations at the rate that the training step reaches, images at
        `per_image` seconds of one rank; the longer of both, as images are decoded beside the device. None where the
        figure is missing that it needs."""
        ranks = self.world_size
        parts: list[float | None] = []
        if phase.flops:
            whole = None if per_step is None else phase.flops / self.step_flops * per_step
            parts.append(whole if whole is None or phase.shared else whole * ranks)
        if phase.decoded:
            parts.append(None if per_image is None else phase.decoded * per_image / (ranks if phase.shared else 1))
        known = [part for part in parts if part is not None]
        return max(known, default=0.0) if len(known) == len(parts) else None

    def as_dict(self, seconds_per_step: float | None = None, seconds_per_image: float | None = None) -> dict[str, Any]:
        """Bytes, steps, and hours where the seconds are known. seconds_per_step: at `world_size` ranks."""

        def timed(phase: Phase) -> dict[str, Any]:
            seconds = self.seconds(phase, seconds_per_step, seconds_per_image)
            return phase.as_dict() | {"hours": None if seconds is None else seconds / 3600}

        def summed(rows: list[dict[str, Any]]) -> float | None:
            return None if any(row["hours"] is None for row in rows) else sum(row["hours"] for row in rows)

        stages: dict[str, Any] = {}
        for phase in self.phases:
            stages.setdefault(phase.stage, []).append(timed(phase))
        return {
            "world_size": self.world_size,
            "num_images": self.num_images,
            "stages": {
                name: {
                    "phases": rows,
                    "device": max(row["peak"] for row in rows),
                    "steps": sum(row["steps"] for row in rows),
                    "hours": summed(rows),
                }
                for name, rows in stages.items()
            },
            "device": self.peak,
            "host": self.host | {"total": sum(self.host.values())},
            "disk": self.disk | {"total": sum(self.disk.values())},
            "train": self.train,
            "seconds_per_step": seconds_per_step,
            "seconds_per_image": seconds_per_image,
            "notes": self.notes,
        }
