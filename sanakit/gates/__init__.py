"""Rules on measurements; a stage passes when none of its gates fails."""

from sanakit.gates.base import GATES, Evidence, run_gates
from sanakit.gates.policy import Policy, gate_names, load_policy

__all__ = ["GATES", "Evidence", "Policy", "gate_names", "load_policy", "run_gates"]
