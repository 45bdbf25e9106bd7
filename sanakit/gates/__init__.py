"""Rules on measurements; a stage passes when none of its gates fails."""

from sanakit.gates.base import GATES, Evidence, Measurement, NotApplied, rule
from sanakit.gates.judging import Judgement, judge_stage, run_gates
from sanakit.gates.policy import Policy, gate_names, load_policy

__all__ = [
    "GATES",
    "Evidence",
    "Judgement",
    "Measurement",
    "NotApplied",
    "Policy",
    "gate_names",
    "judge_stage",
    "load_policy",
    "rule",
    "run_gates",
]
