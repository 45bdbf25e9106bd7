"""What images cost before a step and beside the encoder: read and decoded once, or in every epoch."""

import time

import numpy as np

from sanakit.config import Config
from sanakit.data import load_images
from sanakit.data.cache import decoders, read_ahead
from sanakit.data.decode import decode_rows
from sanakit.data.screen import SAMPLE
from sanakit.data.table import ImageDataset
from sanakit.needs.records import Phase

TRIED = 128  # images that are decoded to tell what one takes
AT_ONCE = 8


def read_data(config: Config) -> ImageDataset:
    """The data as the run reads them: what it sets aside is set aside here too."""
    data = config.data
    return load_images(data.source, max_set_aside=data.max_set_aside, fit=data.fit, captions=data.captions)


def screening(images: int, stage: str) -> Phase:
    """The sample that is decoded before anything else; of a small data set every image."""
    return Phase(stage=stage, name="screen images", device={}, decoded=min(images, 2 * SAMPLE))


def seconds_per_image(images: ImageDataset, size: int) -> float:
    """Of reading and decoding one image of the data to `size`, by the threads of one rank, on this machine now."""
    chosen = np.linspace(0, len(images) - 1, min(TRIED, len(images))).astype(int).tolist()
    chunks = [chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)]
    begun = time.perf_counter()
    for _ in read_ahead(chunks, lambda chunk: decode_rows(images.subset(chunk), size), decoders()):
        pass
    return (time.perf_counter() - begun) / len(chosen)
