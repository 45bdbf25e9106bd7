"""Rules on measurements; a stage passes when none of its gates fails."""

from sanakit.gates.base import GATES, Evidence, run_gates

__all__ = ["GATES", "Evidence", "run_gates"]
