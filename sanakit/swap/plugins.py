"""Plugins in a stage: what raises becomes a row that could not be evaluated, and the rest of the stage goes on."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from diffusers import SanaTransformer2DModel

from sanakit.checks import StageResult
from sanakit.contracts import GateResult
from sanakit.core.dit import GROUPS
from sanakit.distributed import is_main, world_size
from sanakit.registry import BUILTIN
from sanakit.strategies.base import STRATEGIES, Strategy
from sanakit.tracebacks import guarded, kept_in, plugin_of, told, unexpected

STARTS = ("reuse", "align", "align-blocks", "embedding-mse", "naive", "scratch")


def measure_stage(stage: str, run: Callable[[Any], StageResult], swap: Any) -> StageResult:
    """What the gates of a stage say. An error in the code of a plugin (a component, an adapter, a data set) is its only
    row; any other error goes on, its traceback kept in the run folder."""
    with kept_in(swap.run.path if is_main() else None):  # other ranks' folders are scratch
        stage_result, error = guarded(lambda: run(swap))
        if error is None:
            assert stage_result is not None
            return stage_result
        plugin = plugin_of(error) if unexpected(error) else None
        if plugin is None or world_size() > 1:  # a rank that went on alone would leave the others waiting
            raise error
        row = GateResult.could_not_be_evaluated(f"{stage}/measured", "SK0114", f"{plugin}: {told(error)}")
        return StageResult(results=[row])


def incomplete(stage: dict[str, Any]) -> bool:
    """A stage in which something could not be evaluated: it is measured again the next time."""
    return any(gate.get("error") for gate in stage["gates"])


def not_measured(stage: dict[str, Any]) -> bool:
    """A stage that a plugin kept from being measured at all: what builds on it is not run."""
    return any(gate.get("error") and gate["gate"].endswith("/measured") for gate in stage["gates"])


def sound_strategies(names: Sequence[str], core: SanaTransformer2DModel) -> tuple[list[str], list[GateResult]]:
    """The strategies that can race, and a row for each one of a plugin that cannot: it fails to import, states what no
    strategy may state, or its `parameter_groups` raises. core: the base's; a copy is tried."""
    sound, rows = [], []
    for name in names:
        entry = STRATEGIES.entries().get(name)
        if entry is not None and (entry.origin != BUILTIN or entry.error):
            _, error = guarded(partial(_try, name, core))
            if error is not None:
                rows.append(GateResult.could_not_be_evaluated(f"smoke/strategy {name}", *STRATEGIES.blame(name, error)))
                continue
        sound.append(name)
    return sound, rows


def _try(name: str, core: SanaTransformer2DModel) -> None:
    require_sound(STRATEGIES.get(name), core)


def require_sound(strategy: Any, core: SanaTransformer2DModel) -> None:
    """Raises TypeError or ValueError where the class breaks the contract of `Strategy`; a copy of the core is tried."""
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise TypeError(f"{strategy!r} is no subclass of Strategy")
    groups = (*GROUPS, "lora")
    wrong = {
        "kinds": not set(strategy.kinds) <= {"vae", "text_encoder"},
        "initialise": strategy.initialise not in STARTS,
        "scales": any(g not in groups or not 0 <= float(s) < float("inf") for g, s in strategy.scales.items()),
        "learning_rate": not 0 < float(strategy.learning_rate) < float("inf"),
        "text_learning_rate": not 0 < float(strategy.unraced_rate("text_encoder")) < float("inf"),
        "lora_rank": not (isinstance(strategy.lora_rank, int) and strategy.lora_rank >= 0),
        "teacher": strategy.teacher not in ("", "trajectories"),
    }
    for name in (name for name, bad in wrong.items() if bad):
        raise ValueError(f"{name} is {getattr(strategy, name)!r:.80}")
    tried = deepcopy(core)
    trained = {id(p) for group in strategy.parameter_groups(tried) for p in group["params"]}
    if not trained <= {id(p) for p in tried.parameters()}:
        raise ValueError("parameter_groups returns parameters that are not the core's")
