"""Every component of the embedded world passes the stages it is made for: fast by its evidence,
slow by the commands."""

import json
import subprocess
import sys

import pytest
import torch

from sanakit.alignment.similarity import frequent_words
from sanakit.checks import run_gates
from sanakit.checks.measure_text import text_evidence
from sanakit.checks.measure_vae import seam_ratio, vae_evidence
from sanakit.config import Config
from sanakit.contracts import Verdict
from sanakit.data import load_images
from sanakit.data.cache import to_images
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.swap.control import IMAGES, agreement_with_base
from sanakit.swap.early import ALONE_SIZE
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES

EMBEDDED_VAES = [name for name, entry in VAES.entries().items() if entry.embedded]
EMBEDDED_TEXT_ENCODERS = [name for name, entry in TEXT_ENCODERS.entries().items() if entry.embedded]


@pytest.fixture(scope="module")
def evaluation_images():
    """The held-out images that stage component reads by default."""
    config = Config()
    held_out = load_images(config.data.source).split(True)
    return held_out.subset(range(config.component.num_images))


@pytest.fixture(scope="module")
def images(evaluation_images):
    return to_images(evaluation_images.pixels(ALONE_SIZE))


@pytest.mark.parametrize("name", EMBEDDED_VAES)
def test_an_embedded_vae_passes_stage_component(images, name):
    results = run_gates("component", vae_evidence(load_vae(name), images))
    assert {r.gate: (r.value, r.threshold) for r in results if r.verdict != Verdict.PASS} == {}


def test_images_of_one_source_alone_show_no_seam():
    """Emoji are framed alike: their edges, and so the errors, lie at the same borders in all of them."""
    emoji = load_images("openmoji").split(True).subset(range(96))
    vae, images = load_vae("kl-f8c4"), to_images(emoji.pixels(96))
    results = {r.gate: r for r in run_gates("component", vae_evidence(vae, images))}
    assert results["component/seams"].verdict == Verdict.PASS, results["component/seams"]


def test_a_seam_is_told_from_edges_of_the_images():
    torch.manual_seed(0)
    images = torch.rand(64, 3, 64, 64) * 0.2
    images[..., 8:56] += 0.5  # every image has an edge at two borders of the grid
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    assert seam_ratio(images, blurred, 8)[0] < 1.1  # 2.8 by the errors alone
    seamed = blurred.clone()
    seamed[..., 32:] += 0.2
    value, place = seam_ratio(images, seamed, 8)
    assert value > 2
    assert place == "column 32"


@pytest.mark.parametrize("name", EMBEDDED_TEXT_ENCODERS)
def test_an_embedded_text_encoder_passes_stage_component(evaluation_images, name):
    """Against the base's own encoder, as the stage evaluates it."""
    prompts = evaluation_images.evaluation_captions()
    train = load_images(Config().data.source).split(False)
    words = frequent_words([caption for captions in train.captions[:IMAGES] for caption in captions])
    base, candidate = load_base(Config().base).system().text_encoder, load_text_encoder(name)
    evidence = text_evidence(candidate, prompts, base_truncated=base.encode(prompts).truncated)
    results = run_gates("component", evidence | agreement_with_base(candidate, base, words))
    assert {r.gate: (r.value, r.threshold) for r in results if r.verdict != Verdict.PASS} == {}
    assert "component/meaning" in {r.gate for r in results}


@pytest.mark.parametrize("name", EMBEDDED_TEXT_ENCODERS)
def test_no_base_is_needed_to_excuse_cut_captions(evaluation_images, name):
    """Stage component of a bare encoder, as `validate --base none` runs it."""
    prompts = evaluation_images.evaluation_captions()
    results = run_gates("component", text_evidence(load_text_encoder(name), prompts))
    readings = {r.gate: (r.value, r.verdict) for r in results}
    assert readings["component/truncation"] == (0, Verdict.PASS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "candidate"),
    [("swap-vae", name) for name in EMBEDDED_VAES] + [("swap-text-encoder", name) for name in EMBEDDED_TEXT_ENCODERS],
)
def test_no_gate_fails_for_an_embedded_component(tmp_path, command, candidate):
    """Against tiny-sana, all defaults but a short race; only smoke/within-reach may be inconclusive there."""
    stages, returncode = short_race(tmp_path, command, candidate)
    assert list(stages) == ["component", "smoke"]
    short = {g["gate"]: g["verdict"] for s in stages.values() for g in s["gates"] if g["verdict"] != "pass"}
    assert short in ({}, {"smoke/within-reach": "inconclusive"})
    assert returncode in (0, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "candidate"), [("swap-vae", "dc-f16c16"), ("swap-text-encoder", EMBEDDED_TEXT_ENCODERS[-1])]
)
def test_a_base_in_half_precision_leads_to_the_same_recommendation(tmp_path, command, candidate):
    """The default on an accelerator (placement.resolved), against fp32, which is the default on a CPU."""
    raced = {}
    for dtype in ("fp32", "bf16"):
        folder = tmp_path / dtype
        folder.mkdir()
        short_race(folder, command, candidate, "--set", f"base.dtype={dtype}")
        raced[dtype] = json.loads((folder / "run" / "strategy.json").read_text())
    assert raced["bf16"]["recommended"] == raced["fp32"]["recommended"]
    single, half = ({one["name"]: one["relative_error"] for one in raced[d]["candidates"]} for d in ("fp32", "bf16"))
    assert half.keys() == single.keys() and half != single
    for name, errors in single.items():
        assert half[name] == pytest.approx(errors, rel=1e-2), name


def short_race(folder, *arguments):
    """({stage: record}, exit code) of a command of the shell, with a race of 16 steps."""
    words = [*arguments, "--stages", "component,smoke", "--budget-steps", "16", "--json"]
    words = [arguments[0], "--candidate", *words[1:], "--run-dir", str(folder / "run")]
    code = [sys.executable, "-c", "from sanakit.cli import main; main()", *words]
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, timeout=3600, check=False)
    return json.loads(done.stdout)["stages"], done.returncode
