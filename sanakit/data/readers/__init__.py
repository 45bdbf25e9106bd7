"""One file a format: what stands on disk or behind an address, as a table of images and captions."""
