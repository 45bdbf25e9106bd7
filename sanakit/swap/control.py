"""What a text encoder is worth beside its own class with random weights: the control of stages component and smoke.

The control is measured once for each architecture, base and data, and kept in the cache as `control-<key>.safetensors`.
"""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sanakit.alignment.similarity import agreement, frequent_words, word_features
from sanakit.data.cache import cache_dir, embeddings
from sanakit.data.dataset import LatentDataset
from sanakit.data.store import Rows
from sanakit.hashing import hash_module, hash_record
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.swap.plan import build
from sanakit.swap.race import Course, advance, enter, rungs
from sanakit.swap.settings import configured, options_of
from sanakit.text_encoders import TextEncoder
from sanakit.text_encoders.random_weights import architecture

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

SEED = 0
FEWEST_WORDS = 64  # by which two encoders are compared
IMAGES = 2048  # of the training split: captions whose words are compared, and what the race against the control reads
STRATEGY = "finetune"


def meaning_evidence(swap: "Swap") -> dict[str, Any]:
    """Of stage component: agreement of candidate and control with the base's own encoder on the frequent words of the
    training split, one term for each word; {} where the captions hold too few words."""
    candidate = swap.candidate
    assert isinstance(candidate, TextEncoder)
    captions = [caption for own in swap.halves[0].captions[:IMAGES] for caption in own]
    words = frequent_words(captions)
    if len(words) < FEWEST_WORDS:
        return {}
    remember = lambda key, work: remembered(swap, key, work)
    return agreement_with_base(candidate, swap.base_system.text_encoder, words, remember)


def agreement_with_base(
    candidate: TextEncoder,
    base: TextEncoder,
    words: list[str],
    remember: Callable[[Any, Callable[[], Tensor]], Tensor] = lambda key, work: work(),
) -> dict[str, Any]:
    """{"agreement", "control_agreement"}: (N,) terms of `agreement`. remember: where the control's are kept."""
    base_features = word_features(base, words)
    judged = lambda encoder: agreement(word_features(encoder, words), base_features)
    control = remember(
        ["agreement", base.fingerprint(), words],
        lambda: torch.from_numpy(judged(candidate.with_random_weights(SEED))),
    )
    return {"agreement": judged(candidate), "control_agreement": control.numpy()}


def control_evidence(swap: "Swap", budget: int) -> dict[str, np.ndarray]:
    """Of stage smoke: relative errors of candidate and control, each the better of two looks: after the closed form, and
    after the shortest rung of the race with STRATEGY. Both read the first IMAGES of the training split. Raises
    RaceStopped after a signal."""
    candidate = swap.candidate
    assert isinstance(candidate, TextEncoder)
    swap.progress("racing the control with random weights", 0, 2)
    steps = rungs(budget)[0]
    key = [
        "race",
        STRATEGY,
        steps,
        swap.num_held_out,
        swap.config.train.model_dump(mode="json"),
        swap.config.adapter.name,
    ]
    key += [hash_module(swap.base_system.core), swap.base_system.vae.fingerprint()]
    key += [swap.base_system.text_encoder.fingerprint(), swap.base_system.image_size]
    control = remembered(swap, key, lambda: short_race(swap, candidate.with_random_weights(SEED), steps, budget))
    swap.progress("racing the control with random weights", 1, 2)
    own = short_race(swap, candidate, steps, budget)
    return {"control_error": better_look(swap, control), "error_at_control": better_look(swap, own)}


def short_race(swap: "Swap", encoder: TextEncoder, steps: int, budget: int) -> Tensor:
    """Held-out losses after the closed form and after `steps` of STRATEGY. (2, S, N)"""
    base_train = first_images(swap.base_data[0], IMAGES)
    own_train, own_test = (
        first_images(data, count) for data, count in zip(swap.candidate_data, (IMAGES, swap.num_held_out), strict=True)
    )
    if encoder is not swap.candidate:
        own_train, own_test = (
            replace(data, captions=embeddings(encoder, data.texts)) for data in (own_train, own_test)
        )
    strategy, seed = configured(swap.config, STRATEGIES.get(STRATEGY)), swap.config.train.seed
    system, _ = build(
        swap.base_system, encoder, strategy, own_train, base_train, seed=seed, adapter=swap.config.adapter.name
    )
    course = Course(
        data=own_train,
        test=own_test,
        target=swap.target,
        count=swap.num_held_out,
        options=options_of(swap.config, Strategy),
        layer_decay=swap.config.train.layer_decay,
    )
    arm = enter(course, strategy, system, budget=budget)
    advance(course, arm, steps)
    return torch.stack([result.losses for result in arm.results])


def better_look(swap: "Swap", losses: Tensor) -> np.ndarray:
    """Relative errors of the look whose mean is lower. losses (2, S, N) -> (N,)"""
    weighed = np.einsum("s,ksn->kn", swap.target.weights, losses.double().numpy())
    errors = (weighed - swap.target.floor) / swap.target.unit
    return np.asarray(errors[errors.mean(1).argmin()])


def first_images(data: LatentDataset, count: int) -> LatentDataset:
    """The first `count` images of a data set, with their captions."""
    if len(data) <= count:
        return data
    rows = slice(0, count)
    captions = slice(0, int(data.first[count - 1] + data.count[count - 1]))
    latents = data.latents
    return replace(
        data,
        names=data.names[rows],
        latents=Rows(latents.shards, latents.index[rows], latents.finish)
        if isinstance(latents, Rows)
        else latents[rows],
        captions=data.captions[captions],
        first=data.first[rows],
        count=data.count[rows],
        chances=None if data.chances is None else data.chances[rows],
        texts=data.texts[captions],
        spread=None,
    )


def remembered(swap: "Swap", key: Any, work: Callable[[], Tensor]) -> Tensor:
    """What `work` gives for the control of the candidate's architecture, kept in the cache."""
    assert isinstance(swap.candidate, TextEncoder)
    facts = [
        key,
        architecture(swap.candidate),
        swap.pictures.fingerprint,
        swap.config.train.seed,
        SEED,
        torch.__version__,
    ]
    path = cache_dir() / f"control-{hash_record(facts)[:24]}.safetensors"
    try:
        return load_file(path)["found"]
    except (OSError, SafetensorError, KeyError):
        found = work()
    aside = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    save_file({"found": found.contiguous()}, aside)
    aside.replace(path)
    return found
