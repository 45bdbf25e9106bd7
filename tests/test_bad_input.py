"""What the swap engine does with input that determines little or nothing: a clear error,
or a finite answer that says so."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sanakit.alignment import align_caption, align_output, pair_captions, rank_layers
from sanakit.checks.diffusability import panel
from sanakit.config import load_config, make_config
from sanakit.contracts import LatentSpec
from sanakit.errors import SanakitError
from sanakit.evaluation.held_out import held_out
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.plan import build
from sanakit.swap.quality import vae_target, wiener_losses
from sanakit.text_encoders import PromptEmbeds

DAMAGE = {
    "constant": lambda latents: latents[:, :, 1].fill_(0.5),
    "all constant": lambda latents: latents.fill_(0.5),
    "twice the same": lambda latents: latents[:, :, 1].copy_(latents[:, :, 2]),
    "few": lambda latents: latents[2:].copy_(latents[:1]),  # two images that differ
}


def damaged(data, kind):
    latents = data.latents.clone()
    DAMAGE[kind](latents)
    return replace(data, latents=latents)


@pytest.mark.parametrize("kind", DAMAGE)
def test_latents_that_determine_little_still_give_a_finite_start_and_target(tiny_system, tiny_data, kind):
    bad = damaged(tiny_data, kind)
    system, scores = build(tiny_system, tiny_system.vae, STRATEGIES.get("align"), bad, tiny_data, seed=0)
    assert all(p.isfinite().all() for p in system.core.parameters())
    numbers = [v for v in scores.values() if isinstance(v, float)]
    assert numbers and np.isfinite(numbers).all()
    base = held_out(tiny_system, tiny_data, count=16)
    if kind == "all constant":
        with pytest.raises(SanakitError, match="SK0214.*all images are the same"):
            vae_target((bad, bad), (tiny_data, tiny_data), base)
        return
    target = vae_target((bad, bad), (tiny_data, tiny_data), base)
    assert np.isfinite(target.relative(held_out(system, bad, count=16))).all()


def test_few_rows_are_said_of_both_ends(tiny_system, tiny_data):
    few = replace(tiny_data, latents=tiny_data.latents[:2])
    wide = deepcopy(tiny_system.vae)
    wide.spec = LatentSpec(latent_channels=64, spatial_compression_ratio=8)
    latents = few.latents.repeat(1, 1, 16, 1, 1)
    system, scores = build(
        tiny_system, wide, STRATEGIES.get("align"), replace(few, latents=latents, names=["a", "b"]), few, seed=0
    )
    assert "32 rows for 64 dimensions: the map is shrunk" in scores["input_note"]
    notes = align_output(system, replace(few, latents=latents, names=["a", "b"]), count=4)
    assert "the map is shrunk" in notes["output_note"]


@pytest.mark.parametrize("name", ["reuse", "align", "naive"])
def test_a_channel_that_is_not_finite_ends_in_an_error_that_names_it(tiny_system, tiny_data, name):
    latents = tiny_data.latents.clone()
    latents[5, 0, 2, 1, 1] = float("nan")
    bad = replace(tiny_data, latents=latents)
    with pytest.raises(SanakitError, match=r"SK0204.*(column|channel) 2"):
        build(tiny_system, tiny_system.vae, STRATEGIES.get(name), bad, tiny_data, seed=0)
        wiener_losses(bad, bad)


def test_the_panel_of_a_collapsed_space_is_finite(tiny_system, openclipart_images):
    class Collapsed(type(tiny_system.vae)):
        def _encode(self, images):
            return super()._encode(images) * 0

    vae = Collapsed.tiny()
    rows = panel(vae, openclipart_images, vae.encode(openclipart_images))
    assert all(np.isfinite(row["value"]) for row in rows)


@pytest.mark.parametrize("texts", [["a b"] * 40, ["a"] * 3 + ["b c"] * 3])
def test_captions_that_say_little_give_finite_caption_layers(tiny_system, texts):
    encoder, core = tiny_system.text_encoder, deepcopy(tiny_system.core)
    embedded = encoder.encode(texts)
    report = align_caption(core, tiny_system.core, pair_captions(embedded, embedded, texts, encoder, encoder))
    assert core.caption_projection.linear_1.weight.isfinite().all() and np.isfinite(report["caption_r2"])


def test_embeddings_that_are_not_finite_are_named(tiny_system):
    encoder, texts = tiny_system.text_encoder, ["a b"] * 8
    embedded = encoder.encode(texts)
    bad = PromptEmbeds(embedded.embeds.index_fill(2, torch.tensor([3]), float("inf")), embedded.mask)
    with pytest.raises(SanakitError, match="SK0204.*candidate.*column 3"):
        align_caption(
            deepcopy(tiny_system.core), tiny_system.core, pair_captions(bad, embedded, texts, encoder, encoder)
        )


def test_a_layer_that_overflows_is_left_out_of_the_ranking(tiny_system, monkeypatch):
    """Middle layers of a model in half precision can overflow where the last one does not."""
    encoder, read = tiny_system.text_encoder, type(tiny_system.text_encoder).encode_layers
    texts = [" ".join("abcdefgh"[(i * k + i // 8) % 8] for k in range(1, 4 + i % 3)) for i in range(64)]

    def overflow(self, prompts, layers):
        states = read(self, prompts, layers)
        broken = PromptEmbeds(states[layers.index("mean")].embeds * float("inf"), states[0].mask)
        return [broken if layer == "mean" else f for layer, f in zip(layers, states, strict=True)]

    monkeypatch.setattr(type(encoder), "encode_layers", overflow)
    rows = rank_layers(encoder, texts, tiny_system.core, encoder, layers=["mean"])
    assert [row["layer"] for row in rows["layers"]] == ["last", "mean"] and rows["best"] == "last"
    assert rows["layers"][1]["error"] is None and rows["layers"][1]["note"] == "not finite"


@pytest.mark.parametrize(
    ("old", "new"),
    [("component.pi" + "ctures", "component.num_images"), ("monitors.lo" + "oks", "monitors.num_evaluations")],
)
def test_a_renamed_key_is_refused_with_its_new_name(tmp_path, old, new):
    """In --set, and in the config.yaml of a run folder that an earlier version wrote."""
    section, key = old.split(".")
    (tmp_path / "config.yaml").write_text(f"{section}:\n  {key}: 32\n")
    for load in (lambda: make_config({}, [f"{old}=32"]), lambda: load_config(tmp_path / "config.yaml")):
        with pytest.raises(SanakitError, match=f"{old}: .*it is called {new} now") as refused:
            load()
        assert refused.value.code == "SK0104"
    assert make_config({}, [f"{new}=32"])


def test_a_bare_off_is_the_choice_off_and_no_false():
    """YAML 1.1 reads `off` as false, in a file and on the command line."""
    config = make_config({}, ["monitors.latents=off", "train.kernels=off", "train.compile=off"])
    assert (config.monitors.latents, config.train.kernels, config.train.compile) == ("off", "off", False)
    with pytest.raises(SanakitError, match="SK0104"):
        make_config({}, ["monitors.latents=no-action"])
