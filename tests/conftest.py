"""A tiny system of tiny twins, and a few real images."""

import os
import subprocess
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the hub client reads it once, when test modules import it


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test marked `own_process` runs in an interpreter of its own: its children train after a fork, which autograd
    refuses once another test of the same process has made it start threads."""
    if not pyfuncitem.get_closest_marker("own_process") or "SANAKIT_OWN_PROCESS" in os.environ:
        return None
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"SANAKIT_OWN_PROCESS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    result = subprocess.run(
        command, cwd=pyfuncitem.config.rootpath, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout[-4000:] + result.stderr[-2000:]
    return True


@pytest.fixture(scope="session", autouse=True)
def _bit_exact():
    import torch

    torch.set_num_threads(1)  # bit-exact comparisons need a fixed count; tests run side by side
    torch.use_deterministic_algorithms(True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights of fixtures that many tests share do not depend on which tests ran before ..."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    """... nor those of a test on who made its fixtures."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _device_before_any_backward(request):
    """Autograd counts devices at the first backward of a process; one that is registered later has no queue. So the
    fake accelerator is known from the beginning where any test asks for it, and found by those tests only."""
    import fake_accelerator

    asked = any("fake_device" in getattr(item, "fixturenames", ()) for item in request.session.items)
    if asked and not fake_accelerator.why_not():
        fake_accelerator.install()


@pytest.fixture(scope="session")
def _fake_accelerator(_device_before_any_backward):
    """The fake accelerator, compiled once and cached (tests/fake_accelerator/README.md)."""
    import fake_accelerator

    if reason := fake_accelerator.why_not():
        pytest.skip(reason)
    return fake_accelerator


@pytest.fixture
def fake_device(_fake_accelerator):
    """The machine has an accelerator, `fakegpu`, for the time of the test; the value is the module that counts."""
    with _fake_accelerator.present():
        yield _fake_accelerator


@pytest.fixture
def tiny_system():
    """f8c4 PCA latents of 32 px images (4 x 4 tokens), a 16-d BERT, a core of two layers."""
    import torch

    from sanakit.assembly import LatentDiffusion
    from sanakit.core.dit import new_core
    from sanakit.text_encoders import TEXT_ENCODERS
    from sanakit.vaes import VAES

    torch.manual_seed(0)
    core = new_core(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 4,
            "patch_size": 1,
        },
        seed=0,
    )
    return LatentDiffusion(
        vae=VAES.get("pca-f8c4").tiny(), text_encoder=TEXT_ENCODERS.get("minilm").tiny(), core=core, image_size=32
    )


@pytest.fixture
def tiny_data(tiny_system):
    """64 images of noise with two captions each, mirrored views included."""
    import torch

    from sanakit.data.dataset import LatentDataset

    generator = torch.Generator().manual_seed(0)
    captions = [" ".join("abcdefgh"[(i + k) % 8] for k in range(2 + i % 3)) for i in range(128)]
    return LatentDataset(
        names=[str(i) for i in range(64)],
        latents=torch.randn(64, 2, 4, 4, 4, generator=generator),
        captions=tiny_system.text_encoder.encode(captions),
        first=torch.arange(0, 128, 2),
        count=torch.full((64,), 2),
    )


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """A base of a tiny core, its VAE and 80 images on disk, and a cache of their own; the configuration's values."""
    import json

    import numpy as np
    from PIL import Image

    from sanakit.core.dit import new_core
    from sanakit.vaes import VAES

    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    dataset, base, vae = tmp_path / "images", tmp_path / "base", tmp_path / "vae"
    dataset.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(80, 32, 32, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(dataset / f"{i}.png")
        (dataset / f"{i}.txt").write_text(f"image number {i}\nanother {i}")
    VAES.get("pca-f8c4").tiny().save(vae)
    core = new_core(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 1,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_cross_attention_heads": 1,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 16,
            "caption_channels": 256,
            "sample_size": 4,
            "patch_size": 1,
        },
        seed=0,
    )
    core.save_pretrained(base)
    card = {"vae": f"path:{vae}", "text_encoder": "wordllama", "image_size": 32, "flow_shift": 1.0, "embedded": True}
    (base / "card.json").write_text(json.dumps(card))
    return {
        "base": f"path:{base}",
        "data": {"source": str(dataset)},  # of the base's image size
        "train": {"max_steps": 24, "batch_size": 4, "checkpoint_every": 10, "strategy": "finetune", "warmup": 2},
        "smoke": {"held_out": 16},
        "evaluate": {"num_prompts": 0},  # tests/test_evaluation.py draws and compares
    }


@pytest.fixture
def any_target(monkeypatch):
    """An untrained base is no better with its prompts: what counts as its quality is its loss, here."""
    import numpy as np

    from sanakit.swap.quality import Target

    def target(base, *others):
        weights = np.full(len(base.sigmas), 1 / len(base.sigmas))
        losses = weights @ base.losses.double().numpy()
        nothing, ones = np.zeros(len(losses)), np.ones(len(losses))
        return Target(measure="", weights=weights, floor=nothing, unit=losses.mean(), base=ones, tolerance=1.1)

    monkeypatch.setattr("sanakit.swap.context.prompt_weights", lambda *results: None)
    monkeypatch.setattr("sanakit.swap.context.text_target", target)


@pytest.fixture(scope="session")
def openclipart_images():
    from sanakit.data import load_images
    from sanakit.data.cache import to_images

    return to_images(load_images("openclipart").split(True).subset(range(32)).pixels(96))
