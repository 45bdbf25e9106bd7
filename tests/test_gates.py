"""Gates on planted evidence."""

import numpy as np
import pytest

from sanakit.contracts import LatentSpec, Verdict
from sanakit.gates import GATES, run_gates


def vae_evidence(**changes):
    spec = LatentSpec(latent_channels=4, spatial_compression_ratio=8)
    generator = np.random.default_rng(0)
    return {
        "nonfinite_latents": 0,
        "measured_spec": spec,
        "declared_spec": spec,
        "psnr": generator.normal(22, 2, 100),
        "psnr_of_mean_colour": generator.normal(10, 2, 100),
        "latent_power": generator.normal(1, 0.1, 100),
        "raw_std": 5.5,
        "channel_std": np.ones(4),
    } | changes


def verdicts(evidence):
    return {r.gate: r.verdict for r in run_gates("component", evidence)}


def test_a_sound_vae_passes_every_component_gate():
    assert set(verdicts(vae_evidence()).values()) == {Verdict.PASS}


@pytest.mark.parametrize(
    ("gate", "changes"),
    [
        ("component/finite-latents", {"nonfinite_latents": 3}),
        ("component/geometry", {"measured_spec": LatentSpec(latent_channels=8, spatial_compression_ratio=8)}),
        ("component/reconstruction", {"psnr": np.full(100, 9.0)}),
        ("component/scale-high", {"latent_power": np.full(100, 5.5**2)}),
        ("component/scale-low", {"latent_power": np.full(100, 0.18**2)}),
        ("component/dead-channels", {"channel_std": np.array([1, 1, 0, 1])}),
        ("component/scale-high", {"latent_power": np.full(100, np.nan)}),
    ],
)
def test_planted_faults_are_failed_by_the_gate_that_names_them(gate, changes):
    assert verdicts(vae_evidence(**changes))[gate] == Verdict.FAIL


def test_scale_hint_gives_the_factor():
    result = next(r for r in run_gates("component", vae_evidence(latent_power=np.full(50, 30.0))) if r.code == "SK0203")
    assert "vae.scaling_factor=0.1818" in result.hint


def test_every_gate_belongs_to_a_stage():
    assert {name.split("/")[0] for name in GATES.names()} == {"component", "smoke", "full"}


def smoke_evidence(ratio, arrives):
    ones = np.ones(64)
    return {"start_losses": 2 * ones, "end_losses": ones, "conditional_gain": 0.1 * ones, "relative_error": ratio * ones,
            "base_relative_error": ones, "forecast_arrives": arrives}  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "arrives", "verdict"),
    [(1.2, False, Verdict.PASS), (3.0, True, Verdict.INCONCLUSIVE), (3.0, False, Verdict.INCONCLUSIVE)],
)
def test_a_short_race_never_says_that_the_base_is_out_of_reach(ratio, arrives, verdict):
    results = {r.gate: r for r in run_gates("smoke", smoke_evidence(ratio, arrives))}
    assert results["smoke/within-reach"].verdict == verdict
    assert results["smoke/progress"].verdict == Verdict.PASS
