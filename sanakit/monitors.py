"""What is watched while a model trains, when it speaks, and what happens then.

A `Stream` keeps some rows of every step on the device and computes features and tests at a look only, so a step waits
for nothing. Two kinds. Still streams (latents and prompts of frozen encoders) must not drift: an e-process alarms with
probability at most alpha over the whole run, however often it is looked at. Moving streams (outputs of adapters,
activations, clean estimates, encoders in training) drift by design and alarm outside a band of effect sizes.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from sanakit.assembly import LatentDiffusion
from sanakit.config import MonitorsSection
from sanakit.contracts import Reading
from sanakit.data.cache import LatentDataset
from sanakit.distributed import is_main, sum_over_ranks
from sanakit.drift.compare import STRUCTURED
from sanakit.drift.equivalence import equivalence
from sanakit.drift.features import block_names, embedding_blocks, latent_blocks
from sanakit.drift.sequential import EProcess
from sanakit.errors import SanakitError
from sanakit.flow import interpolate, predict_clean
from sanakit.train import Batch, TrainOptions, draw_batch

ALPHA = 0.05
REFERENCE = 1024  # pictures or prompts that a stream is compared with
ROWS = 128  # kept of a look
FEWEST = 16  # rows of a look that a band is judged on
LOW_SIGMA = 0.25  # below it a clean estimate should look like data
ACTIONS = ("off", "log", "warn", "lower-rate", "roll-back", "stop")
STILL = ("latents", "embeddings")
ADAPTERS = {"patch embedding": "patch_embed", "caption projection": "caption_projection"}
CAUSES = {
    "latents": "data or preprocessing changed (crop, resize, colour order, another cache), as the VAE is frozen",
    "embeddings": "captions, their instruction or the tokenizer changed, as the text encoder is frozen",
    "adapters": "the learning rate of the input or caption group is too high for aligned weights",
    "activations": "the core leaves what it had learnt: lower its learning rate, or train fewer groups",
    "generated": "clean estimates at little noise do not look like data: scale, shift or the output head",
    "components": "an encoder in training moved farther than its band",
}


class MonitorRequest(Exception):
    """An alarm whose action changes the run: `roll-back` or `stop`. since: the step from which on the stream drifted."""

    def __init__(self, action: str, reading: Reading, since: int) -> None:
        super().__init__(describe(reading))
        self.action, self.reading, self.since = action, reading, since


@dataclass
class Stream:
    """reference: values (N, C, h, w), a list of such by shape, or (N, L, D) with `mask`. still: no drift is expected;
    otherwise `band` bounds the effect, in sd. alpha: of the whole run, divided over `looks` where a look is a test.
    steps: between looks, so that about 128 rows are kept of them."""

    name: str
    reference: Tensor | list[Tensor]
    mask: Tensor | None = None
    still: bool = True
    alpha: float = ALPHA
    band: float = 0.5
    looks: int = 8
    steps: int = 1
    blocks: Sequence[str] = STRUCTURED
    where: str = ""
    kept: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    bad: Tensor | None = None  # (C,) values that are not finite, since the last look
    seen: int = 0
    looked: list[int] = field(default_factory=list)  # steps of the looks that fed the e-process

    def __post_init__(self) -> None:
        parts = self.reference if isinstance(self.reference, list) else [self.reference]
        rows, names = features([(part, self.mask) for part in parts], self.blocks)
        rows = rows[np.isfinite(rows).all(1)]
        if len(rows) < 2:
            raise SanakitError("SK0704", f"{self.name}: the reference has {len(rows)} finite rows, expected 32 or more")
        self.base, self.names = rows, names
        self.process = EProcess(rows) if self.still else None

    @torch.no_grad()
    def observe(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Values of a step; some rows are copied, nothing is computed but a count of what is not finite."""
        values = values.detach()
        bad = (~values.isfinite()).movedim(1 if values.ndim == 4 else -1, 0).flatten(1).sum(1)
        self.bad = bad if self.bad is None or len(self.bad) != len(bad) else self.bad + bad
        stride, self.seen = max(1, self.steps // ROWS), self.seen + 1
        if self.seen % stride == 0:
            share = -(-ROWS // max(1, self.steps))
            self.kept.append((values[:share].clone(), None if mask is None else mask[:share].clone()))

    def report(self, step: int) -> list[Reading]:
        """Readings over what was kept since the last look; none where that is nothing."""
        if not self.kept:
            return []
        readings = self._nonfinite(step)
        rows, _ = features(self.kept, self.blocks)
        self.kept.clear()
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
                where=f"most in channel {worst} ({int(bad[worst])}); likely cause: overflow in half precision",
                step=step,
            )
        ]

    def _still(self, process: EProcess, rows: np.ndarray, step: int) -> list[Reading]:
        self.looked += [step] if len(rows) else []
        found = process.add(rows)
        p_value = min(1.0, 1 / found.highest)
        since = self.looked[found.since] if self.looked else step
        return [
            self._reading(
                f"{self.name}: largest shift of the stream in ranks, in sd (e-process)",
                found.effect,
                found.ci_low if np.isfinite(found.ci_low) else None,
                found.ci_high if np.isfinite(found.ci_high) else None,
                p_value <= self.alpha,
                f"{self.names[found.column]}, since step {since}",
                step,
                p_value=p_value,
            )
        ]

    def _moving(self, rows: np.ndarray, step: int) -> list[Reading]:
        found = equivalence(self.base, rows, self.band, self.alpha / self.looks, names=self.names)
        title = f"{self.name}: largest effect, in sd, against a band of {self.band:g} (equivalence, {found.verdict})"
        alarm = found.verdict == "outside"
        return [
            self._reading(title, found.effect, found.ci_low, found.ci_high, alarm, f"{found.where}, at this look", step)
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

    @property
    def since(self) -> int:
        """The step before which nothing spoke of drift; 0 when none is known."""
        if not (self.process and self.looked):
            return 0
        return self.looked[self.process.evidence().since - 1] if self.process.evidence().since else 0

    def tensors(self, key: str) -> dict[str, Tensor]:
        """For a checkpoint: evidence so far, and what was kept since the last look."""
        found = {f"{key}.seen": torch.tensor(self.seen)}
        for number, (values, mask) in enumerate(self.kept):
            found[f"{key}.kept.{number:04}"] = values.cpu()
            if mask is not None:
                found[f"{key}.mask.{number:04}"] = mask.cpu()
        if self.bad is not None:
            found[f"{key}.bad"] = self.bad.cpu()
        if self.process and self.process.sums:
            found[f"{key}.pool"] = torch.from_numpy(self.process.pool)
            found[f"{key}.sums"] = torch.from_numpy(np.stack(self.process.sums))
            found[f"{key}.counts"] = torch.tensor(self.process.counts)
            found[f"{key}.looked"] = torch.tensor(self.looked)
            found[f"{key}.highest"] = torch.tensor(self.process.highest, dtype=torch.float64)
        return found

    def restore(self, tensors: dict[str, Tensor], key: str) -> None:
        """To what `tensors` said; to the start where they say nothing."""
        part = lambda name: tensors.get(f"{key}.{name}")
        self.seen, self.bad, self.looked = int(tensors.get(f"{key}.seen", 0)), part("bad"), []
        names = sorted(name for name in tensors if name.startswith(f"{key}.kept."))
        self.kept = [(tensors[name], tensors.get(name.replace(".kept.", ".mask."))) for name in names]
        if self.process:
            self.process = EProcess(self.base)
            if (pool := part("pool")) is not None:
                self.process.pool = pool.numpy()
                self.process.sums = list(tensors[f"{key}.sums"].numpy())
                self.process.counts = tensors[f"{key}.counts"].tolist()
                self.process.highest = float(tensors[f"{key}.highest"])
                self.looked = tensors[f"{key}.looked"].tolist()


def features(parts: list[tuple[Tensor, Tensor | None]], blocks: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """One row a picture or prompt of (N, C, h, w) or (N, L, D), and what the columns are. Tensors of one shape are
    taken together."""
    by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor | None]]] = {}
    for values, mask in parts:
        by_shape.setdefault(tuple(values.shape[1:]), []).append((values, mask))
    rows, names = [], []
    for shape, group in by_shape.items():
        values = torch.cat([v for v, _ in group])
        if len(shape) == 3:
            found, channels = latent_blocks(values), shape[0]
        else:
            masks = [torch.ones(v.shape[:2], device=v.device) if m is None else m for v, m in group]
            found, channels = embedding_blocks(values, torch.cat(masks)), shape[-1]
        chosen = [name for name in blocks if name in found]
        rows.append(torch.cat([found[name] for name in chosen], 1).cpu().numpy())
        names = [label for name in chosen for label in block_names(name, found[name].shape[1], channels)]
    return np.concatenate(rows), names


@dataclass
class LatentMonitor:
    """The data stream's latents and the clean estimates. reference: normalised latents (N, C, h, w) of training pictures,
    drawn at random, one tensor a shape. looks: in the whole run, `steps` apart."""

    reference: Tensor | list[Tensor]
    looks: int
    steps: int = 1
    alpha: float = ALPHA
    band: float = 0.5

    def __post_init__(self) -> None:
        shared = {"reference": self.reference, "looks": self.looks, "steps": self.steps, "alpha": self.alpha}
        self.stream = Stream("latents", **shared)
        self.estimates = Stream(
            "generated",
            still=False,
            band=self.band,
            blocks=("mean", "log-sd"),
            where=f"sigma < {LOW_SIGMA:g}",
            **shared,
        )
        self.spread: list[tuple[Tensor, Tensor]] = []  # ratio and sigma of the rows kept

    @torch.no_grad()
    def observe(self, batch: Batch, predicted: Tensor) -> None:
        self.stream.observe(batch.latents)
        noisy = interpolate(batch.latents, batch.noise, batch.sigmas)
        clean = predict_clean(noisy, predicted, batch.sigmas)
        ratio = clean.std((1, 2, 3)) / batch.latents.std((1, 2, 3)).clamp_min(1e-6)
        self.spread.append((ratio, batch.sigmas))
        # rows at more noise become NaN and are left out at the look: to select them here would wait for the device
        shape = (-1, *[1] * (clean.ndim - 1))
        self.estimates.observe(clean.masked_fill((batch.sigmas >= LOW_SIGMA).reshape(shape), torch.nan))
        self.estimates.bad = None

    def report(self, step: int) -> list[Reading]:
        readings = self.stream.report(step) + self.estimates.report(step)
        if self.spread:
            ratio, sigma = (torch.cat(part).float() for part in zip(*self.spread, strict=True))
            for low in (0.0, 0.25, 0.5, 0.75):
                chosen = ratio[(sigma >= low) & (sigma < low + 0.25)]
                if len(chosen):
                    readings.append(
                        Reading(
                            name="clean-estimate-spread",
                            title="spread of clean estimates over the data's",
                            value=chosen.mean().item(),
                            step=step,
                            where=f"sigma {low:g} to {low + 0.25:g}",
                        )
                    )
        self.spread.clear()
        return readings

    def tensors(self) -> dict[str, Tensor]:
        spread = {}
        if self.spread:
            spread = {"monitor.spread": torch.stack([torch.cat(x).float() for x in zip(*self.spread, strict=True)])}
        return self.stream.tensors("monitor.latents") | self.estimates.tensors("monitor.generated") | spread

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.stream.restore(tensors, "monitor.latents")
        self.estimates.restore(tensors, "monitor.generated")
        found = tensors.get("monitor.spread")
        self.spread = [] if found is None else [(found[0], found[1])]


class Taps:
    """Outputs of the core's adapters and of its first, middle and last block, of a step's first pass while armed."""

    def __init__(self, core: nn.Module) -> None:
        blocks = core.get_submodule("transformer_blocks")
        depths = sorted({0, len(blocks) // 2, len(blocks) - 1})  # type: ignore[arg-type]
        self.places = {place: core.get_submodule(name) for place, name in ADAPTERS.items()}
        self.places |= {f"block {d + 1} of {len(blocks)}": blocks[d] for d in depths}  # type: ignore[arg-type,index]
        self.outputs: dict[str, Tensor] = {}
        self.armed = False
        self.always = False
        self.hooks = [m.register_forward_hook(self._keep(name)) for name, m in self.places.items()]

    def _keep(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            wanted = self.always or (self.armed and module.training)  # not while the loop evaluates
            if wanted and name in self.places and name not in self.outputs:
                self.outputs[name] = output.detach()

        return hook

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        self.always, self.outputs = True, {}
        yield self.outputs
        self.always = False


@torch.no_grad()
def tapped(system: LatentDiffusion, data: LatentDataset, options: TrainOptions, count: int = 256) -> dict[str, Tensor]:
    """What the taps of a system see of `count` training draws: (rows, tokens, width) by place, the caption mask too."""
    taps, was_training, parts = Taps(system.core), system.core.training, []
    system.core.eval()
    size = min(options.batch_size, len(data))
    try:
        for step in range(-(-count // size)):
            batch = draw_batch(system, data, replace(options, batch_size=size), step)
            with taps.recording() as outputs:
                system.velocity(interpolate(batch.latents, batch.noise, batch.sigmas), batch.sigmas, batch.prompt)
            parts.append(outputs | {"mask": batch.prompt.mask})
    finally:
        taps.close()
        system.core.train(was_training)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass
class Monitors:
    """Every monitor of a run behind one set of calls, and their actions. factor: of the learning rate, halved by
    `lower-rate` and `roll-back`."""

    section: MonitorsSection
    latent: LatentMonitor
    prompts: Stream | None = None
    null: Tensor | None = None  # (1, L, D) of dropped prompts, which are left out
    taps: Taps | None = None
    tapped: dict[str, Stream] = field(default_factory=dict)
    components: list[Stream] = field(default_factory=list)  # encoders in training: whoever trains them observes
    factor: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.no_grad()
    def observe(self, batch: Batch, predicted: Tensor) -> None:
        self.device = batch.latents.device
        self.latent.observe(batch, predicted)
        if self.prompts is not None:
            embeds = batch.prompt.embeds
            if self.null is not None:
                dropped = (embeds == self.null.to(embeds)).flatten(1).all(1)
                embeds = embeds.masked_fill(dropped[:, None, None], torch.nan)
            self.prompts.observe(embeds, batch.prompt.mask)
            self.prompts.bad = None  # dropped prompts are no defect; a prompt that is not finite stops the step itself
        if self.taps is not None:
            for place, output in self.taps.outputs.items():
                caption = place == "caption projection"
                self.tapped[place].observe(output, batch.prompt.mask[: len(output)] if caption else None)
            self.taps.outputs = {}
            first = next(iter(self.tapped.values()))
            self.taps.armed = (first.seen + 1) % max(1, first.steps // ROWS) == 0

    def report(self, step: int) -> list[Reading]:
        """The readings of a look, those of monitors that are off left out."""
        streams = [*([self.prompts] if self.prompts else []), *self.tapped.values(), *self.components]
        readings = self.latent.report(step) + [r for stream in streams for r in stream.report(step)]
        return [r for r in readings if self.action(r) != "off"]

    def action(self, reading: Reading) -> str:
        return str(getattr(self.section, reading.name, "log"))

    def act(self, readings: list[Reading]) -> MonitorRequest | None:
        """Warn, lower the rate, and hand back what the loop must do: the strongest request of the alarms. Rank 0 decides
        for all (its rows are a random share of the stream, and one test keeps one alpha), so every rank must call it."""
        alarms = sorted((r for r in readings if r.alarm), key=lambda r: ACTIONS.index(self.action(r)))
        strongest, since = 0, 0
        if alarms and is_main():
            for reading in alarms:
                if self.action(reading) != "log":
                    print(f"monitor: {describe(reading)}", file=sys.stderr)
            strongest = ACTIONS.index(self.action(alarms[-1]))
            stream = {"latents": self.latent.stream, "embeddings": self.prompts}.get(alarms[-1].name)
            since = stream.since if stream else max(0, alarms[-1].step - 1)
        total, strongest = sum_over_ranks(torch.tensor(float(since), device=self.device), strongest)
        if ACTIONS[strongest] == "lower-rate":
            self.factor *= 0.5
            if is_main():
                print(f"monitor: learning rate times {self.factor:g} from here on", file=sys.stderr)
        if ACTIONS[strongest] not in ("roll-back", "stop"):
            return None
        reading = alarms[-1] if alarms else Reading(name="latents", value=0.0, title="an alarm on rank 0")
        return MonitorRequest(ACTIONS[strongest], reading, int(total))

    def tensors(self) -> dict[str, Tensor]:
        found = self.latent.tensors() | {"monitor.factor": torch.tensor(self.factor, dtype=torch.float64)}
        for key, stream in self._keyed():
            found |= stream.tensors(key)
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.latent.restore(tensors)
        self.factor = float(tensors.get("monitor.factor", 1.0))
        for key, stream in self._keyed():
            stream.restore(tensors, key)

    def _keyed(self) -> Iterator[tuple[str, Stream]]:
        if self.prompts:
            yield "monitor.embeddings", self.prompts
        yield from ((f"monitor.tap.{place}", stream) for place, stream in self.tapped.items())
        yield from ((f"monitor.component.{number}", stream) for number, stream in enumerate(self.components))

    def close(self) -> None:
        if self.taps is not None:
            self.taps.close()


def make_monitors(
    section: MonitorsSection,
    system: LatentDiffusion,
    data: LatentDataset,
    base: tuple[LatentDiffusion, LatentDataset],
    options: TrainOptions,
    *,
    latents: list[Tensor] | None = None,
    frozen_text: bool = True,
) -> Monitors:
    """The monitors that are not off. Still streams share alpha; references are random training pictures and captions,
    and for adapters and activations what the base computes on draws of its own data.

    latents: the reference of a stream of several shapes. frozen_text: captions are a still stream.
    """
    options = replace(options, live_captions=False)
    steps = max(1, options.max_steps // section.looks)
    still = [name for name in STILL if getattr(section, name) != "off"]
    shared = {"looks": section.looks, "steps": steps, "alpha": section.alpha / max(1, len(still))}
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randperm(len(data), generator=generator)[:REFERENCE]
    view = torch.randint(data.latents.shape[1], rows.shape, generator=generator)
    latent = LatentMonitor(latents or data.latents[rows, view], band=section.band, **shared)
    prompts = None
    if section.embeddings != "off" and frozen_text:
        reference = data.prompts(rows, torch.randint(1 << 30, rows.shape, generator=generator))
        prompts = Stream("embeddings", reference.embeds, reference.mask, blocks=("mean", "norms"), **shared)
    taps, streams = None, {}
    if section.adapters != "off" or section.activations != "off":
        seen = tapped(*base, options)
        mask = seen.pop("mask")
        for place, values in seen.items():
            name = "activations" if place.startswith("block") else "adapters"
            if getattr(section, name) != "off":
                own = mask if place == "caption projection" else None
                streams[place] = Stream(
                    name, values, own, still=False, band=section.band, blocks=("mean", "log-sd"), where=place, **shared
                )
        taps = Taps(system.core)
        for place in set(taps.places) - set(streams):
            taps.places.pop(place)
    null = system.null.embeds if options.prompt_dropout else None
    return Monitors(section, latent, prompts, null, taps, streams)


def describe(reading: Reading) -> str:
    interval = "" if reading.ci_low is None else f" ({reading.ci_low:+.3g} to {reading.ci_high:+.3g})"
    return f"step {reading.step}: {reading.title}: {reading.value:+.3g}{interval} at {reading.where}"
