"""Two ranks over gloo: the same pictures, the same course and the same checkpoints as one. Run by torchrun it is a rank.

torchrun --standalone --nproc_per_node=2 tests/test_distributed.py OUT
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanakit.assembly import LatentDiffusion
from sanakit.checkpoint import latest, load_checkpoint, optimizer_slots, read_manifest, save_checkpoint
from sanakit.core.dit import new_core, parameters_by_group
from sanakit.data.cache import LatentDataset
from sanakit.distributed import rank
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.train import TrainOptions, fit, new_state
from sanakit.vaes import VAES

STEPS, MORE = 5, 3
CORE = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 4,
    "patch_size": 1,
}


def options(**changes):
    return TrainOptions(max_steps=50, batch_size=8, warmup=1, ema_decay=0.9, learning_rate=1e-3, **changes)


def system_and_data():
    torch.manual_seed(0)
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    core = new_core(CORE, seed=0)
    torch.nn.init.normal_(core.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    system = LatentDiffusion(vae=VAES.get("pca-f8c4").tiny(), text_encoder=encoder, core=core, image_size=32)
    generator = torch.Generator().manual_seed(0)
    data = LatentDataset(
        names=[str(i) for i in range(36)],  # an epoch of four and a half steps
        latents=torch.randn(36, 2, 4, 4, 4, generator=generator),
        captions=encoder.encode([" ".join("abcdefgh"[(i + k) % 8] for k in range(2 + i % 3)) for i in range(36)]),
        first=torch.arange(36),
        count=torch.ones(36, dtype=torch.long),
    )
    return system, data


def groups_of(core):
    return [{"params": p, "scale": 1.0} for p in parameters_by_group(core).values()]


def run(folder, steps, chosen, resume=None):
    """Train and save; the rows of every step that this rank saw, and the losses."""
    system, data = system_and_data()
    state = new_state(system.core, groups_of(system.core), chosen)
    assert (chosen.parallel == "fsdp") == all(hasattr(p, "full_tensor") for p in system.core.parameters())
    if resume:
        load_checkpoint(resume, system.core, state, {})
    trace, losses = [], []

    def after_step(step, loss, batch, predicted):
        trace.append(batch.indices.tolist())
        losses.append(loss)

    fit(system, data, chosen, state, until=state.step + steps, after_step=after_step)
    save_checkpoint(folder, system.core, state, {})
    (folder / f"rank-{rank()}.json").write_text(json.dumps({"trace": trace, "losses": losses}))
    return system.core


def tensors(folder):
    """What a checkpoint holds, read on one rank, whoever wrote it."""
    system, _ = system_and_data()
    state = new_state(system.core, groups_of(system.core), options())
    load_checkpoint(latest(folder), system.core, state, {})
    parts = {"core": system.core.state_dict(), "ema": state.ema}
    parts |= {f"optimizer/{name}": slots for name, slots in optimizer_slots(system.core, state).items()}
    return {f"{part}/{key}": value for part, own in parts.items() for key, value in own.items()}


def facts(folder, number=0):
    return json.loads((folder / f"rank-{number}.json").read_text())


def assert_same_course(one, two):
    assert facts(two)["losses"] == pytest.approx(facts(one)["losses"], rel=1e-5)
    a, b = tensors(one), tensors(two)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-4, atol=2e-5), (key, (a[key] - b[key]).abs().max())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """ddp, accumulated and fsdp on two ranks; one on one rank; resumes across the number of ranks."""
    out = tmp_path_factory.mktemp("ranks")
    for name in ("one", "one-more", "ddp", "accumulated", "fsdp", "fsdp-more", "fsdp-on-one"):
        (out / name).mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(out)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    run(out / "one", STEPS, options())
    run(out / "one-more", MORE, options(), resume=latest(out / "one"))
    return out


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "accumulated", "fsdp"])
def test_two_ranks_take_the_course_of_one_with_the_same_global_batch(folders, name):
    assert_same_course(folders / "one", folders / name)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_ranks_share_every_batch_without_loss_or_repetition(folders, name):
    parts = [facts(folders / name, number)["trace"] for number in (0, 1)]
    together = [a + b for a, b in zip(*parts, strict=True)]
    assert together == facts(folders / "one")["trace"]
    assert sorted([row for batch in together for row in batch][:36]) == list(range(36))


@pytest.mark.distributed
def test_a_sharded_checkpoint_is_written_by_its_ranks_and_goes_on_with_one(folders):
    parts = sorted(p.name for p in (latest(folders / "fsdp") / "sharded").iterdir())
    assert len(parts) == 2 and all(p.endswith(".safetensors") for p in parts)
    assert sum(name.startswith("sharded/") for name in read_manifest(latest(folders / "fsdp"))["hashes"]) == 2
    run(folders / "fsdp-on-one", MORE, options(), resume=latest(folders / "fsdp"))
    assert_same_course(folders / "one-more", folders / "fsdp-on-one")
    assert_same_course(folders / "one-more", folders / "fsdp-more")


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    run(base / "ddp", STEPS, options())
    run(base / "accumulated", STEPS, options(accumulate=2))
    run(base / "fsdp", STEPS, options(parallel="fsdp"))
    run(base / "fsdp-more", MORE, options(parallel="fsdp"), resume=latest(base / "fsdp"))
    torch.distributed.destroy_process_group()
