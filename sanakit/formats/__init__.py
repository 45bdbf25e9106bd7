"""Model formats of other people, read below the loaders: pipeline folders and native checkpoints."""
