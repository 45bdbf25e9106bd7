"""The fixed core: diffusers' SanaTransformer2DModel, its parameter groups and its surgery."""
