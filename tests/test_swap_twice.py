"""One component after the other: the model of a first swap is the base of a second, through export."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sanakit.cli import export  # noqa: F401  it adds its command
from sanakit.cli.app import app
from sanakit.config import make_config
from sanakit.interop.export import write_encoder
from sanakit.loading import load_base
from sanakit.sampling import sample_images
from sanakit.swap import stages as engine
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes.pca import PCAVAE

SETS = ("train.max_steps=3", "monitors.num_evaluations=1", "train.start=align", "train.warmup=0")


def swapped(values, folder, **changed):
    """The run folder of one swap, its model written by stage full."""
    config = make_config(values | changed, list(SETS))
    run = engine.prepare(config, folder, lambda *_: None, stages=["full"])
    validation = engine.run_stages(run, ["full"], force=True)
    return validation


@pytest.fixture
def other_vae(tmp_path):
    generator = torch.Generator().manual_seed(3)
    vae = PCAVAE.fit(torch.randint(256, (32, 3, 32, 32), generator=generator, dtype=torch.uint8), 8, 6)
    vae.save(tmp_path / "other")
    return vae


def test_the_model_of_a_vae_swap_is_the_base_of_a_text_swap_through_export(
    small_world, other_vae, any_target, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    swapped(small_world, tmp_path / "first", vae={"name": "path:./other"})
    first = load_base(f"path:{tmp_path / 'first' / 'model'}")
    monkeypatch.chdir("/")  # what a card names does not depend on where the next command is started
    assert first.card["vae"] == f"path:{tmp_path / 'other'}" and first.embedded
    middle = first.system()
    assert middle.vae.fingerprint() == other_vae.fingerprint() and middle.core.config.in_channels == 6

    encoder = f"path:{tmp_path / 'bert' / 'text_encoder'}"
    (tmp_path / "bert").mkdir()
    write_encoder(TEXT_ENCODERS.get("minilm").tiny(), tmp_path / "bert")
    validation = swapped(small_world, tmp_path / "second", base=first.name, text_encoder={"name": encoder})
    assert validation["base"] == first.name and validation["kind"] == "text_encoder"
    model = tmp_path / "second" / "model"
    last = load_base(f"path:{model}").system()
    assert last.vae.fingerprint() == other_vae.fingerprint() and last.text_encoder.spec.embed_dim == 16
    assert last.core.config.caption_channels == 16 and last.core.config.in_channels == 6
    old, new = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (first.folder, model))
    assert not torch.equal(old["caption_projection.linear_1.weight"], new["caption_projection.linear_1.weight"])

    out = tmp_path / "pipeline"
    told = CliRunner().invoke(app, ["export", "--run-dir", str(tmp_path / "second"), "--out", str(out), "--json"])
    assert told.exit_code == 0 and json.loads(told.stdout)["class"] == "SanakitPipeline"
    exported = load_base(f"path:{out}").system()
    images = [sample_images(system, ["image number 3"], num_steps=2) for system in (last, exported)]
    torch.testing.assert_close(*images, atol=1e-3, rtol=1e-3)
    card = (out / "README.md").read_text()
    assert f"base `{first.name}`" in card and f"text encoder `wordllama` was replaced by `{encoder}`" in card
