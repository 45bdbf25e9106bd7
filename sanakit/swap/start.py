"""Where strategies that train begin (`train.start`): the closed form of the swapped layers (`align`), that of every
block (`align-blocks`), or whichever of the two has the lower held-out error before the first step (`auto`)."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diffusers import SanaTransformer2DModel

from sanakit.alignment.blocks import bytes_needed
from sanakit.assembly import LatentDiffusion
from sanakit.config import Config
from sanakit.evaluation.held_out import held_out
from sanakit.strategies.base import STRATEGIES, Strategy, joined_by
from sanakit.swap.plan import build
from sanakit.swap.recorded import START, of_this_race

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

STARTS = ("align", "align-blocks")
Built = tuple[LatentDiffusion, dict[str, Any]]


def starting_at(strategy: type[Strategy], start: str) -> type[Strategy]:
    """The strategy with its layers initialised by `start`, where it follows `train.start`; as it is otherwise."""
    if not strategy.follows_start or strategy.initialise == start:
        return strategy
    return type(strategy.__name__, (strategy,), {"initialise": start})


def build_start(swap: "Swap", strategy: type[Strategy]) -> Built:
    """The swapped system as a strategy starts it, and what its alignment says."""
    config, train, base_train = swap.config, swap.candidate_data[0], swap.base_data[0]
    return build(
        swap.base_system,
        swap.candidate,
        strategy,
        train,
        base_train,
        seed=config.train.seed,
        adapter=strategy.adapter or None,
        draws=config.train.start_draws,
    )


def choose_start(
    swap: "Swap",
    strategies: Sequence[type[Strategy]],
    started: Callable[[type[Strategy]], Built],
    *,
    again: bool = True,
) -> str:
    """Either of STARTS, as `train.start` says. For `auto` both are built and evaluated on the held-out images, and
    start.json records their relative errors; again=False takes the choice that is recorded there, if any. "align" where
    the blocks cannot be solved, and for `auto` where no strategy follows `train.start`.
    """
    wanted = swap.config.train.start
    if wanted != "auto" or not any(strategy.follows_start for strategy in strategies):
        return "align" if wanted == "auto" else wanted
    if not again and (known := of_this_race(swap, START)):
        return str(known["start"])
    adapters = {strategy.adapter for strategy in strategies if strategy.follows_start}
    adapter = adapters.pop() if len(adapters) == 1 else ""  # of several interface layers the linear one chooses for all
    errors, note = {}, ""
    for name in STARTS:
        system, scores = started(joined_by(STRATEGIES.get(name), adapter))
        result = held_out(system, swap.candidate_data[1], count=swap.num_held_out)
        errors[name] = float(swap.target.relative(result).mean())
        note = str(scores.get("start_note", note))
    start = "align" if note else min(STARTS, key=lambda name: errors[name])
    found = {"start": start, "relative_errors": errors, "note": note}
    swap.run.write_json(START, found | {"measured": swap.fingerprint("smoke")})
    return start


def start_needs(
    config: Config,
    core: SanaTransformer2DModel,
    latent_shape: tuple[int, int, int],
    strategies: Sequence[type[Strategy]],
) -> dict[str, int]:
    """What the plan and the dry run say of the closed form of the blocks: {"start_draws", "start_streams",
    "start_moments"}, the last two in bytes of host memory; empty where no strategy asks for it. latent_shape: of the
    candidate."""
    follows = config.train.start != "align"
    if not any(s.initialise == "align-blocks" or (s.follows_start and follows) for s in strategies):
        return {}
    streams, moments = bytes_needed(core, tokens_of(core, latent_shape), config.train.start_draws)
    return {"start_draws": config.train.start_draws, "start_streams": streams, "start_moments": moments}


def tokens_of(core: SanaTransformer2DModel, latent_shape: tuple[int, int, int]) -> int:
    """Of an image."""
    return int(latent_shape[1] * latent_shape[2] // core.config.patch_size**2)


def start_remark(base_tokens: int, own_tokens: int, needs: dict[str, int]) -> str:
    """One sentence for the plan, from the tokens of an image on both sides; empty where nothing is needed."""
    if not needs:
        return ""
    if own_tokens != base_tokens:
        return f"align-blocks starts as align does: {base_tokens} tokens an image -> {own_tokens}, it needs as many"
    streams, moments = (f"{needs[key] / 2**20:,.1f} MiB" for key in ("start_streams", "start_moments"))
    return (
        f"align-blocks reads {needs['start_draws']} draws (train.start_draws): {streams} on the host for both streams, "
        f"{moments} for the normal equations of one layer"
    )
