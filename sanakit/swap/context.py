"""What the stages of a swap share: base, candidate, images and their encodings, loaded when first asked for."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sanakit.alignment import rank_layers
from sanakit.assembly import LatentDiffusion
from sanakit.checks import Policy
from sanakit.config import Config
from sanakit.data import ImageDataset, load_images
from sanakit.data.buckets import bucket_sizes
from sanakit.data.cache import Progress, silent
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.data.table import EVALUATED_BY
from sanakit.errors import SanakitError
from sanakit.evaluation.blind import blind_held_out
from sanakit.evaluation.held_out import HeldOut, held_out
from sanakit.hashing import hash_record
from sanakit.loading import Base, load_base, load_text_encoder, load_vae
from sanakit.placement import Placement, host
from sanakit.ranks.sharing import of_main
from sanakit.run import RunFolder, stage_key
from sanakit.swap import evaluated, recorded
from sanakit.swap.early import NO_BASE, decide_image_size, refuse_few_images, require_base, sample_parts, truth_of
from sanakit.swap.encoding import choose_encoding
from sanakit.swap.fitting import peak_of, resolved
from sanakit.swap.identity import fingerprint_base, identity_of
from sanakit.swap.plan import check_geometry
from sanakit.swap.quality import Target, prompt_weights, text_target, vae_target
from sanakit.text_encoders import TextEncoder
from sanakit.text_encoders.query import with_layer
from sanakit.text_encoders.transformer import TransformerEncoder
from sanakit.training import optimizers, tracking
from sanakit.vaes import VAE

DEFAULT = Policy()
LAYER_CAPTIONS = 512
WEIGHED = 64  # images of the training split that tell how much each noise level counts


@dataclass(kw_only=True)
class Swap:
    """One swap with its run folder. resume: auto, never, or a checkpoint folder. ledger: where the ledger of refused
    data is written; None is a file in the cache. begun: reading of time.monotonic from which `smoke.time_limit`
    counts. seconds_per_step: of the machine that the full run is planned for, where the user states it."""

    config: Config
    run: RunFolder
    progress: Progress = silent
    resume: str = "auto"
    policy: Policy = DEFAULT
    ledger: Path | None = None
    placement: Placement = field(default_factory=host)
    begun: float = field(default_factory=time.monotonic)
    seconds_per_step: float | None = None

    @property
    def bare(self) -> bool:
        """A component alone: no base to compare with, stage component only."""
        return self.config.base == NO_BASE

    @cached_property
    def base(self) -> Base:
        return Base(name=NO_BASE, folder=Path(), card={"vae": None}) if self.bare else load_base(self.config.base)

    @cached_property
    def base_system(self) -> LatentDiffusion:
        return self.base.system(placement=self.placement, part="base")

    @cached_property
    def candidate(self) -> VAE | TextEncoder:
        config = self.config
        if self.bare and config.candidate is None:
            raise SanakitError("SK0104", "no base and no candidate", fix="Name --vae or --text-encoder, or a --base.")
        if config.kind == "text_encoder":
            assert self.text_encoder_name
            return load_text_encoder(self.text_encoder_name)
        return load_vae(config.vae.name or self.base.card["vae"], scaling_factor=config.vae.scaling_factor)

    @cached_property
    def text_encoder_name(self) -> str | None:
        """The candidate's, `layer=auto` replaced by the measured best: the name under which it is encoded,
        fingerprinted and written into the model's card."""
        name = self.config.text_encoder.name
        if name is None or not self.automatic_layer:
            return name
        if self.layers is None:
            raise SanakitError("SK0104", f"{name}: layers are measured against a base, found --base {NO_BASE}")
        return with_layer(name, self.layers["used"])

    @property
    def automatic_layer(self) -> bool:
        name = self.config.text_encoder.name
        return name is not None and with_layer(name, None) != name

    @cached_property
    def layers(self) -> dict[str, Any] | None:
        """`rank_layers` of a text encoder against the base, on captions of the training split (the held-out ones
        evaluate later); None for one without a choice of layers, or without a base."""
        name = self.config.text_encoder.name
        if name is None or self.bare:
            return None
        encoder = load_text_encoder(with_layer(name, None)) if self.automatic_layer else self.candidate
        if not self.automatic_layer and not isinstance(encoder, TransformerEncoder):
            return None
        assert isinstance(encoder, TextEncoder)
        train = self.splits[0]
        places = np.linspace(0, len(train) - 1, min(LAYER_CAPTIONS, len(train))).astype(int)
        chosen, read = (side.evaluation_captions(places) for side in (train, train.for_base()))
        base = self.base_system
        with self.placement.holding(encoder, base.text_encoder, base.core.caption_projection):
            sides = encoder, chosen, base.core, base.text_encoder
            ranking = rank_layers(*sides, base_texts=read, progress=self.progress)
        return ranking | {"used": ranking["best"]} if self.automatic_layer else ranking

    @cached_property
    def images(self) -> ImageDataset:
        data = self.config.data
        rules: dict[str, Any] = {"max_set_aside": data.max_set_aside, "fit": data.fit, "captions": data.captions}
        images = load_images(data.source, ledger=self.ledger, progress=self.progress, **rules)
        refuse_few_images(images, self.ledger)
        return images

    @cached_property
    def splits(self) -> tuple[ImageDataset, ImageDataset]:
        return self.images.split(False), self.images.split(True)

    def captioned(self, images: ImageDataset, *, base: bool = False) -> ImageDataset:
        """Images with the captions that the swapped system reads, or the base: its own text encoder reads
        `captions_base` where the data has them, a candidate `captions`."""
        return images.for_base() if base or self.config.kind == "vae" else images

    @property
    def num_held_out(self) -> int:
        """Held-out images used to evaluate a race."""
        return min(self.config.smoke.held_out, len(self.splits[1]))

    def dataset(
        self,
        vae: VAE,
        text_encoder: TextEncoder,
        held_out_split: bool,
        buckets: Sequence[tuple[int, int]] = (),
        *,
        sample_posterior: bool = False,
    ) -> LatentDataset:
        """Latents and embeddings of a split by a VAE and a text encoder, squares or in buckets."""
        data = self.config.data
        images = self.captioned(self.splits[held_out_split], base=text_encoder is self.base_system.text_encoder)
        if data.caption_temperature and not images.scores:
            raise SanakitError(
                "SK0104",
                f"data.caption_temperature: {images.source} has no scores",
                fix="Leave it out, or state them.",
            )
        return build_dataset(
            vae,
            text_encoder,
            images,
            data.size,
            mirror=not held_out_split,
            progress=self.progress,
            cache=Path(data.cache) if data.cache else None,
            temperature=data.caption_temperature,
            buckets=buckets,
            at_least=self.config.train.batch_size,
            sample_posterior=sample_posterior,
            live_latents=data.latents == "live",
            live_embeddings=data.embeddings == "live",
            max_set_aside=data.max_set_aside,
            placement=self.placement,
        )

    @cached_property
    def base_data(self) -> tuple[LatentDataset, LatentDataset]:
        parts = self.base_system.vae, self.base_system.text_encoder
        return self.dataset(*parts, False), self.dataset(*parts, True)

    @cached_property
    def candidate_data(self) -> tuple[LatentDataset, LatentDataset]:
        candidate, base = self.candidate, self.base_system
        check_geometry(base, candidate)
        if self.config.candidate is None and self.config.vae.scaling_factor is None:
            return self.base_data  # nothing is swapped
        parts = (candidate, base.text_encoder) if isinstance(candidate, VAE) else (base.vae, candidate)
        return self.dataset(*parts, False), self.dataset(*parts, True)

    def stream(self, system: LatentDiffusion) -> LatentDataset:
        """What the loop reads: the training split, in its own shapes where data.aspect_buckets says so, drawn from the
        posterior where data.sample_posterior does."""
        data = self.config.data
        if not data.aspect_buckets and not data.sample_posterior:
            return self.candidate_data[0]
        sizes: list[tuple[int, int]] = []
        if data.aspect_buckets:
            cell = system.vae.spec.spatial_compression_ratio * system.core.config.patch_size
            sizes = bucket_sizes(system.image_size, cell, data.max_aspect)
        return self.dataset(system.vae, system.text_encoder, False, sizes, sample_posterior=data.sample_posterior)

    @cached_property
    def base_held_out(self) -> HeldOut:
        return held_out(self.base_system, self.base_data[1], count=self.num_held_out)

    @cached_property
    def base_blind(self) -> HeldOut:
        """Of the base without its prompts (sanakit/evaluation/blind.py), on the same held-out images."""
        return blind_held_out(self.base_system, self.base_data[1], count=self.num_held_out)

    @cached_property
    def target(self) -> Target:
        """What counts as the base's quality for this swap."""
        if isinstance(self.candidate, VAE):
            told = self.progress if self.config.data.latents == "live" else silent
            return vae_target(self.candidate_data, self.base_data, self.base_held_out, told)
        weighed = [
            measure(self.base_system, self.base_data[0], count=WEIGHED) for measure in (held_out, blind_held_out)
        ]
        return text_target(self.base_held_out, self.base_blind, prompt_weights(*weighed))

    def sample_prompts(self, count: int | None = None, *, base: bool = False) -> list[str]:
        """Half of them of the training images, half held out; spread over the data set. count: by default
        smoke.samples. base: as the base reads them."""
        splits = [self.captioned(split, base=base) for split in self.splits]
        parts = sample_parts(splits, count or self.config.smoke.samples)
        return [prompt for _, prompts, _ in parts for prompt in prompts]

    def sample_truth(self) -> tuple[Tensor, list[str]]:
        """The images that the sample prompts describe, (B, 3, S, S) in [-1, 1], and the split of each."""
        return truth_of(sample_parts(self.splits, self.config.smoke.samples), self.config.data.size)

    def resolved(self, asked: Config) -> Config:
        """A configuration with values for every `auto` of its training and data sections, rank 0's on all ranks."""
        return of_main(choose_encoding(self, resolved(asked, self.placement, peak_of(self))))

    def fingerprint(self, stage: str) -> str:
        """Of what a stage measures; the policy that decides on it is apart."""
        alone = stage == "full" and self.trains_vae_alone
        base, config = {} if alone else self.base_fingerprint, self.config
        if stage == "full" and not alone:  # what is trained, at which rate and for how long, is what the race says
            strategy, config = recorded.trained_by(self)
            base = base | {"strategy": f"{strategy.name} at {strategy.learning_rate:g}"}
        data = [self.images.fingerprint, EVALUATED_BY]
        return hash_record([stage, stage_key(config, stage), self.candidate_identity, data, base])

    @property
    def candidate_identity(self) -> str:
        """A candidate that is changed in place, its normalisation too, is another candidate."""
        return identity_of(self.candidate)

    @property
    def trains_vae_alone(self) -> bool:
        """Stage full trains the VAE itself; no weight of the base plays a part in it."""
        return self.config.trains_vae_alone

    @cached_property
    def base_fingerprint(self) -> dict[str, str]:
        """As of `identity.fingerprint_base`; empty without a base."""
        return {} if self.bare else fingerprint_base(self.base_system)

    def add_figures(self, stage: str, figures: list[dict[str, str]]) -> None:
        kept = [f for f in self.run.read_json("figures.json", []) if f.get("stage") != stage]
        self.run.write_json("figures.json", kept + [f | {"stage": stage} for f in figures])


def prepare(
    config: Config,
    run_dir: Path | None,
    progress: Progress,
    policy: Policy = DEFAULT,
    stages: Sequence[str] = (),
    placement: Placement | None = None,
) -> Swap:
    """Load what can be refused (base, candidate, images) before a run folder is made. stages: that are about to run."""
    require_base(config, stages)
    optimizers.require(config.train.optimizer)
    tracking.require(config.train.report_to)
    if "full" in stages and config.train.target == "core":
        evaluated.require(config)
    swap = Swap(
        config=config,
        run=RunFolder(Path(), config),
        progress=progress,
        policy=policy,
        ledger=run_dir / "ledger.jsonl" if run_dir else None,
        placement=placement or host(),
    )
    swap.config = config = decide_image_size(config, swap.base.card.get("image_size"))
    for part in (swap.base, swap.candidate, swap.images):
        assert part is not None
    swap.run = RunFolder.open(config, run_dir, stages, swap.resolved)
    swap.config = swap.run.config
    return swap
