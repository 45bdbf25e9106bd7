"""Drift monitors in other people's loops. Nothing here is imported by sanakit itself: import the module that you use.

| module | for |
|---|---|
| `sanakit.integrations.watch` | a loop of your own in plain PyTorch |
| `sanakit.integrations.accelerate` | scripts on accelerate, as diffusers' are: W&B, TensorBoard, MLflow |
| `sanakit.integrations.lightning` | a callback of Lightning's Trainer |
"""
