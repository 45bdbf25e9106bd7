"""What a text encoder is worth beside its own class with random weights: the control of stages component and smoke.

The control is measured once for each architecture, base and data, and kept in the cache as `control-<key>.safetensors`.
"""

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanakit.alignment.similarity import agreement, frequent_words, word_features
from sanakit.data.cache import embeddings
from sanakit.data.dataset import first_images
from sanakit.data.table import EVALUATED_BY
from sanakit.distributed import STOP, agreed_stop
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import averaged, held_out
from sanakit.files import cache_dir
from sanakit.flow import EVAL_SIGMAS
from sanakit.hashing import hash_record
from sanakit.placement import Placement, host
from sanakit.ranks.sharing import all_ranks
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.plan import build
from sanakit.swap.race import RaceStopped, raced_options
from sanakit.swap.rungs import rungs
from sanakit.swap.settings import configured, options_of
from sanakit.text_encoders import TextEncoder
from sanakit.text_encoders.random_weights import architecture
from sanakit.training.loop import fit, layer_groups, new_state
from sanakit.training.state import at_work

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

SEED = 0
FEWEST_WORDS = 64  # by which two encoders are compared
IMAGES = 2048  # of the training split: captions whose words are compared, and what the race against the control reads
STRATEGY = "finetune"
HELD_OUT = 384  # images: more than evaluate the race, as two encoders differ by less than an encoder and none
LEAST_WEIGHT = 0.05  # of a noise level that is evaluated


def meaning_evidence(swap: "Swap") -> dict[str, Any]:
    """Of stage component: agreement of candidate and control with the base's own encoder on the frequent words of the
    training split, one term for each word; {} where the captions hold too few words, or the base reads other captions:
    two languages have no words in common."""
    candidate = swap.candidate
    assert isinstance(candidate, TextEncoder)
    if swap.splits[0].captions_base:
        return {}
    captions = [caption for image_captions in swap.splits[0].captions[:IMAGES] for caption in image_captions]
    words = frequent_words(captions)
    if len(words) < FEWEST_WORDS:
        return {}

    def remember(key: Any, work: Any) -> Any:
        return remembered(swap, key, work)

    return agreement_with_base(candidate, swap.base_system.text_encoder, words, remember, swap.placement)


def agreement_with_base(
    candidate: TextEncoder,
    base: TextEncoder,
    words: list[str],
    remember: Callable[[Any, Callable[[], Tensor]], Tensor] = lambda key, work: work(),
    placement: Placement | None = None,
) -> dict[str, Any]:
    """{"agreement", "control_agreement"}: (N,) terms of `agreement`. remember: where the control's are kept."""
    placement = placement or host()
    with placement.holding(base):
        base_features = word_features(base, words)

    def measured_agreement(encoder: TextEncoder) -> Any:
        with placement.holding(encoder):
            return agreement(word_features(encoder, words), base_features)

    control = remember(
        ["agreement", base.fingerprint(), words],
        lambda: torch.from_numpy(measured_agreement(candidate.with_random_weights(SEED))),
    )
    return {"agreement": measured_agreement(candidate), "control_agreement": control.numpy()}


def control_evidence(swap: "Swap", budget: int) -> dict[str, np.ndarray]:
    """Of stage smoke: {"control_lead": (N,)}, the control's loss less the candidate's on held-out images, in units of
    the base's prompt gain. Both start from the closed form and train STRATEGY for the shortest rung of the race; the
    better of start and rung counts. Both read the first IMAGES of the training split. Raises RaceStopped after a
    signal."""
    candidate, base, config = swap.candidate, swap.base_system, swap.config
    assert isinstance(candidate, TextEncoder)
    weights = swap.target.weights
    chosen = [i for i, weight in enumerate(weights) if weight >= LEAST_WEIGHT]
    sigmas = tuple(EVAL_SIGMAS[i] for i in chosen)
    steps = rungs(budget)[0]
    swap.progress("racing the control with random weights", 0, 2)
    key = ["race", STRATEGY, steps, budget, HELD_OUT, sigmas, config.train.model_dump(mode="json"), config.adapter.name]
    key += [swap.base_fingerprint, base.image_size, config.data.caption_temperature, EVALUATED_BY]
    control = remembered(
        swap, key, lambda: short_race(swap, candidate.with_random_weights(SEED), steps, budget, sigmas)
    )
    swap.progress("racing the control with random weights", 1, 2)
    candidate_losses = short_race(swap, candidate, steps, budget, sigmas)
    ends = [better_evaluation(losses, weights[chosen]) for losses in (control, candidate_losses)]
    return {"control_lead": (ends[0] - ends[1]) / swap.target.unit}


def short_race(swap: "Swap", encoder: TextEncoder, steps: int, budget: int, sigmas: tuple[float, ...]) -> Tensor:
    """Held-out losses after the closed form and after `steps` of STRATEGY, its average of weights; of one that diverges
    the start alone. (K, S, N)"""
    base_train = first_images(swap.base_data[0], IMAGES)
    train, test = (
        first_images(data, count) for data, count in zip(swap.candidate_data, (IMAGES, HELD_OUT), strict=True)
    )
    if encoder is not swap.candidate:
        train, test = (
            replace(data, captions=embeddings(encoder, data.texts, placement=swap.placement)) for data in (train, test)
        )
    config, seed = swap.config, swap.config.train.seed
    strategy = configured(config, STRATEGIES.get(STRATEGY))
    system, _ = build(swap.base_system, encoder, strategy, train, base_train, seed=seed, adapter=config.adapter.name)
    options = raced_options(options_of(config, strategy), budget, strategy.learning_rate)

    def evaluate() -> Tensor:
        return held_out(system, test, count=len(test), sigmas=sigmas).losses

    start = evaluate()
    groups = layer_groups(system.core, strategy.parameter_groups(system.core), config.train.layer_decay)
    state = new_state(system.core, groups, options, placement=system.placement)
    with STOP.at_step_border(), at_work(state):
        try:
            fit(system, train, options, state, until=steps)
        except SanakitError as error:
            if error.code != "SK0501":
                raise
            return start[None]  # it diverged: what it was worth at the start counts
        stop = agreed_stop()
    if stop:
        raise RaceStopped(stop, state.step, steps, "the control with random weights")
    with averaged(system.core, state.ema):
        return torch.stack([start, evaluate()])


def better_evaluation(losses: Tensor, weights: np.ndarray) -> np.ndarray:
    """Weighted losses of the evaluation whose mean is lower. losses (K, S, N), weights (S,) -> (N,)"""
    weighed = np.einsum("s,ksn->kn", weights, losses.double().numpy())
    return np.asarray(weighed[weighed.mean(1).argmin()])


def remembered(swap: "Swap", key: Any, work: Callable[[], Tensor]) -> Tensor:
    """What `work` gives for the control of the candidate's architecture, kept in the cache."""
    assert isinstance(swap.candidate, TextEncoder)
    facts = [
        key,
        architecture(swap.candidate),
        swap.images.fingerprint,
        swap.config.train.seed,
        SEED,
        torch.__version__,
    ]
    placement = swap.placement
    facts += [placement.compute_facts(part) for part in ("text_encoder", "base") if placement.compute_facts(part)]
    path = cache_dir() / f"control-{hash_record(facts)[:24]}.safetensors"
    known: Tensor | None = None
    with suppress(OSError, SafetensorError, KeyError):
        known = load_file(path)["found"]
    if all_ranks(known is not None):
        assert known is not None
        return known
    value = work()
    aside = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    save_file({"found": value.contiguous()}, aside)
    aside.replace(path)
    return value
