"""Gates of a VAE that was fine-tuned: its latents obey more, and its pictures are about as good as before."""

import numpy as np

from sanakit.contracts import GateResult
from sanakit.gates.base import GATES, Evidence, gate_result, interval


@GATES.register("tune/equivariance", title="latents turn and scale with the picture more than before", embedded=True)
def equivariance(evidence: Evidence) -> GateResult | None:
    gain = np.asarray(evidence["equivariance_before"]) - np.asarray(evidence["equivariance_after"])
    value, ci = interval(gain)
    return gate_result(
        gate="tune/equivariance",
        code="SK0510",
        metric="equivariance error gained",
        value=value,
        ci=ci,
        samples=len(evidence["psnr_after"]),
        at_least=True,
        above=True,
        hint="raise vae.equivariance or train.max_steps",
    )


@GATES.register("tune/reconstruction", title="reconstruction has lost at most 1 dB", embedded=True)
def reconstruction(evidence: Evidence) -> GateResult | None:
    value, ci = interval(np.asarray(evidence["psnr_after"]) - np.asarray(evidence["psnr_before"]))
    return gate_result(
        gate="tune/reconstruction",
        code="SK0201",
        metric="PSNR over the one before less 1 dB",
        value=value,
        ci=ci,
        samples=len(evidence["psnr_after"]),
        at_least=True,
        hint="lower vae.equivariance or train.learning_rate",
    )
