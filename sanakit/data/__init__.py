"""Pictures with captions: the embedded world, any folder, any manifest."""

from sanakit.data.base import DATASETS, Pictures, load_pictures

__all__ = ["DATASETS", "Pictures", "load_pictures"]
