"""What the trainings of a VAE alone share: the VAE and the images that they read, and what is written at the end."""

import shutil
import uuid
from typing import TYPE_CHECKING

from torch import Tensor

from sanakit.data.cache import to_images
from sanakit.data.failures import Failures
from sanakit.data.order import batch_indices
from sanakit.data.readable import ReadableImages
from sanakit.distributed import DATA_STOP, STOP
from sanakit.errors import SanakitError
from sanakit.interop.export import save_vae
from sanakit.training.batches import TrainOptions, own_rows
from sanakit.vaes import VAE

if TYPE_CHECKING:
    from sanakit.swap.context import Swap

CHUNK = 32
FLOOR_DB = 1.0  # of PSNR that a tuned VAE may lose


def trained_vae(swap: "Swap") -> VAE:
    """The VAE as it came. Raises SK0104 for a text encoder and for train.parallel fsdp."""
    target = f"train.target {swap.config.train.target}"
    if not isinstance(swap.candidate, VAE):
        raise SanakitError("SK0104", f"{target} needs a VAE")
    if swap.config.train.parallel == "fsdp":
        raise SanakitError("SK0104", f"{target} does not go with train.parallel fsdp", fix="Use ddp.")
    return swap.candidate


def held_images(swap: "Swap") -> Tensor:
    """The held-out images that say how well the VAE does, (N, 3, H, W) in [-1, 1]."""
    held, config = swap.splits[1], swap.config
    return to_images(held.subset(range(min(config.component.num_images, len(held)))).pixels(config.data.size))


class TrainingImages:
    """A step's images, by (seed, step) alone. failures: those that cannot be read; too many stop the run at the next
    step border."""

    def __init__(self, swap: "Swap", options: TrainOptions) -> None:
        train, data = swap.splits[0], swap.config.data
        self.options = options
        self.failures = Failures(train.names, data.max_set_aside)
        self.readable = ReadableImages(train, data.size, self.failures)

    def draw(self, step: int) -> Tensor:
        """This rank's, (B, 3, H, W) in [-1, 1]. Raises SK0402 where many in a row cannot be read."""
        options = self.options
        rows = batch_indices(len(self.readable), options.batch_size, step, options.seed)[own_rows(options)]
        images = to_images(self.readable.pixels(rows.tolist()))
        self.failures.count_drawn(len(rows))
        if self.failures.too_many:
            STOP.ask(DATA_STOP)
        return images


def write_tuned(swap: "Swap", vae: VAE) -> None:
    """RUN/vae, anew: the earlier one goes when the new one is known to read back. Raises SK0604."""
    folder = swap.run.path / "vae"
    aside = folder.with_name(f".vae-{uuid.uuid4().hex}")
    try:
        save_vae(vae, aside, stock=False)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
