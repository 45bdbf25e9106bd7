"""Phases in which images and captions are encoded: ahead, once, or live, beside the steps that read them."""

from dataclasses import replace
from typing import Any

from sanakit.data.cache import BATCH_SIZE, PROMPT_BATCH
from sanakit.data.live import ENCODED_AT_ONCE
from sanakit.needs.outline import Cost, TextOutline, VAEOutline
from sanakit.needs.records import Phase
from sanakit.needs.storage import VIEWS
from sanakit.needs.swap import Outlines


def vae_phases(
    outlines: Outlines,
    vae: VAEOutline,
    side: str,
    stage: str,
    count: int,
    *,
    most: int,
    decode: bool = True,
    views: int = 1,
) -> list[Phase]:
    """count: images that are encoded, `views` of each file."""
    dtype = outlines.assumed.dtype("vae")
    phases = []
    for verb, decodes in (("encode", False), ("decode", True)) if decode else (("encode", False),):
        cost = vae.cost(outlines.size, dtype, decode=decodes)
        at_once = outlines.assumed.at_once(cost, most)
        phases.append(
            Phase(
                stage=stage,
                name=f"{verb} with the {side}'s VAE",
                device={"vae": cost.weights, "activations": at_once * cost.each},
                at_once=at_once,
                flops=count * cost.flops,
                decoded=0 if decodes else count // views,
            )
        )
    return phases


def caption_phase(outlines: Outlines, encoder: TextOutline, side: str, stage: str, count: int) -> Phase:
    cost = encoder.cost(outlines.assumed.dtype("text_encoder"))
    at_once = outlines.assumed.at_once(cost, PROMPT_BATCH)
    return Phase(
        stage=stage,
        name=f"embed captions with the {side}'s text encoder",
        device={"text encoder": cost.weights, "activations": at_once * cost.each},
        at_once=at_once,
        flops=count * cost.flops,
    )


def encoding(outlines: Outlines, images: int, stage: str = "smoke") -> list[Phase]:
    """What is encoded ahead, once."""
    data, phases = outlines.config.data, []
    if data.latents != "live":
        ahead: dict[str, Any] = {"most": BATCH_SIZE, "decode": False, "views": VIEWS}
        for side, vae in outlines.vaes.items():
            phases += vae_phases(outlines, vae, side, stage, VIEWS * images, **ahead)
    if data.embeddings != "live":
        phases += [caption_phase(outlines, e, side, stage, images) for side, e in outlines.encoders.items()]
    return phases


def with_live(phase: Phase, outlines: Outlines) -> Phase:
    """A phase of training with what encodes its batches meanwhile, on the same device."""
    config, device = outlines.config, dict(phase.device)
    drawn, flops = phase.steps * config.train.batch_size, phase.flops
    held: dict[str, Cost] = {}
    if config.data.latents == "live":
        held["vae"] = outlines.vae.cost(outlines.size, outlines.assumed.dtype("vae"), decode=False)
    if config.data.embeddings == "live":
        held["text encoder"] = outlines.encoder.cost(outlines.assumed.dtype("text_encoder"))
    for name, cost in held.items():
        device |= {name: cost.weights, f"{name}'s activations": ENCODED_AT_ONCE * cost.each}
        flops += drawn * cost.flops
    return replace(phase, device=device, flops=flops, decoded=drawn if "vae" in held else 0)
