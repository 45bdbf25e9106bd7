"""Every component of the embedded world passes the stages it is made for: fast by its evidence, slow by the commands."""

import json
import subprocess
import sys

import pytest

from sanakit.config import Config
from sanakit.contracts import Verdict
from sanakit.data import load_pictures
from sanakit.data.cache import to_images
from sanakit.gates import run_gates
from sanakit.swap.probe_text import text_evidence
from sanakit.swap.probe_vae import vae_evidence
from sanakit.text_encoders import TEXT_ENCODERS, load_text_encoder
from sanakit.vaes import VAES, load_vae

EMBEDDED_VAES = [name for name, entry in VAES.entries().items() if entry.embedded]
EMBEDDED_TEXT_ENCODERS = [name for name, entry in TEXT_ENCODERS.entries().items() if entry.embedded]


@pytest.fixture(scope="module")
def judges():
    """The held-out images that stage component reads by default."""
    config = Config()
    held_out = load_pictures(config.data.source).split(True)
    return held_out.subset(range(config.component.pictures))


@pytest.fixture(scope="module")
def images(judges):
    return to_images(judges.pixels(Config().data.image_size))


@pytest.mark.parametrize("name", EMBEDDED_VAES)
def test_an_embedded_vae_passes_stage_component(images, name):
    results = run_gates("component", vae_evidence(load_vae(name), images))
    assert {r.gate: (r.value, r.threshold) for r in results if r.verdict != Verdict.PASS} == {}


@pytest.mark.parametrize("name", EMBEDDED_TEXT_ENCODERS)
def test_an_embedded_text_encoder_passes_stage_component(judges, name):
    prompts = [captions[-1] for captions in judges.captions]
    results = run_gates("component", text_evidence(load_text_encoder(name), prompts))
    assert {r.gate: (r.value, r.threshold) for r in results if r.verdict != Verdict.PASS} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "candidate"),
    [("swap-vae", name) for name in EMBEDDED_VAES] + [("swap-text-encoder", name) for name in EMBEDDED_TEXT_ENCODERS],
)
def test_no_gate_fails_for_an_embedded_component(tmp_path, command, candidate):
    """Against tiny-sana, all defaults but a short race; only smoke/within-reach may be inconclusive there."""
    arguments = [command, "--candidate", candidate, "--stages", "component,smoke", "--budget-steps", "16", "--json"]
    code = [
        sys.executable,
        "-c",
        "from sanakit.cli import main; main()",
        *arguments,
        "--run-dir",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=False)
    stages = json.loads(done.stdout)["stages"]
    assert list(stages) == ["component", "smoke"]
    short = {g["gate"]: g["verdict"] for s in stages.values() for g in s["gates"] if g["verdict"] != "pass"}
    assert short in ({}, {"smoke/within-reach": "inconclusive"})
    assert done.returncode in (0, 4)
