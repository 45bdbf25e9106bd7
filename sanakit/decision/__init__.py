"""From what a run measured to a decision: pure functions on the records of a run folder. Imports no torch.

docs/decision.md has the rules.
"""

from sanakit.decision.answer import ANSWERS, decide_swap
from sanakit.decision.measures import MEASURES, measure_names

__all__ = ["ANSWERS", "MEASURES", "decide_swap", "measure_names"]
