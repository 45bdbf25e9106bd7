"""Rules on measurements; a stage passes when none of its gates fails."""

from sanakit.checks.base import GATES, Evidence, Measurement, NotApplied, rule
from sanakit.checks.policy import Policy, gate_names, load_policy
from sanakit.checks.stage import StageResult, evaluate_stage, run_gates

__all__ = [
    "GATES",
    "Evidence",
    "Measurement",
    "NotApplied",
    "Policy",
    "StageResult",
    "evaluate_stage",
    "gate_names",
    "load_policy",
    "rule",
    "run_gates",
]
