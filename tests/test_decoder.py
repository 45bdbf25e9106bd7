"""A decoder that is trained alone: better images, and latents that are bit-equal to those before."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sanakit.checks.stage import run_gates
from sanakit.config import make_config
from sanakit.data import load_images
from sanakit.data.cache import latent_job, to_images
from sanakit.distributed import STOP
from sanakit.errors import SanakitError
from sanakit.evaluation.decoded import ALEXNET, high_frequencies, perceptual_term
from sanakit.evaluation.perceptual import extractor
from sanakit.evaluation.reconstruction import kernel_distances
from sanakit.interop.export import save_vae
from sanakit.loading import load_base, load_vae
from sanakit.placement import choose
from sanakit.sampling import sample_images
from sanakit.swap import stages as engine
from sanakit.swap.identity import identity_of
from sanakit.swap.tune_decoder import decoder_parameters, measured
from sanakit.swap.tuning import write_tuned
from sanakit.vaes import VAES
from sanakit.vaes.pca import PCAVAE

WEIGHTS = "diffusion_pytorch_model.safetensors"
SETS = (
    "train.target=vae-decoder",
    "train.learning_rate=3e-3",
    "train.weight_decay=0",
    "train.max_steps=12",
    "train.checkpoint_every=5",
    "component.num_images=16",
    "monitors.num_evaluations=1",
)


@pytest.fixture
def world(small_world, tmp_path):
    """The small world, its base with a VAE that has a decoder to train."""
    vae = VAES.get("sdxl-vae").tiny()
    torch.nn.init.constant_(vae.model.encoder.conv_in.bias, -0.0)  # its running average is +0.0
    save_vae(vae, tmp_path / "conv", stock=False)
    card = json.loads((tmp_path / "base" / "card.json").read_text())
    (tmp_path / "base" / "card.json").write_text(json.dumps(card | {"vae": f"path:{tmp_path / 'conv'}"}))
    return small_world


def tuned(values, folder, *sets, stop_at=0):
    def progress(label, done, total):
        if stop_at and label.startswith("training") and done == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    config = make_config(values, [*SETS, *sets])
    with STOP.installed():
        run = engine.prepare(config, folder, progress, stages=["full"])
        return engine.run_stages(run, ["full"], force=True)


def test_the_decoder_learns_and_the_latents_stay(world, tmp_path):
    gates = {g["gate"]: g for g in tuned(world, tmp_path / "run", "train.ema_decay=0.5")["stages"]["full"]["gates"]}
    assert gates.keys() == {"tune/latents", "tune/perceptual", "tune/reconstruction"}
    assert gates["tune/latents"]["verdict"] == "pass" and gates["tune/latents"]["value"] == 0
    assert gates["tune/reconstruction"]["value"] > 1  # of a random decoder anything learnt shows
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = (next(r for r in rows if r["split"] == "vae" and r["step"] == step) for step in (0, 12))
    assert last["psnr"] > first["psnr"] and last["high_frequency_error"] < first["high_frequency_error"]
    assert last["kid_colours"] < first["kid_colours"]  # of a random decoder
    assert {"kid_efflite0", "kid_colours"} <= first.keys()

    old, new = load_vae(f"path:{tmp_path / 'conv'}"), load_vae(f"path:{tmp_path / 'run' / 'vae'}")
    images = load_images(str(tmp_path / "images"))
    pixels = to_images(images.pixels(32))
    assert torch.equal(old.encode(pixels), new.encode(pixels))
    assert not torch.equal(old.decode(old.encode(pixels[:2])), new.decode(old.encode(pixels[:2])))
    assert new.fingerprint() == old.fingerprint() and new.weights_hash() != old.weights_hash()
    assert identity_of(new) != identity_of(old)  # another component, with the same latents
    latent_job(old, images, 32).run(tmp_path / "latents")
    assert latent_job(new, images, 32).run(tmp_path / "latents", must_exist=True)[2]  # the cache serves both

    base = load_base(f"path:{tmp_path / 'run' / 'model'}")
    assert base.card["vae"] == f"path:{tmp_path / 'run' / 'vae'}" and base.embedded
    system, before = base.system(), load_base(world["base"]).system()
    for name, tensor in before.core.state_dict().items():
        assert torch.equal(tensor, system.core.state_dict()[name]), name
    assert torch.equal(before.text_encoder.null().embeds, system.text_encoder.null().embeds)
    assert sample_images(system, ["image number 1"], num_steps=2).shape == (1, 3, 32, 32)


def test_it_goes_on_where_it_stopped(world, tmp_path):
    sets = ("train.max_steps=6", "vae.perceptual=0")
    tuned(world, tmp_path / "straight", *sets)
    with pytest.raises(SystemExit, match="143"):
        tuned(world, tmp_path / "stopped", *sets, stop_at=3)
    tuned(world, tmp_path / "stopped", *sets)
    weights = [(tmp_path / part / "vae" / WEIGHTS).read_bytes() for part in ("straight", "stopped")]
    assert weights[0] == weights[1] != (tmp_path / "conv" / WEIGHTS).read_bytes()


def test_an_earlier_vae_stays_until_the_new_one_reads_back(tmp_path, monkeypatch):
    swap, first, second = SimpleNamespace(run=SimpleNamespace(path=tmp_path)), PCAVAE.tiny(), PCAVAE.tiny()
    second.model.mean.add_(0.1)
    write_tuned(swap, first)
    monkeypatch.setattr(PCAVAE, "save", lambda vae, folder: first_without_scale(first, folder))
    with pytest.raises(SanakitError, match="SK0604.*reads back otherwise"):
        write_tuned(swap, second)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    assert load_vae(f"path:{tmp_path / 'vae'}").fingerprint() == first.fingerprint()
    monkeypatch.undo()
    write_tuned(swap, second)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
    assert load_vae(f"path:{tmp_path / 'vae'}").fingerprint() == second.fingerprint()


def first_without_scale(vae, folder):
    """Another VAE than was asked for."""
    folder.mkdir()
    facts = {"_class_name": "PCAPatchAutoencoder", "ratio": 8, "latents_mean": [0.0], "latents_std": [1.0]}
    (folder / "config.json").write_text(json.dumps(facts))
    save_file(dict(vae.model.state_dict()), folder / "model.safetensors")


def test_another_encoder_than_stated_is_said_and_its_latents_are_its_own(world, tmp_path):
    tuned(world, tmp_path / "run", "train.max_steps=3", "vae.perceptual=0")
    file = tmp_path / "run" / "vae" / WEIGHTS
    tensors = load_file(file)
    tensors["encoder.conv_in.bias"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match="SK0220.*other weights of the encoder"):
        vae = load_vae(f"path:{tmp_path / 'run' / 'vae'}")
    assert vae.kept is None and vae.fingerprint() == vae.weights_hash()


def test_only_what_decoding_alone_reaches_is_trained():
    vae = VAES.get("sdxl-vae").tiny()
    names = decoder_parameters(vae, torch.zeros(1, 3, 32, 32))
    assert {name.split(".")[1] for name in names} == {"decoder", "post_quant_conv"}
    assert all(p.requires_grad == (name in names) for name, p in vae.named_parameters())
    with pytest.raises(SanakitError, match="SK0104.*no parameter of a decoder alone"):
        decoder_parameters(VAES.get("pca-f8c4").tiny(), torch.zeros(1, 3, 32, 32))


def test_changed_latents_fail_their_gate():
    same = run_gates("tune", {"latents_digest_before": "a", "latents_digest_after": "a"})
    other = run_gates("tune", {"latents_digest_before": "a", "latents_digest_after": "b"})
    assert [(g.gate, g.verdict, g.code) for g in same + other] == [
        ("tune/latents", "pass", "SK0514"),
        ("tune/latents", "fail", "SK0514"),
    ]


def test_high_frequencies_are_what_a_blur_takes_away():
    flat, board = torch.full((1, 3, 16, 16), 0.3), torch.ones(1, 3, 16, 16)
    board[..., (torch.arange(16)[:, None] + torch.arange(16)) % 2 == 1] = -1
    assert high_frequencies(flat).abs().max() < 1e-6
    torch.testing.assert_close(high_frequencies(board)[..., 2:-2, 2:-2], board[..., 2:-2, 2:-2])


def test_the_perceptual_term_is_the_distance_that_is_measured_and_has_a_gradient():
    from sanakit.evaluation.perceptual import perceptual_distance

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = (images * 0.5).requires_grad_(True)
    value = perceptual_term("efficientnet-lite0", torch.device("cpu"))(images, other)
    torch.testing.assert_close(value.detach(), perceptual_distance(images, other.detach()))
    value.sum().backward()
    assert other.grad is not None and other.grad.abs().sum() > 0


def test_lpips_without_its_weights_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(SanakitError, match=f"SK0901.*{ALEXNET}, which is not there"):
        perceptual_term("lpips-alex", torch.device("cpu"))


class Payload:
    def __reduce__(self):
        return (Path("ran").write_text, ("code of the file",))


def test_lpips_runs_no_code_of_its_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"features.0.weight": Payload()}, tmp_path / "hub" / "checkpoints" / ALEXNET)
    with pytest.raises(SanakitError, match="SK0107.*holds no AlexNet of torchvision"):
        perceptual_term("lpips-alex", torch.device("cpu"))
    assert not Path("ran").exists()


TRUNK = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}  # out, in, kernel


@pytest.mark.parametrize("features", ["efficientnet-lite0", "lpips-alex"])
def test_images_of_the_host_are_measured_on_the_device(features, tmp_path, monkeypatch, fake_device):
    """Random weights of AlexNet: what the figure says does not matter here, where it is computed does."""
    if features == "efficientnet-lite0" and extractor() is None:
        pytest.skip("its package is not installed")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    trunk = {f"features.{n}.weight": torch.randn(o, i, k, k) / (i * k * k) ** 0.5 for n, (o, i, k) in TRUNK.items()}
    trunk |= {f"features.{n}.bias": torch.zeros(shape[0]) for n, shape in TRUNK.items()}
    torch.save(trunk, tmp_path / "hub" / "checkpoints" / ALEXNET)
    vae, images = VAES.get("pca-f8c4").tiny(), torch.rand(2, 3, 64, 64) * 2 - 1
    found = {}
    for placement in (choose("cpu"), choose("auto")):
        distance = perceptual_term(features, placement.device)
        with placement.holding(vae, extractor()):
            found[placement.device.type] = measured(vae, images, distance)["perceptual_distance"]
    assert found["fakegpu"] == pytest.approx(found["cpu"], rel=1e-3) and (found["cpu"] > 0).all()


@pytest.mark.slow
def test_lpips_reads_the_file_of_torchvision(tmp_path, monkeypatch):
    """Random weights under the name of the real ones: the path works, the figure says nothing."""
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(alexnet().state_dict(), tmp_path / "hub" / "checkpoints" / ALEXNET)
    distance = perceptual_term("lpips-alex", torch.device("cpu"))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    other = (-images).requires_grad_(True)
    assert distance(images, images).abs().max() < 1e-6 and (distance(images, other) > 0).all()
    distance(images, other).sum().backward()
    assert other.grad is not None and other.grad.abs().sum() > 0


def test_the_kid_of_reconstructions_is_that_of_pairs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 6, generator=generator)
    assert kernel_distances(images, images).tolist() == [0.0] * 40
    other = images * 0.5 + 1
    values = kernel_distances(images, other)

    def kernel(a, b):
        return float((a @ b / 6 + 1) ** 3)

    def term(i, j):
        within = kernel(images[i], images[j]) + kernel(other[i], other[j])
        return within - kernel(images[i], other[j]) - kernel(other[i], images[j])

    pairs = [term(i, j) for i in range(40) for j in range(40) if i != j]
    assert values.shape == (40,) and values.mean() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
