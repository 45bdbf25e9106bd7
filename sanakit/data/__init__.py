"""Images with captions: the embedded world, any folder, any manifest."""

from sanakit.data.load import load_images
from sanakit.data.table import DATASETS, ImageDataset

__all__ = ["DATASETS", "ImageDataset", "load_images"]
