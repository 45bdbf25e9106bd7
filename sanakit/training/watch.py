"""Names the rank that holds the others up: a collective that waits for ever says nothing by itself.

Every rank keeps where it is in memory (no cost a step); a thread publishes it as a small file in a folder that all
ranks see. A rank that has stood still for the time-out reads the others' files, names the ones furthest behind and
ends.
"""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sanakit.distributed import rank, world_size
from sanakit.errors import ExitCode, SanakitError
from sanakit.ranks.lost import claim

PUBLISH_EVERY = 15.0  # seconds at most: a rank that is lost is named with the step at which it was last seen
PHASES = ("draws its batch", "runs forward", "runs backward and waits for the others", "is between two steps")


class Watch:
    """seconds: the time-out; 0, or a single rank, watches nothing."""

    def __init__(self, folder: Path | None = None, seconds: float = 0.0) -> None:
        self.folder, self.seconds = folder, seconds
        self._place, self._since = (0, 3), time.monotonic()
        self._end = threading.Event()
        if folder is not None and seconds and world_size() > 1:
            folder.mkdir(parents=True, exist_ok=True)
            self._publish()
            threading.Thread(target=self._run, daemon=True).start()

    def at(self, step: int, phase: int) -> None:
        """This rank has come to a phase of a step; between two steps nobody is expected."""
        self._place, self._since = (step, phase), time.monotonic()

    def close(self) -> None:
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(min(self.seconds / 8, PUBLISH_EVERY)):
            self._publish()
            if self._place[1] < 3 and time.monotonic() - self._since > self.seconds and not self._end.is_set():
                if self.folder is not None and claim(self.folder):  # every rank that waits comes here
                    sys.stderr.write(f"{SanakitError('SK0509', self.verdict())}\n")
                    sys.stderr.flush()
                os._exit(ExitCode.ENVIRONMENT)  # the main thread hangs in a collective and cannot raise

    def verdict(self) -> str:
        """Who stands where, the one furthest behind first."""
        assert self.folder is not None
        places: dict[int, dict[str, Any]] = {}
        for number in range(world_size()):
            try:
                places[number] = json.loads((self.folder / f"{number}.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                places[number] = {"step": -1, "phase": 0, "host": "unknown"}
        furthest = min((p["step"], p["phase"]) for p in places.values())
        behind = [n for n, p in places.items() if (p["step"], p["phase"]) == furthest]
        step, phase = furthest
        names = ", ".join(f"rank {n} on {places[n]['host']}" for n in behind)
        if len(behind) == world_size():
            return f"all {world_size()} ranks stand at step {step} for over {self.seconds:g} s, each {PHASES[phase]}"
        return f"{names} holds up {world_size()} ranks for over {self.seconds:g} s: at step {step} it {PHASES[phase]}"

    def _publish(self) -> None:
        assert self.folder is not None
        step, phase = self._place
        path = self.folder / f"{rank()}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"step": step, "phase": phase, "host": socket.gethostname()}), encoding="utf-8")
        temporary.replace(path)
