"""One file a statistic: a pure function of two matrices, registered by name."""
