"""The training loop and what belongs to it: batches, optimisers, checkpoints, monitors, trackers."""
