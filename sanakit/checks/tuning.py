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
    hint="lower vae.equivariance or train.learning_rate",
)
def reconstruction(evidence: TuneEvidence) -> Measurement:
    return mean_of(np.asarray(evidence["psnr_after"]) - np.asarray(evidence["psnr_before"]))
