"""Metrics of what a system draws, one file a metric; `base.py` says what a metric is."""
