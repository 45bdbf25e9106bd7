"""The one command that comes next."""

import shlex
from collections.abc import Mapping
from typing import Any

from sanakit.decision.cost import recommended
from sanakit.decision.risk import open_gates

Row = Mapping[str, Any]
STAGES = ("component", "smoke", "full")
PERCENTILE = 0.8  # of the forecast: the steps that stage full takes
TRAIN_LONGER = ("full/quality", "full/prompt-effect")


def next_command(
    stages: Row,
    strategy: Row,
    *,
    run_dir: str,
    kind: str,
    candidate: str | None = None,
    bare: bool = False,
    tunes_vae: bool = False,
    first_failed: Row | None = None,
    trained_steps: int | None = None,
    refused: bool = False,
) -> str:
    """first_failed: the failed gate to check first, if any. trained_steps: of a stage full that is done. refused: a
    loss is beyond what the policy allows."""
    gates = [gate for stage in stages.values() for gate in stage.get("gates") or []]
    noun, run = ("vae" if kind == "vae" else "text-encoder"), shlex.quote(run_dir)
    broken = next((gate for gate in gates if gate.get("error")), None)
    if first_failed and first_failed["gate"] in TRAIN_LONGER and trained_steps:
        return f"sanakit validate --stage full --run-dir {run} --set train.max_steps={2 * trained_steps}"
    if first := first_failed or broken:
        return f"sanakit explain {first['code']}"
    if bare:
        return f"sanakit swap-{noun} --candidate {shlex.quote(str(candidate))}"
    if refused:
        return f"sanakit ls {noun}s"
    pending = [s for s in (("full",) if tunes_vae else STAGES) if s not in stages]
    longer = strategy.get("steps_that_tell")
    if pending == ["full"] and not tunes_vae and not strategy.get("conclusive", True) and longer:
        return f"sanakit validate --stage smoke --run-dir {run} --set smoke.budget_steps={longer}"
    if pending:
        number = f" --set train.max_steps={longer}" if pending == ["full"] and needs_number(strategy) and longer else ""
        return f"sanakit validate --stage {pending[0]} --run-dir {run}{number}"
    if tunes_vae:
        return f"sanakit swap-vae --candidate {shlex.quote(f'path:{run_dir}/vae')}"
    if undecided := open_gates(gates):
        return f"sanakit explain {undecided[0]['code']}"
    return f"sanakit export --run-dir {run} --out {shlex.quote(f'{run_dir}/export')}"


def needs_number(strategy: Row) -> bool:
    """Whether stage full refuses to take its steps from the race: their 80th percentile is open or beyond the
    horizon."""
    best = recommended(strategy)
    if not best or best.get("predicted_steps") is None:
        return False
    return best.get("predicted_steps_high", 0) is None or best.get("probability_within_horizon", 1) < PERCENTILE
