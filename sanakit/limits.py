"""The largest numbers that options and keys of the configuration take: beyond them arithmetic overflows, or a program
fills the memory before it computes anything."""

LARGEST_SEED = 2**63 - 1  # of PyTorch's generators
LARGEST_COUNT = 10**12  # steps, and images of a data set
LARGEST_BATCH = 2**20  # what is held or made in one piece: images of a step, samples, seeds, tokens, ranks
LARGEST_SIDE = 2**14  # pixels
LARGEST_ASPECT = 100.0  # the longer side of an image over the shorter one
LARGEST_SECONDS = 1e9  # 31 years
