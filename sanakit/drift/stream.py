"""A stream that is watched: rows of every step are kept on the device, features and tests are computed at an evaluation
only.

Two kinds. Still streams (latents and prompts of frozen encoders) must not drift: an e-process alarms with probability
at most alpha over the whole run, however often it is read. Moving streams (outputs of adapters, activations, clean
estimates, encoders in training) drift by design and alarm outside a band of effect sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sanakit.contracts import Reading
from sanakit.drift.equivalence import equivalence
from sanakit.drift.features import STRUCTURED, block_names, embedding_blocks, latent_blocks
from sanakit.drift.sequential import EProcess
from sanakit.errors import SanakitError

ALPHA = 0.05
ROWS = 128  # kept of an evaluation
AT_ONCE = 16  # of a step
GOLDEN, WORD = 2654435769, 1 << 32  # 2^32 / golden ratio: multiples of it fall evenly and in no rhythm
COUNTERS = ("seen", "last", "sound", "outside")  # kept in a checkpoint
FEWEST = 16  # rows of an evaluation that a band is evaluated on
CAUSES = {
    "latents": "data or preprocessing changed (crop, resize, noise, compression, colour order, another cache), "
    "as the VAE is frozen",
    "embeddings": "captions, their instruction or the tokenizer changed, as the text encoder is frozen",
    "adapters": "the learning rate of the input or caption group is too high for aligned weights",
    "activations": "the core leaves what it had learnt: lower its learning rate, or train fewer groups",
    "generated": "clean estimates at little noise do not resemble data: scale, shift or the output head",
    "components": "this part's learning rate is too high for the rest, trained on its old output, to follow: lower "
    "text_encoder.learning_rate (train.learning_rate for a VAE), or widen monitors.bands",
}


@dataclass
class Stream:
    """reference: values (N, C, h, w), a list of such by shape, or (N, L, D) with `mask`. still: no drift is expected;
    otherwise `band` bounds the effect, in sd. alpha: of the whole run, divided over `num_evaluations` where an
    evaluation is a test. steps: between evaluations, so that about 128 rows are kept of them. grouped: the rows of a
    step are alike (of one aspect bucket), so one of them is kept: more would speak of the group, not of the data."""

    name: str
    reference: Tensor | list[Tensor]
    mask: Tensor | None = None
    still: bool = True
    alpha: float = ALPHA
    band: float = 0.5
    num_evaluations: int = 8
    steps: int = 1
    grouped: bool = False
    blocks: Sequence[str] = STRUCTURED
    where: str = ""
    kept: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    bad: Tensor | None = None  # (C,) values that are not finite, since the last evaluation
    seen: int = 0
    evaluated_at: list[int] = field(default_factory=list)  # steps of the evaluations that fed the e-process
    last: int = 0  # step of the last evaluation
    sound: int = 0  # step of the last evaluation inside the band
    outside: int = 0  # step of the first evaluation outside since then
    since: int = 0  # the step before which nothing spoke of what the last report alarms about
    left_out: str = ""  # what the next report says of evidence that a checkpoint held and this version cannot use

    def __post_init__(self) -> None:
        parts = self.reference if isinstance(self.reference, list) else [self.reference]
        rows, names = features([(part, self.mask) for part in parts], self.blocks)
        rows = rows[np.isfinite(rows).all(1)]
        if len(rows) < 2:
            raise SanakitError("SK0704", f"{self.name}: the reference has {len(rows)} finite rows, expected 32 or more")
        self.base, self.names, self.reference, self.mask = rows, names, [], None  # the features are what is kept
        self.process = EProcess(rows) if self.still else None

    @property
    def wanted(self) -> int:
        """Rows of the next step that will be kept; what is observed beyond them is not read."""
        if not falls_on(self.seen + 1, self.stride):
            return 0
        return 1 if self.grouped else -(-ROWS * self.stride // max(1, self.steps))

    @property
    def stride(self) -> int:
        """Rows are kept of one in how many steps: AT_ONCE of them or more, which costs little more than one."""
        return max(1, self.steps * (1 if self.grouped else AT_ONCE) // ROWS)

    @torch.no_grad()
    def observe(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Values of a step; some rows are copied, nothing is computed but a count of what is not finite in them."""
        share, self.seen = self.wanted, self.seen + 1
        if not share:
            return
        values = values[:share].detach().clone()
        bad = (~values.isfinite()).movedim(1 if values.ndim == 4 else -1, 0).flatten(1).sum(1)
        self._follow(values.device)
        self.bad = bad if self.bad is None or len(self.bad) != len(bad) else self.bad + bad
        self.kept.append((values, None if mask is None else mask[:share].clone()))

    def _follow(self, device: torch.device) -> None:
        """What a checkpoint held lies on the CPU; the stream that goes on may not."""
        if self.bad is not None:
            self.bad = self.bad.to(device)
        if self.kept and self.kept[0][0].device != device:
            self.kept = [(v.to(device), None if m is None else m.to(device)) for v, m in self.kept]

    def report(self, step: int) -> list[Reading]:
        """Readings over what was kept since the last evaluation; none where that is nothing."""
        self.since = step
        if not self.kept:
            return []
        readings = self._nonfinite(step)
        self.since, self.last = self.last if readings else step, step
        if self.left_out:
            title = f"{self.name}: {self.left_out}; the test begins again at this evaluation"
            readings.append(Reading(name=self.name, title=title, value=0.0, where=self.where, step=step))
            self.left_out = ""
        rows, _ = features(self.kept, self.blocks)
        self.kept.clear()
        if rows.shape[1] != self.base.shape[1]:
            raise SanakitError(
                "SK0702",
                f"{self.name}: the two fingerprints differ in features: {self.base.shape[1]} of the reference against "
                f"{rows.shape[1]} of the stream: other channels, or another width",
            )
        rows = rows[np.isfinite(rows).all(1)]
        rows = rows[np.sort(np.random.default_rng(step).permutation(len(rows))[:ROWS])]
        if self.process:
            return readings + self._still(self.process, rows, step)
        return readings + (self._moving(rows, step) if len(rows) >= FEWEST else [])

    def _nonfinite(self, step: int) -> list[Reading]:
        bad, self.bad = self.bad, None
        if bad is None or not int(bad.sum()):
            return []
        worst = int(bad.argmax())
        return [
            Reading(
                name=self.name,
                title=f"{self.name}: values that are NaN or Inf",
                value=float(bad.sum()),
                threshold=0.0,
                alarm=True,
                where=": ".join(part for part in (self.where, f"most in channel {worst} ({int(bad[worst])})") if part)
                + f", since step {self.last + 1}; likely cause: overflow in half precision",
                step=step,
            )
        ]

    def _still(self, process: EProcess, rows: np.ndarray, step: int) -> list[Reading]:
        self.evaluated_at += [step] if len(rows) else []
        evidence = process.add(rows)
        p_value = min(1.0, 1 / evidence.highest)
        since = self.evaluated_at[evidence.since] if self.evaluated_at else step
        alarm = p_value <= self.alpha
        if alarm:
            self.since = min(self.since, self.evaluated_at[evidence.since - 1] if evidence.since else 0)
        return [
            self._reading(
                f"{self.name}: largest shift of the stream in ranks, in sd (e-process)",
                evidence.effect,
                evidence.ci_low if np.isfinite(evidence.ci_low) else None,
                evidence.ci_high if np.isfinite(evidence.ci_high) else None,
                alarm,
                f"{self.names[evidence.column]}, since step {since}",
                step,
                p_value=p_value,
            )
        ]

    def _moving(self, rows: np.ndarray, step: int) -> list[Reading]:
        bounds = equivalence(self.base, rows, self.band, self.alpha / self.num_evaluations, names=self.names)
        title = f"{self.name}: largest effect, in sd, against a band of {self.band:g} (equivalence, {bounds.verdict})"
        alarm = bounds.verdict == "outside"
        if alarm:
            self.outside, self.since = self.outside or step, min(self.since, self.sound)
        else:
            self.outside, self.sound = 0, step
        when = f"since step {self.outside}" if alarm else "at this evaluation"
        return [
            self._reading(title, bounds.effect, bounds.ci_low, bounds.ci_high, alarm, f"{bounds.where}, {when}", step)
        ]

    def _reading(
        self,
        title: str,
        value: float,
        low: float | None,
        high: float | None,
        alarm: bool,
        where: str,
        step: int,
        *,
        p_value: float | None = None,
    ) -> Reading:
        where = ": ".join(part for part in (self.where, where) if part)
        return Reading(
            name=self.name,
            title=title,
            value=value,
            ci_low=low,
            ci_high=high,
            p_value=p_value,
            threshold=self.alpha if p_value is not None else self.band,
            alarm=alarm,
            where=where + (f"; likely cause: {CAUSES[self.name]}" if alarm else ""),
            step=step,
        )

    def tensors(self, key: str) -> dict[str, Tensor]:
        """For a checkpoint: evidence so far, and what was kept since the last evaluation."""
        saved = {f"{key}.{name}": torch.tensor(getattr(self, name)) for name in COUNTERS}
        for number, (values, mask) in enumerate(self.kept):
            saved[f"{key}.kept.{number:04}"] = values.cpu()
            if mask is not None:
                saved[f"{key}.mask.{number:04}"] = mask.cpu()
        if self.bad is not None:
            saved[f"{key}.bad"] = self.bad.cpu()
        if self.process and self.process.sums:
            saved[f"{key}.pool"] = torch.from_numpy(self.process.pool)
            saved[f"{key}.sums"] = torch.from_numpy(np.stack(self.process.sums))
            saved[f"{key}.counts"] = torch.tensor(self.process.counts)
            saved[f"{key}.looked"] = torch.tensor(self.evaluated_at)
            saved[f"{key}.highest"] = torch.tensor(self.process.highest, dtype=torch.float64)
        return saved

    def restore(self, tensors: dict[str, Tensor], key: str) -> None:
        """To what `tensors` said; to the start where they say nothing."""

        def part(name: str) -> Tensor | None:
            return tensors.get(f"{key}.{name}")

        self.bad, self.evaluated_at = part("bad"), []
        for name in COUNTERS:
            setattr(self, name, int(tensors.get(f"{key}.{name}", 0)))
        names = sorted(name for name in tensors if name.startswith(f"{key}.kept."))
        self.kept = [(tensors[name], tensors.get(name.replace(".kept.", ".mask."))) for name in names]
        if self.process:
            self.process, self.left_out = EProcess(self.base), ""
            pool = part("pool")
            if pool is not None and len(pool) != self.base.shape[1]:
                self.left_out = (
                    f"the checkpoint's evidence is of {len(pool)} features, "
                    f"those of this version are {self.base.shape[1]}"
                )
            elif pool is not None:
                self.process.pool = pool.numpy()
                self.process.sums = list(tensors[f"{key}.sums"].numpy())
                self.process.counts = tensors[f"{key}.counts"].tolist()
                self.process.highest = float(tensors[f"{key}.highest"])
                self.evaluated_at = tensors[f"{key}.looked"].tolist()


def falls_on(step: int, stride: int) -> bool:
    """One step in `stride`, evenly, but in no rhythm that the data may have too (two aspect buckets in turns)."""
    return step * GOLDEN % WORD < WORD // stride


def features(parts: list[tuple[Tensor, Tensor | None]], blocks: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One row per image or prompt of (N, C, h, w) or (N, L, D), and what the columns are. Tensors of one shape are
    taken together."""
    by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor | None]]] = {}
    for values, mask in parts:
        by_shape.setdefault(tuple(values.shape[1:]), []).append((values, mask))
    rows, names = [], []
    for shape, group in by_shape.items():
        if len(shape) == 3:
            by_block, channels = latent_blocks(torch.cat([v for v, _ in group])), shape[0]
        else:
            by_block, channels = _by_parts(group), shape[-1]
        chosen = [name for name in blocks if name in by_block]
        rows.append(torch.cat([by_block[name] for name in chosen], 1).cpu().numpy())
        names = [label for name in chosen for label in block_names(name, by_block[name].shape[1], channels)]
    return np.concatenate(rows), names


def _by_parts(group: list[tuple[Tensor, Tensor | None]]) -> dict[str, Tensor]:
    """`embedding_blocks` of all, a few rows at a time: what it computes on the way is several times what it reads."""
    parts = []
    for values, mask in group:
        mask = torch.ones(values.shape[:2], device=values.device) if mask is None else mask
        parts += [embedding_blocks(*few) for few in zip(values.split(AT_ONCE), mask.split(AT_ONCE), strict=True)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
