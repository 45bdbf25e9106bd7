"""`sanakit export` on a run folder, and `sanakit sample` on what it reads: run, export, native checkpoint."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sanakit.cli import main
from sanakit.core.dit import new_core

CONFIG = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 256,
    "sample_size": 4,
}


def sanakit(monkeypatch, *arguments):
    """Exit code of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sanakit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


@pytest.fixture
def run(tmp_path):
    """A run folder as stage full leaves it."""
    folder = tmp_path / "run"
    core = new_core(CONFIG, seed=0)
    torch.nn.init.normal_(core.proj_out.weight)
    core.save_pretrained(folder / "model")
    card = {
        "recipe": "sanakit, strategy finetune, 16 steps",
        "seed": 0,
        "base": "tiny-sana",
        "vae": "pca-f8c4",
        "scaling_factor": None,
        "text_encoder": "wordllama",
        "image_size": 32,
        "flow_shift": 1.5,
        "data": {"source": "embedded", "fingerprint": "ab" * 32},
        "quality": {"held_out_loss": 0.7, "one_step_error": 0.1},
    }
    (folder / "model" / "card.json").write_text(json.dumps(card))
    gate = {"gate": "full/progress", "code": "SK0502", "verdict": "inconclusive"}
    validation = {
        "base": "tiny-sana",
        "kind": "vae",
        "candidate": "pca-f8c4",
        "verdict": "inconclusive",
        "stages": {"component": {"verdict": "pass", "gates": []}, "full": {"verdict": "inconclusive", "gates": [gate]}},
    }
    (folder / "validation.json").write_text(json.dumps(validation))
    base = {"vae": "pca-f16c32", "text_encoder": "wordllama", "licence": "CC BY-SA 4.0 (base)"}
    (folder / "provenance.json").write_text(json.dumps({"base": {"name": "tiny-sana", "card": base}}))
    (folder / "config.yaml").write_text("base: tiny-sana\n")
    return folder


def drawn_image(path):
    return np.asarray(Image.open(path)).astype(int)


def test_export_then_sample_gives_the_same_image(run, tmp_path, monkeypatch, capsys):
    from sanakit.interop.pipeline import SanakitPipeline

    out = tmp_path / "pipe"
    assert sanakit(monkeypatch, "export", "--run-dir", run, "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["class"] == "SanakitPipeline" and not result["stock"] and result["reasons"] and not result["pushed"]
    sample = ("--prompt", "red apple", "--seed", 5, "--num-steps", 3)
    assert sanakit(monkeypatch, "sample", "--model", run / "model", "--out", tmp_path / "a.png", *sample) == 0
    assert sanakit(monkeypatch, "sample", "--model", out, "--out", tmp_path / "b.png", *sample) == 0
    ours, theirs = drawn_image(tmp_path / "a.png"), drawn_image(tmp_path / "b.png")
    assert ours.std() > 5
    assert abs(ours - theirs).max() <= 1
    faster = ("--scheduler", "dpm++")
    assert sanakit(monkeypatch, "sample", "--model", out, "--out", tmp_path / "c.png", *sample, *faster) == 0
    assert abs(ours - drawn_image(tmp_path / "c.png")).max() > 1
    assert (
        sanakit(monkeypatch, "sample", "--model", out, "--out", tmp_path / "d.png", *sample, "--scheduler", "ddim") == 2
    )
    assert (
        not (tmp_path / "d.png").exists()
        and "no scheduler 'ddim'; known: euler, dpm++, unipc" in capsys.readouterr().err
    )
    pipe = SanakitPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("red apple", num_inference_steps=3, generator=torch.Generator().manual_seed(5)).images[0]
    assert abs(ours - np.asarray(image).astype(int)).max() <= 1
    assert not list(tmp_path.glob(".pipe*"))


def test_the_model_card_says_what_was_swapped(run, tmp_path, monkeypatch):
    sanakit(monkeypatch, "export", "--run-dir", run, "--out", tmp_path / "pipe")
    text = (tmp_path / "pipe" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "diffusers"
    for part in (
        "The VAE `pca-f16c32` was replaced by `pca-f8c4`; base `tiny-sana`",
        "gates: inconclusive",
        "full/progress (SK0502, inconclusive)",
        "base: CC BY-SA 4.0 (base)",
        "vae: CC BY-SA 4.0",
        "text encoder: MIT",
        "mean and std per channel",
        "SanakitPipeline.from_pretrained",
    ):
        assert part in text, part


def test_a_folder_with_files_is_left_alone(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "mine.txt").write_text("keep")
    assert sanakit(monkeypatch, "export", "--run-dir", run, "--out", tmp_path / "pipe") == 2
    assert "error[SK0606]" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "pipe").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("prepare", "refusal"), [(lambda run: None, "has no model"), (None, "is not a run folder")])
def test_a_run_without_a_full_stage_is_refused(run, tmp_path, monkeypatch, capsys, prepare, refusal):
    (run / "model" / "card.json").unlink()
    folder = run if prepare else tmp_path / "nothing"
    assert sanakit(monkeypatch, "export", "--run-dir", folder, "--out", tmp_path / "pipe") == 2
    message = capsys.readouterr().err
    assert "error[SK0605]" in message and refusal in message and "--stage full" in message


def test_push_without_a_network_says_what_to_do(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pipe"
    assert sanakit(monkeypatch, "export", "--run-dir", run, "--out", out, "--push-to-hub", "someone/model") == 3
    message = capsys.readouterr().err
    assert "error[SK0902]" in message and f"hf upload someone/model {out}" in message
    assert (out / "model_index.json").is_file()


def test_a_native_checkpoint_is_a_model_with_leave(run, tmp_path, monkeypatch, capsys):
    from diffusers import SanaTransformer2DModel

    from sanakit.formats.native import to_native

    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    core = SanaTransformer2DModel.from_pretrained(run / "model")
    null = torch.randn(24, 256, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "Sana.pth"
    torch.save({"state_dict": to_native(core.state_dict()) | {"y_embedder.y_embedding": null}}, path)
    heads = {"num_attention_heads": 2, "attention_head_dim": 16} | {
        key: CONFIG[key] for key in CONFIG if "cross" in key or key == "sample_size"
    }
    stated = {"vae": "pca-f8c4", "text_encoder": "wordllama", "image_size": 32, "flow_shift": 1.5, "config": heads}
    path.with_suffix(".json").write_text(json.dumps(stated))
    sample = ("sample", "--prompt", "red apple", "--num-steps", 2, "--guidance-scale", 1, "--out")
    assert sanakit(monkeypatch, *sample, tmp_path / "n.png", "--model", path) == 2
    assert "error[SK0601]" in capsys.readouterr().err
    assert sanakit(monkeypatch, *sample, tmp_path / "n.png", "--model", path, "--allow-pickle") == 0
    assert sanakit(monkeypatch, *sample, tmp_path / "again.png", "--model", path) == 0
    assert sanakit(monkeypatch, *sample, tmp_path / "own.png", "--model", run / "model") == 0
    assert abs(drawn_image(tmp_path / "n.png") - drawn_image(tmp_path / "own.png")).max() <= 1
    assert (drawn_image(tmp_path / "n.png") == drawn_image(tmp_path / "again.png")).all()
