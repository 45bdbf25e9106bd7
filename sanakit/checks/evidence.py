"""What each stage measures for its gates. Every key is optional: a gate without its evidence is listed as not applied,
and a key that is not listed here is refused, so a misspelt one cannot skip a gate."""

from typing import Any, TypedDict, get_type_hints

import numpy as np

from sanakit.contracts import LatentSpec

Statistics = tuple[list[float], list[float]]  # mean and std by channel


class VaeEvidence(TypedDict, total=False):
    """Stage component of a VAE (checks/measure_vae.py, vae_facts.py). Arrays have one value an image, (N,), unless
    said."""

    measured_spec: LatentSpec
    declared_spec: LatentSpec
    nonfinite_latents: int
    latent_repeat_difference: float
    normalisation_error: float
    image_covariance: np.ndarray
    reconstruction_variance: np.ndarray
    affine_r2: float
    psnr: np.ndarray
    psnr_of_mean_colour: np.ndarray
    channel_order_psnr: dict[str, np.ndarray]
    orientation_psnr: dict[str, np.ndarray]
    latent_power: np.ndarray
    raw_std: float
    channel_std: np.ndarray  # (C,)
    channel_means: np.ndarray  # (N, C), in standard deviations
    effective_channels: float
    seam_ratio: float
    seam_place: str
    stated_stats: Statistics
    measured_stats: Statistics
    nonfinite_weights: int
    vae_precision: str
    seam_crossing: str | None


class TextEvidence(TypedDict, total=False):
    """Stage component of a text encoder (checks/measure_text.py, control.py)."""

    nonfinite_embeddings: int
    embedding_width: int
    hidden_width: int
    vocabulary: int
    embedding_repeat_difference: float
    empty_share: float
    mask_of_one_word: float
    changes_kept_share: float
    last_word_change: float
    padding_difference: float
    instruction_effect: float
    null_difference: float
    token_cosine: float
    nearest_cosine: float
    agreement: np.ndarray  # (terms,)
    control_agreement: np.ndarray  # (terms,)
    truncated: int
    base_truncated: int
    prompts: int


class QualityEvidence(TypedDict, total=False):
    """What smoke and full share: one value a held-out image, (N,), unless said."""

    start_losses: np.ndarray
    end_losses: np.ndarray
    start_at_base: bool
    prompt_gain: np.ndarray
    base_prompt_gain: np.ndarray
    same_latents: bool
    relative_error: np.ndarray
    base_relative_error: np.ndarray
    sample_spread: np.ndarray  # (samples,)


class SmokeEvidence(QualityEvidence, total=False):
    """Stage smoke (swap/stages.py, measure_training.py, control.py)."""

    base_losses: np.ndarray
    linear_losses: np.ndarray
    masked_losses: np.ndarray
    unmasked_losses: np.ndarray
    distinct_share: float
    train_shift: float
    sample_shift: float
    stuck_parameters: list[str]
    strayed_parameters: list[str]
    average_moved: float
    control_lead: np.ndarray
    naive_start_losses: np.ndarray
    aligned_start_losses: np.ndarray
    forecast_arrives: bool
    steps_that_tell: int


class FullEvidence(QualityEvidence, total=False):
    """Stage full (swap/full.py)."""

    drift_alarms: int


class TuneEvidence(TypedDict, total=False):
    """A VAE that was fine-tuned (swap/tune_vae.py), before and after."""

    equivariance_before: np.ndarray
    equivariance_after: np.ndarray
    psnr_before: np.ndarray
    psnr_after: np.ndarray
    perceptual_before: np.ndarray  # train.target vae-decoder
    perceptual_after: np.ndarray
    latents_digest_before: str
    latents_digest_after: str


STAGE_EVIDENCE: dict[str, tuple[Any, ...]] = {
    "component": (VaeEvidence, TextEvidence),
    "smoke": (SmokeEvidence,),
    "full": (FullEvidence,),
    "tune": (TuneEvidence,),
}


def evidence_keys(stage: str) -> set[str]:
    """Every key that a stage may measure. Raises KeyError for a stage that does not exist."""
    return {key for record in STAGE_EVIDENCE[stage] for key in get_type_hints(record)}
