"""What a dry run says: phases of stages, and what they need together."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sanakit.config import Config


@dataclass(frozen=True, kw_only=True)
class Phase:
    """device: bytes by part, all there at once. at_once: images or prompts that go through together. steps: of
    training, at most. flops: of the whole phase."""

    stage: str
    name: str
    device: dict[str, int]
    at_once: int = 0
    steps: int = 0
    flops: int = 0

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

    def seconds(self, phase: Phase, seconds_per_step: float) -> float:
        """At as many operations a second as the training step reaches."""
        return phase.flops / self.step_flops * seconds_per_step

    def as_dict(self, seconds_per_step: float | None = None) -> dict[str, Any]:
        def timed(phase: Phase) -> dict[str, Any]:
            hours = None if seconds_per_step is None else self.seconds(phase, seconds_per_step) / 3600
            return phase.as_dict() | {"hours": hours}

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
                    "hours": None if seconds_per_step is None else sum(row["hours"] for row in rows),
                }
                for name, rows in stages.items()
            },
            "device": self.peak,
            "host": self.host | {"total": sum(self.host.values())},
            "disk": self.disk | {"total": sum(self.disk.values())},
            "train": self.train,
            "seconds_per_step": seconds_per_step,
            "notes": self.notes,
        }
