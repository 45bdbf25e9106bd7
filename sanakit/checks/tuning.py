"""Gates of a VAE that was fine-tuned: its latents obey more, and its images are about as good as before."""

import numpy as np

from sanakit.checks.base import GATES, Measurement, mean_of, rule
from sanakit.checks.evidence import TuneEvidence


@GATES.register("tune/equivariance", title="latents turn and scale with the image more than before", embedded=True)
@rule(
    code="SK0510",
    metric="equivariance error gained",
    above=(0, 0),
    definition="better than before, paired",
    needs=("equivariance_before", "equivariance_after"),
    hint="raise vae.equivariance or train.max_steps",
)
def equivariance(evidence: TuneEvidence) -> Measurement:
    return mean_of(np.asarray(evidence["equivariance_before"]) - np.asarray(evidence["equivariance_after"]))


@GATES.register("tune/reconstruction", title="reconstruction has lost at most 1 dB", embedded=True)
@rule(
    code="SK0201",
    metric="PSNR over the one before less 1 dB",
    at_least=(0, 0),
    definition="a tolerance: 1 dB, in the metric",
    needs=("psnr_before", "psnr_after"),
    hint="lower train.learning_rate, vae.equivariance or vae.perceptual",
)
def reconstruction(evidence: TuneEvidence) -> Measurement:
    return mean_of(np.asarray(evidence["psnr_after"]) - np.asarray(evidence["psnr_before"]))


@GATES.register("tune/latents", title="the latents are bit-equal to those before", embedded=True)
@rule(
    code="SK0514",
    metric="digests of held-out latents that differ",
    at_most=(0, 0),
    definition="bit-equal",
    needs=("latents_digest_before", "latents_digest_after"),
)
def latents(evidence: TuneEvidence) -> float:
    return float(evidence["latents_digest_before"] != evidence["latents_digest_after"])


@GATES.register("tune/perceptual", title="reconstructions are perceptually nearer than before", embedded=True)
@rule(
    code="SK0515",
    metric="perceptual distance gained",
    above=(0, 0),
    definition="better than before, paired",
    needs=("perceptual_before", "perceptual_after"),
    hint="raise vae.perceptual or train.max_steps",
)
def perceptual(evidence: TuneEvidence) -> Measurement:
    return mean_of(np.asarray(evidence["perceptual_before"]) - np.asarray(evidence["perceptual_after"]))
