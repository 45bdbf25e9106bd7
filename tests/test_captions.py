"""Captions of the embedded world: titles of both sources, measured colours, and which of them judges."""

import csv
import importlib.util
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sanakit.config import make_config
from sanakit.data import ImageDataset, load_images
from sanakit.data.embedded import ASSETS
from sanakit.data.embedded_captions import (
    COLOURS,
    colour_shares,
    emoji_title,
    enriched_caption,
    measure_colours,
    name_pixels,
    rotate_hue,
)
from sanakit.evaluation.held_out import held_out
from sanakit.loading import load_text_encoder
from sanakit.reporting.report import write_report
from sanakit.swap.context import Swap
from sanakit.swap.full import gains_by_caption
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds
from sanakit.training.batches import TrainOptions


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("e02020", "red"), ("f0901a", "orange"), ("fcea2b", "yellow"), ("5c9e31", "green"), ("2f4fd0", "blue"),
        ("61b2e4", "blue"),
        ("8a30c0", "purple"), ("f080b0", "pink"), ("ff3090", "pink"), ("6a462f", "brown"), ("a57939", "brown"),
        ("101010", "black"), ("808080", "grey"), ("f4f4f4", "white"),
    ],
)  # fmt: skip
def test_colours_have_the_words_that_people_use(code, name):
    assert COLOURS[int(name_pixels(np.array([bytes.fromhex(code)]).view(np.uint8).reshape(1, 3))[0])] == name


def drawing(*parts):
    """White paper with horizontal bars: (colour, rows) each."""
    pixels, top = np.full((96, 96, 3), 255, np.uint8), 10
    for colour, rows in parts:
        pixels[top : top + rows, 10:86] = colour
        top += rows
    return pixels


RED, BLUE, BLACK, GREY = (220, 30, 30), (40, 60, 210), (0, 0, 0), (128, 128, 128)


def test_main_colours_are_chromatic_first_at_most_two_and_outlines_do_not_count():
    assert measure_colours(drawing((RED, 20), (BLUE, 30))) == ["blue", "red"]
    assert measure_colours(drawing((RED, 40), (BLACK, 10))) == ["red"]
    assert measure_colours(drawing((RED, 20), (BLACK, 40))) == ["red", "black"]
    assert measure_colours(drawing((BLACK, 30), (GREY, 20))) == ["black", "grey"]
    assert measure_colours(drawing((RED, 20), (BLUE, 20), ((30, 160, 30), 20))) == ["red", "green"]
    assert measure_colours(drawing()) == [] and not colour_shares(drawing()).any()


def test_a_turned_hue_moves_colours_and_leaves_greys_and_paper():
    image = drawing((RED, 20), (BLACK, 10), (GREY, 10))
    turned = rotate_hue(image, 120)
    assert measure_colours(drawing((RED, 20))) == ["red"]
    assert measure_colours(rotate_hue(drawing((RED, 20)), 120)) == ["green"]
    assert measure_colours(rotate_hue(drawing((RED, 20)), 240)) == ["blue"]
    assert (turned[30:] == image[30:]).all() and (turned[:10] == 255).all()
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.abs(rotate_hue(photo, 0).astype(int) - photo).max() <= 6


def test_enriched_captions_have_colours_first_and_no_colour_twice():
    assert enriched_caption("ladybug", ["red", "black"], "emoji") == "red and black ladybug, emoji"
    assert enriched_caption("red balloon", ["green"], "clip art") == "green balloon, clip art"
    assert enriched_caption("white and black bird", ["black"], "clip art") == "black bird, clip art"
    assert enriched_caption("orange", ["orange"], "emoji") == "orange, emoji"
    assert enriched_caption("", ["blue"], "emoji") == "blue, emoji"
    assert enriched_caption("", [], "emoji") == "emoji"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("\U0001f98b", "butterfly"),
        ("\U0001f1f3\U0001f1ea", "niger flag"),
        ("\U0001f1e6\U0001f1fd", "aland islands flag"),
        ("\U0001f3f4\U000e0075\U000e0073\U000e0074\U000e0078\U000e007f", "texas flag"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f", "wales"),
        ("\U0001f3f3\u200d\U0001f7e5", "red flag"),
        ("\U0001fad9\u200d\U0001f7e6", "blue jar"),
        ("\U0001f431\u200d\U0001f4bb", "cat face laptop"),
        ("\U0001f3f3\u200d\U0001f7e9\u200d\u2b50\u200d\U0001f7e9", "green flag star"),
        ("\U0001f550", "one o'clock"),
        ("\U0001f44d\U0001f3fd", None),
        ("A", None),
        ("", None),
    ],
)
def test_emoji_have_plain_titles(text, title):
    assert emoji_title(text) == title


def test_every_openmoji_title_is_plain_ascii():
    pictures = load_images("openmoji")
    assert len(pictures) == 2000
    assert [c for c in pictures.captions if not re.fullmatch(r"[a-z0-9 #*'-]+", c[0])] == []
    assert all(len(c) == 2 and c[1].endswith(", emoji") for c in pictures.captions)


def test_openclipart_titles_are_complete_plain_english_without_authors():
    pictures = load_images("openclipart")
    with (ASSETS / "openclipart-titles.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["name"] for row in rows] == pictures.names
    titles = Counter(row["title"] for row in rows)
    assert all(re.fullmatch(r"[a-z0-9 '-]+", title) for title in titles)
    words = {word for title in titles for word in title.split()}
    assert not words & {"krug", "juliane", "rollandin", "vasamaa", "cavallo", "farfalla", "orso", "glace", "suivre"}
    assert titles["icon"] < 80 and titles["people"] < 20
    chosen = pictures.subset(range(0, len(pictures), 200))
    measured = [measure_colours(pixels) for pixels in chosen.pixels(96)]
    assert measured == [row["colours"].split() for row in rows[::200]]


def test_openclipart_titles_are_what_their_script_writes():
    script = load_experiment("name_openclipart")
    packed, english = pd.read_parquet(ASSETS / "openclipart-96.parquet"), script.read_english()
    with (ASSETS / "openclipart-titles.tsv").open() as file:
        titles = {row["name"]: row["title"] for row in csv.DictReader(file, delimiter="\t")}
    for row in packed.itertuples():
        keywords = row.captions[-1].split(", ")[1:]
        assert script.plain_title(row.name, row.captions[0], row.creator, keywords, english) == titles[row.name]


def test_captions_of_the_embedded_world_are_read_whole():
    """Colours and title of every image; the whole caption, style included, of more than 99%."""
    pictures, encoder = load_images("embedded"), load_text_encoder("minilm")

    def share_cut(texts):
        lengths = [len(ids) for ids in encoder.tokenizer(texts, padding=False, truncation=False)["input_ids"]]
        return np.mean(np.array(lengths) > encoder.spec.max_tokens)

    assert encoder.spec.max_tokens == 16
    assert share_cut([c[0] for c in pictures.captions]) == 0
    assert share_cut([c[1].rsplit(", ", 1)[0] for c in pictures.captions]) == 0
    assert share_cut([c[1] for c in pictures.captions]) < 0.001


def test_any_first_images_are_evaluated_half_by_plain_and_half_by_enriched_captions():
    split = load_images("embedded").split(True)
    assert split.caption_kinds == ("plain", "enriched")
    texts = split.evaluation_captions()
    for count in (2, 64, 129):
        plain = sum(text == captions[0] for text, captions in zip(texts[:count], split.captions, strict=False))
        assert plain == (count + 1) // 2
    three = ImageDataset(source="", names=list("abcd"), captions=[["x", "y", "z"], ["u"]] * 2, images=[b""] * 4)
    assert three.evaluation_captions() == ["x", "u", "z", "u"]


def test_held_out_losses_read_the_evaluation_captions(tiny_system, tiny_data):
    """The same losses as with one caption an image, the first or the second by the image's place."""
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(64)
    chosen = replace(tiny_data, first=tiny_data.first + rows % 2, count=torch.ones_like(rows))
    first = replace(tiny_data, count=torch.ones_like(rows))
    losses = held_out(tiny_system, tiny_data, count=8).losses
    assert torch.equal(losses, held_out(tiny_system, chosen, count=8).losses)
    assert torch.equal(losses[:, ::2], held_out(tiny_system, first, count=8).losses[:, ::2])
    assert (losses[:, 1::2] != held_out(tiny_system, first, count=8).losses[:, 1::2]).any()


def test_results_of_other_captions_do_not_fit(monkeypatch):
    values = {
        "config": make_config({}),
        "candidate_identity": "c",
        "images": ImageDataset(source="", names=[], captions=[], images=[]),
    }
    swap = SimpleNamespace(**values, trains_vae_alone=False, base_fingerprint={})
    before = Swap.fingerprint(swap, "smoke")
    assert before == Swap.fingerprint(swap, "smoke")
    monkeypatch.setattr("sanakit.swap.context.EVALUATED_BY", "the last caption")
    assert Swap.fingerprint(swap, "smoke") != before


def test_prompt_gains_are_told_by_kind_of_caption(tiny_data, tmp_path):
    gains = {"prompt_gain": np.array([0.1, 0.3, 0.2]), "base_prompt_gain": np.array([0.2, 0.6, 0.4])}
    assert list(gains_by_caption(gains, tiny_data)) == ["all"]
    by_kind = gains_by_caption(gains, replace(tiny_data, caption_kinds=("plain", "enriched")))
    assert by_kind["all"] == {"candidate": pytest.approx(0.2), "base": pytest.approx(0.4), "images": 3}
    assert by_kind["plain"] == {"candidate": pytest.approx(0.15), "base": pytest.approx(0.3), "images": 2}
    assert by_kind["enriched"] == {"candidate": pytest.approx(0.3), "base": pytest.approx(0.6), "images": 1}
    arm = {"name": "finetune", "title": "", "steps": [0], "relative_errors": [1.0]}
    validation = {"strategy": {"recommended": "finetune", "candidates": [arm], "prompt_gain": by_kind}}
    (tmp_path / "validation.json").write_text(json.dumps(validation))
    html = Path(write_report(tmp_path, tmp_path / "r.html")).read_text()
    section = html.split("Prompt gain on held-out images")[1].split("</section>")[0]
    assert [section.index(f">{kind}<") for kind in ("all", "plain", "enriched")]
    assert all(value in section for value in ("0.15", "0.3", "0.6"))


def test_a_colour_word_is_swapped_for_one_that_the_caption_does_not_hold():
    experiment = load_experiment("colour_words")
    captions = ["grey gear, icon", "red and blue flag, emoji", "green leaf, emoji", "pink rose, emoji"]
    rows = experiment.swapped_prompts(captions, 2, seed=0)
    assert [row.prompt for row in rows] == captions[1:3] and [row.original for row in rows] == ["red", "green"]
    assert rows[0].asked not in ("red", "blue") and rows[0].swapped == f"{rows[0].asked} and blue flag, emoji"
    images = np.stack([drawing((RED, 10), (BLUE, 30)), drawing((RED, 30), (BLUE, 10)), drawing((BLACK, 30))])
    judged = experiment.judge(images, ["blue", "blue", "blue"], ["red", "red", "red"])
    assert judged == {"more": [True, False, False], "main": [True, False, False]}
    assert experiment.share_of([True] * 150 + [False] * 50) == {"share": 0.75, "low": 0.697, "high": 0.797}


def load_experiment(name):
    path = next((Path(__file__).parent.parent / "experiments").rglob(f"{name}.py"))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pretraining():
    return load_experiment("pretrain_tiny_sana")


def numbered_views(script, images=64):
    """Latents that hold the number of their view, and captions that hold three times the view and their kind."""
    views = script.FIXED_VIEWS + script.RANDOM_VIEWS + script.TURNED_VIEWS
    latents = torch.arange(views).float().reshape(1, views, 1, 1, 1).expand(images, views, 1, 1, 1)
    numbers = torch.arange(3 * views)
    captions = PromptEmbeds(numbers.reshape(-1, 1, 1).half(), torch.ones(len(numbers), 1, dtype=torch.bool))
    return script.Views(latents, captions, numbers.reshape(1, views, 3).expand(images, views, 3))


def test_half_of_the_drawn_captions_are_plain_and_turned_views_tell_their_colours(pretraining):
    views = numbered_views(pretraining)
    system = SimpleNamespace(flow_shift=1.0, drop_prompts=lambda prompt, drop: prompt)
    options = TrainOptions(max_steps=100, batch_size=32)
    batches = [pretraining.draw_view(system, views, options, step, slice(None)) for step in range(100)]
    view = torch.cat([batch.latents for batch in batches]).flatten()
    caption = torch.cat([batch.prompt.embeds for batch in batches]).flatten()
    kind, turned = caption % 3, view >= pretraining.FIXED_VIEWS + pretraining.RANDOM_VIEWS
    assert torch.equal(caption // 3, view)
    assert abs(turned.float().mean() - 1 / 3) < 0.03
    assert abs((kind == 0).float().mean() - 0.5) < 0.03 and not (kind[turned] == 0).any()
    assert abs((kind == 2).float().mean() - (2 / 3 * 0.05 + 1 / 3 * 0.15)) < 0.02
    again = pretraining.draw_view(system, views, options, 7, slice(None))
    assert torch.equal(again.latents, batches[7].latents) and torch.equal(again.noise, batches[7].noise)


def test_captions_of_a_turned_view_name_the_colours_that_it_shows(pretraining):
    assert pretraining.turned_captions("red balloon", "emoji", ["green"]) == [
        "red balloon",
        "green balloon, emoji",
        "green, emoji",
    ]
    assert pretraining.turned_captions("orange", "clip art", ["blue"])[1] == "blue, clip art"


def test_views_of_another_width_than_the_images_own_stop_the_training(pretraining, tmp_path):
    """Latents that were normalised twice are narrower."""
    latents = torch.randn(8, 7, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    images = torch.randn(8, 2, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    encoder, captions = TEXT_ENCODERS.get("minilm").tiny(), [[["a", "b", "c"]] * 7] * 8
    views = pretraining.gather_views(encoder, images, latents, captions, tmp_path)
    assert views.latents.shape == (8, 9, 2, 3, 3) and views.rows.shape == (8, 9, 3)
    with pytest.raises(SystemExit, match="0.39 times as wide"):
        pretraining.gather_views(encoder, images, 0.4 * latents, captions, tmp_path)
