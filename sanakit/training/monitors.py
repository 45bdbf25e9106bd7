"""What is watched while a model trains, when it speaks, and what happens then; streams are drift/stream.py's."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.config import MonitorsSection
from sanakit.contracts import Reading
from sanakit.data.dataset import LatentDataset
from sanakit.distributed import is_main, sum_over_ranks
from sanakit.drift.stream import Stream
from sanakit.training.latent_monitor import LatentMonitor, Shared
from sanakit.training.loop import Batch, TrainOptions
from sanakit.training.taps import Taps, affordable, kind_of, tapped

REFERENCE = 1024  # images or prompts that a stream is compared with
ACTIONS = ("off", "log", "warn", "lower-rate", "roll-back", "stop")
STILL = ("latents", "embeddings")


class MonitorRequest(Exception):
    """An alarm whose action changes the run: `roll-back` or `stop`. since: the step from which the stream drifted."""

    def __init__(self, action: str, reading: Reading, since: int) -> None:
        super().__init__(describe(reading))
        self.action, self.reading, self.since = action, reading, since


@dataclass
class Monitors:
    """Every monitor of a run behind one set of calls, and their actions. component: the part that is trained beside the
    core (a text encoder) or instead of it (a VAE). factor: of the learning rate,
    halved by `lower-rate` and `roll-back`.
    """

    section: MonitorsSection
    latent: LatentMonitor | None = None
    prompts: Stream | None = None
    null: Tensor | None = None  # (1, L, D) of dropped prompts, which are left out
    taps: Taps | None = None
    tapped: dict[str, Stream] = field(default_factory=dict)
    component: Stream | None = None
    factor: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @torch.no_grad()
    def observe(self, batch: Batch, predicted: Tensor) -> None:
        assert self.latent is not None
        self.device = batch.latents.device
        self.latent.observe(batch, predicted)
        if self.component is not None and batch.texts:  # dropped prompts are empty
            share = self.component.wanted
            empty = torch.tensor([text == "" for text in batch.texts[:share]], dtype=torch.bool, device=self.device)
            self.component.observe(_left_out(batch.prompt.embeds[:share], empty), batch.prompt.mask[:share])
            self.component.bad = None
        if self.prompts is not None:
            embeds = batch.prompt.embeds[: self.prompts.wanted]
            if self.null is not None:
                self.null = self.null.to(embeds)  # once
                dropped = (embeds == self.null).flatten(1).all(1)
                embeds = _left_out(embeds, dropped)
            self.prompts.observe(embeds, batch.prompt.mask)
            self.prompts.bad = None  # dropped prompts are no defect; a prompt that is not finite stops the step itself
        if self.taps is not None:
            for place, output in self.taps.outputs.items():
                caption = place == "caption projection"
                self.tapped[place].seen = self.latent.stream.seen - 1  # steps between were not tapped
                self.tapped[place].observe(output, batch.prompt.mask[: len(output)] if caption else None)
            self.taps.outputs = {}
            self.taps.armed = bool(self.latent.stream.wanted)

    def report(self, step: int) -> list[Reading]:
        """The readings of an evaluation, those of monitors that are off left out."""
        readings = self.latent.report(step) if self.latent else []
        readings += [r for _, stream in self._keyed() for r in stream.report(step)]
        return [r for r in readings if self.action(r) != "off"]

    def action(self, reading: Reading) -> str:
        return str(getattr(self.section, reading.name, "log"))

    def act(self, readings: list[Reading]) -> MonitorRequest | None:
        """Warn, lower the rate, and hand back what the loop must do: the strongest request of the alarms. Every rank
        must call it; rank 0 decides (its rows are a random share of the stream, and one test keeps one alpha)."""
        alarms = sorted((r for r in readings if r.alarm), key=lambda r: ACTIONS.index(self.action(r)))
        strongest, since = 0, 0
        if alarms and is_main():
            for reading in alarms:
                if self.action(reading) != "log":
                    print(f"monitor: {describe(reading)}", file=sys.stderr)
            strongest = ACTIONS.index(self.action(alarms[-1]))
            of_latents = [self.latent.stream, self.latent.estimates] if self.latent else []
            streams = [s for s in (*of_latents, *(s for _, s in self._keyed())) if s.name == alarms[-1].name]
            since = min((s.since for s in streams), default=0)
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
        tensors = {"monitor.factor": torch.tensor(self.factor, dtype=torch.float64)}
        if self.latent:
            tensors |= self.latent.tensors()
        for key, stream in self._keyed():
            tensors |= stream.tensors(key)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if self.latent:
            self.latent.restore(tensors)
        self.factor = float(tensors.get("monitor.factor", 1.0))
        for key, stream in self._keyed():
            stream.restore(tensors, key)
        if self.taps is not None and self.latent:
            self.taps.outputs, self.taps.armed = {}, bool(self.latent.stream.wanted)

    def _keyed(self) -> Iterator[tuple[str, Stream]]:
        if self.prompts:
            yield "monitor.embeddings", self.prompts
        yield from ((f"monitor.tap.{place}", stream) for place, stream in self.tapped.items())
        if self.component:
            yield "monitor.component", self.component

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
    trained_text: bool = False,
) -> Monitors:
    """The monitors that are not off. Still streams share alpha; references are random training images and captions,
    and for adapters and activations what the base computes on draws of its own data.
    latents: the reference of a stream in aspect buckets, one tensor a shape. trained_text: captions are no still stream
    but a component.
    """
    options = replace(options, live_captions=False)
    steps = max(1, options.max_steps // section.num_evaluations)
    still = [name for name in STILL if getattr(section, name) != "off" and not (trained_text and name == "embeddings")]
    shared = Shared(
        num_evaluations=section.num_evaluations,
        steps=steps,
        alpha=section.alpha / max(1, len(still)),
        grouped=latents is not None,
    )
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randperm(len(data), generator=generator)[:REFERENCE]
    view = torch.randint(data.latents.shape[1], rows.shape, generator=generator)
    drawn = latents or data.draw(rows, view, generator, torch.arange(len(rows)) + options.seed)
    latent = LatentMonitor(drawn, band=section.band_of("generated"), **shared)
    prompts, component = None, None
    some = slice(affordable(system.null.embeds.shape[1:]))
    reference = data.prompts(rows[some], torch.randint(1 << 30, rows.shape, generator=generator)[some])
    if trained_text:
        component = component_stream(
            section, "text encoder", steps, reference.embeds, reference.mask, grouped=latents is not None
        )
    elif section.embeddings != "off":
        prompts = Stream("embeddings", reference.embeds, reference.mask, blocks=("mean", "norms"), **shared)
    del reference
    taps, streams = None, {}
    if section.adapters != "off" or section.activations != "off":
        seen = tapped(*base, options)
        mask = seen.pop("mask")
        for place in list(seen):
            values, name = seen.pop(place), kind_of(place)
            if getattr(section, name) != "off":
                tokens = mask if place == "caption projection" else None
                band, moving = section.band_of(name), ("mean", "log-sd")
                streams[place] = Stream(
                    name, values, tokens, still=False, band=band, blocks=moving, where=place, **shared
                )
        taps = Taps(system.core)
        for place in set(taps.places) - set(streams):
            taps.places.pop(place)
    null = system.null.embeds if options.prompt_dropout else None
    return Monitors(section, latent, prompts, null, taps, streams, component)


def component_stream(
    section: MonitorsSection,
    part: str,
    steps: int,
    reference: Tensor,
    mask: Tensor | None = None,
    *,
    grouped: bool = False,
) -> Stream | None:
    """What a part in training gives, against what it gave at the start: a band, as it moves by design. None when off.

    steps: between evaluations. reference: normalised latents (N, C, h, w), or embeddings (N, L, D) with their mask.
    """
    if section.components == "off":
        return None
    return Stream(
        "components",
        reference,
        mask,
        still=False,
        alpha=section.alpha,
        band=section.band_of("components"),
        num_evaluations=section.num_evaluations,
        steps=steps,
        grouped=grouped,
        blocks=("mean", "log-sd"),
        where=part,
    )


def _left_out(embeds: Tensor, rows: Tensor) -> Tensor:
    """(N, L, D) with NaN in these rows: an evaluation leaves them out,
    and to select the others would wait for the device."""
    return embeds.masked_fill(rows[:, None, None], torch.nan)


def describe(reading: Reading) -> str:
    interval = "" if reading.ci_low is None else f" ({reading.ci_low:+.3g} to {reading.ci_high:+.3g})"
    return f"step {reading.step}: {reading.title}: {reading.value:+.3g}{interval} at {reading.where}"
