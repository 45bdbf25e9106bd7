"""What a run folder already holds: it counts where it was measured on this candidate, base and data, and only there."""

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from sanakit.config import Config
from sanakit.distributed import is_main
from sanakit.strategies.base import Strategy
from sanakit.swap.full_steps import with_steps
from sanakit.swap.settings import strategy_of

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

RACE, START = "strategy.json", "start.json"
FILES = {
    "component": ("component.json", "layers.json"),
    "smoke": (RACE, START, "plan.json"),
    "full": ("evaluation.json",),
}


def raced(swap: "Swap") -> dict[str, Any]:
    """strategy.json; empty where no race was run, and where it was another one's."""
    return of_this_race(swap, RACE)


def of_this_race(swap: "Swap", name: str) -> dict[str, Any]:
    """A file that stage smoke wrote, empty where its `measured` is not the stage's fingerprint. One that does not state
    it is older: the stage's own record tells."""
    record: dict[str, Any] = swap.run.read_json(name, {})
    if not record:
        return {}
    stages = swap.run.read_validation()["stages"]
    measured = record.get("measured") or (stages.get("smoke") or {}).get("measured")
    return record if measured is None or measured == swap.fingerprint("smoke") else {}


def trained_by(swap: "Swap") -> tuple[type[Strategy], Config]:
    """The strategy of stage full at the race's rate, and the configuration with the number of its steps where a number
    can be told."""
    race = raced(swap)
    return strategy_of(swap.config, race), with_steps(swap.config, race)


def _of_another(stage: str, row: dict[str, Any]) -> bool:
    return row.get("stage") != stage


def drop_others(swap: "Swap", validation: dict[str, Any]) -> None:
    """Leave out every stage that was measured on another candidate, base, data set, or race; its files are set aside,
    as `other-NAME`."""
    stages = validation["stages"]
    # smoke goes before full, whose fingerprint reads the race
    for stage in [name for name in FILES if name in stages]:
        if stages[stage].get("measured") == swap.fingerprint(stage):
            continue
        del stages[stage]
        for name in FILES[stage]:
            if (path := swap.run.path / name).is_file():
                path.replace(path.with_name(f"other-{name}"))
        for name in ("metrics.jsonl", "readings.jsonl"):
            swap.run.keep_rows(name, partial(_of_another, stage))
        if is_main():
            told = "was measured with another candidate, base, data set, race or configuration"
            print(f"{stage} {told}: its results are left out, and its files kept as other-*", file=sys.stderr)
