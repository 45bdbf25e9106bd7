"""Verdict logic and the catalogue of codes."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sanakit
from sanakit.contracts import LatentSpec, LatentStats, Verdict, decide
from sanakit.errors import CODES, SanakitError, did_you_mean

PACKAGE = Path(sanakit.__file__).parent
finite = st.floats(-1e6, 1e6)


@given(finite, finite, finite, st.booleans())
def test_judge_decides_only_when_the_whole_interval_is_on_one_side(a, b, threshold, at_least):
    low, high = sorted((a, b))
    verdict = decide((low + high) / 2, threshold, at_least=at_least, ci_low=low, ci_high=high)
    if verdict == Verdict.PASS:
        assert low >= threshold if at_least else high <= threshold
    elif verdict == Verdict.FAIL:
        assert high < threshold if at_least else low > threshold
    else:
        assert low <= threshold <= high


@pytest.mark.parametrize("at_least", [True, False])
def test_not_a_number_fails(at_least):
    assert decide(float("nan"), 0, at_least=at_least) == Verdict.FAIL
    assert decide(1, 0, at_least=at_least, ci_low=float("nan"), ci_high=2) == Verdict.FAIL


def test_worst_verdict():
    assert Verdict.worst([]) == Verdict.INCONCLUSIVE
    assert Verdict.worst([Verdict.PASS, Verdict.INCONCLUSIVE]) == Verdict.INCONCLUSIVE
    assert Verdict.worst([Verdict.INCONCLUSIVE, Verdict.FAIL, Verdict.PASS]) == Verdict.FAIL


def test_records():
    assert LatentSpec(latent_channels=32, spatial_compression_ratio=32).shape(1024, 512) == (32, 32, 16)
    assert LatentStats.from_scaling(0.5, 0.1) == LatentStats(mean=(0.1,), std=(2.0,))


def test_every_code_used_is_explained_and_every_explanation_is_used():
    source = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py") if p.name != "errors.py")
    used = set(re.findall(r"SK\d{4}", source))
    assert used <= CODES.keys()
    assert all(entry.title and entry.why and entry.fix for entry in CODES.values())


def test_message_has_code_cause_and_fix():
    error = SanakitError("SK0401", "no image")
    assert str(error).splitlines()[0] == "error[SK0401]: no image"
    assert error.exit_code == 2 and SanakitError("SK0901", "x").exit_code == 3
    assert did_you_mean("scrtch", ["scratch", "align"]) == " (did you mean scratch?)"
