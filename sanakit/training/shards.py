"""The sharded part of a checkpoint: written by every rank through torch.distributed.checkpoint, read on any number."""

import errno
from pathlib import Path

import torch
from torch import Tensor, nn

from sanakit.data.store import file_hash
from sanakit.distributed import rank, world_size
from sanakit.files import flush

SHARDED = "sharded"  # folder of the sharded tensors in a checkpoint


def write_shards(folder: Path, shards: dict[str, Tensor]) -> dict[str, str]:
    """Every rank's part as safetensors by torch.distributed.checkpoint, flushed; the hashes of all parts by name."""
    import torch.distributed as group
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(shards, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except dcp.api.CheckpointException as error:
        raise OSError(errno.EIO, str(error)) from error
    hashes = {}
    for path in sorted(folder.glob(f"shard-{rank() + 1:05d}-*")):
        flush(path)
        hashes[f"{folder.name}/{path.name}"] = file_hash(path)
    every: list[dict[str, str]] = [{}] * world_size()
    group.all_gather_object(every, hashes)
    return {name: digest for part in every for name, digest in part.items()}


def read_shards(folder: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors, sharded or whole, on any number of ranks."""
    import torch.distributed as group
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    different = reader.read_metadata().state_dict_metadata.keys() ^ targets.keys()
    if different:
        raise KeyError(f"sharded tensors {sorted(different)[:3]}")
    dcp.load(targets, storage_reader=reader, no_dist=not group.is_initialized())


def shard_moments(core: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Room for the optimiser's sharded tensors, each as its parameter lies."""
    import torch.distributed.checkpoint as dcp

    parameters = dict(core.named_parameters())
    stored = dcp.HuggingFaceStorageReader(str(folder / SHARDED)).read_metadata().state_dict_metadata
    keys = [key.removeprefix("optimizer/") for key in stored if key.startswith("optimizer/")]
    return {key: torch.zeros_like(parameters[key.rsplit(":", 1)[0]], requires_grad=False) for key in keys}


def sharded_ema(core: nn.Module, ema: dict[str, Tensor]) -> dict[str, Tensor]:
    """The average with the core's own sharding; views of the same memory."""
    out = {}
    for name, value in core.state_dict().items():
        average = ema[name]
        if hasattr(value, "device_mesh"):
            from torch.distributed.tensor import DTensor

            average = DTensor.from_local(
                average, value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
            )
        out[name] = average
    return out
