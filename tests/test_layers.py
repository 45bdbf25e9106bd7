"""The layer of a text encoder: measured against the base, reported, and picked by `?layer=auto` under one name."""

import json
from dataclasses import replace

import pytest
import torch

from sanakit.alignment import rank_layers
from sanakit.config import make_config
from sanakit.errors import SanakitError
from sanakit.loading import load_text_encoder
from sanakit.run import RunFolder
from sanakit.swap.context import Swap
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.query import with_layer

TEXTS = [" ".join("abcdefgh"[(i * k + i // 8) % 8] for k in range(1, 4 + i % 3)) for i in range(256)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small llama of four layers as transformers saves it."""
    family = TEXT_ENCODERS.get("smollm2-135m")
    torch.manual_seed(0)
    deep = type("Deep", (family,), {"small": family.small | {"num_hidden_layers": 4, "initializer_range": 0.5}})
    encoder = deep.tiny()
    path = tmp_path_factory.mktemp("llama")
    encoder.model.save_pretrained(path)
    encoder.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def base(tiny_system, folder):
    """A base that reads the average of that model's layers."""
    return replace(tiny_system, text_encoder=load_text_encoder(f"path:{folder}?layer=mean&max_tokens=16"))


class Captions:
    def __len__(self):
        return len(TEXTS)

    def for_base(self):
        return self

    def evaluation_captions(self, rows):
        return [TEXTS[row] for row in rows]


def swap_of(system, name, **config):
    swap = Swap(config=make_config({"text_encoder": {"name": name}, **config}), run=RunFolder(None, make_config({})))
    vars(swap)["base_system"] = system
    vars(swap)["splits"] = (Captions(), None)
    return swap


def test_the_layer_that_the_base_reads_predicts_it_best_and_nothing_is_left_behind(base, folder):
    encoder = load_text_encoder(f"path:{folder}?max_tokens=16")
    spec = encoder.spec
    ranking = rank_layers(encoder, TEXTS, base.core, base.text_encoder)
    rows = {row["layer"]: row for row in ranking["layers"]}
    assert list(rows) == ["last", 3, 2, "mean"] and ranking["pairing"] == "tokens" and ranking["captions"] == 256
    assert ranking["used"] == "last" and ranking["best"] == "mean" and rows["mean"]["error"] < 0.05
    assert rows["last"]["more"] == 0 and rows["mean"]["more"] == pytest.approx(
        rows["mean"]["error"] - rows["last"]["error"], abs=1e-6
    )
    assert encoder.spec is spec
    assert json.loads(json.dumps(ranking)) == ranking


def test_all_layers_in_one_pass_are_the_layers_one_by_one(folder):
    layers = ["last", 1, "mean"]
    encoder = load_text_encoder(f"path:{folder}?max_tokens=16")
    together = encoder.encode_layers(TEXTS[:5], layers)
    for layer, in_one_pass in zip(layers, together, strict=True):
        alone = load_text_encoder(f"path:{folder}?max_tokens=16&layer={layer}").encode(TEXTS[:5])
        torch.testing.assert_close(in_one_pass.embeds, alone.embeds)
        assert torch.equal(in_one_pass.mask, alone.mask)


def test_a_lead_within_the_noise_does_not_pick_another_layer(base, folder):
    """The base reads the record's own layer, and noise is no reason to leave it."""
    same_encoder = replace(base, text_encoder=load_text_encoder(f"path:{folder}?max_tokens=16"))
    ranking = rank_layers(
        load_text_encoder(f"path:{folder}?max_tokens=16"), TEXTS, same_encoder.core, same_encoder.text_encoder
    )
    assert ranking["best"] == ranking["used"] == "last"


def test_auto_is_the_measured_layer_under_its_own_name_and_key(base, folder):
    plain = f"path:{folder}?max_tokens=16"
    swap = swap_of(base, f"{plain}&layer=auto")
    assert swap.text_encoder_name == f"{plain}&layer=mean"
    assert swap.candidate.spec.layer == "mean" and swap.layers["used"] == swap.layers["best"] == "mean"
    named = load_text_encoder(f"{plain}&layer=mean")
    assert swap.candidate.fingerprint() == named.fingerprint() != load_text_encoder(plain).fingerprint()
    assert swap_of(base, plain).layers["used"] == "last" and swap_of(base, plain).text_encoder_name == plain


def test_without_a_choice_of_layers_or_a_base_auto_says_so(base, folder):
    assert swap_of(base, "wordllama").layers is None
    with pytest.raises(SanakitError, match="SK0306.*no layers to choose from"):
        assert swap_of(base, "wordllama?layer=auto").candidate
    with pytest.raises(SanakitError, match="SK0104.*layers are measured against a base"):
        assert swap_of(base, f"path:{folder}?layer=auto", base="none").candidate
    with pytest.raises(SanakitError, match="SK0306.*measured against a base"):
        load_text_encoder(f"path:{folder}?layer=auto")


def test_names_with_and_without_a_layer():
    assert with_layer("minilm?layer=auto", "mean") == "minilm?layer=mean"
    assert with_layer("minilm?layer=auto&max_tokens=9", None) == "minilm?max_tokens=9"
    assert with_layer("minilm?layer=auto", None) == "minilm"
    assert with_layer("minilm?layer=3", 5) == "minilm?layer=3"


def test_the_table_is_in_the_report_and_on_the_terminal(tmp_path, capsys):
    from sanakit.cli.verdict_view import print_validation
    from sanakit.reporting import write_report

    row = {"error": 0.4, "more": 0.0, "noise": 0.0}
    broken = {"layer": 3, "error": None, "more": None, "noise": None, "note": "not finite"}
    layers = [row | {"layer": "last"}, broken, {"layer": "mean", "error": 0.3, "more": -0.1, "noise": 0.01}]
    validation = {
        "base": "b", "candidate": "c", "kind": "text_encoder", "verdict": "pass", "stages": {}, "next": "",
        "strategy": {"recommended": None, "candidates": []},
        "layers": {"layers": layers, "used": "last", "best": "mean", "pairing": "tokens", "captions": 512},
    }  # fmt: skip
    (tmp_path / "validation.json").write_text(json.dumps(validation))
    html = write_report(tmp_path, tmp_path / "r.html").read_text(encoding="utf-8")
    section = html.split("<h2>Layers of the text encoder")[1].split("<h2>")[0]
    assert section.index("mean") < section.index("last") < section.index("not finite")
    assert "used" in section and "better" in section
    print_validation(validation, tmp_path, tmp_path / "r.html")
    told = capsys.readouterr().out
    assert "mean (better)" in told and "last (used)" in told and "-0.100 +- 0.010" in told and "not finite" in told


def test_the_command_line_takes_a_registered_name_with_a_query():
    from sanakit.cli.names import check_names

    check_names(make_config({"text_encoder": {"name": "minilm?layer=mean"}}))
    with pytest.raises(SanakitError, match="SK0101"):
        check_names(make_config({"text_encoder": {"name": "minilmm?layer=mean"}}))


def test_captions_that_evaluate_the_layers_are_of_every_place_of_an_image(base, folder, monkeypatch):
    """Places in a row read an image's captions in turn: every fourth place would be the same caption of every image."""
    encoder, read = load_text_encoder(f"path:{folder}?max_tokens=16"), []
    encode = encoder.encode_layers
    monkeypatch.setattr(encoder, "encode_layers", lambda texts, names: read.extend(texts) or encode(texts, names))
    texts = [f"{'abcd'[i % 4]} {i}" for i in range(64)]
    rank_layers(encoder, texts, base.core, base.text_encoder)
    assert sorted(read) == sorted(texts) and {text[0] for text in read[48:]} == set("abcd")
