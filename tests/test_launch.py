"""The recipes of docs/scale.md for several processes, run as they stand there: two gloo ranks on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

RECIPES = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate launch": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_what_one_does_by_every_launcher(small_world, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(small_world))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CUDA_VISIBLE_DEVICES": "",
    }
    weights = {}
    for name, launcher in ({"alone": []} | RECIPES | {"alone again": []}).items():
        folder = tmp_path / name.replace(" ", "-")
        command = [
            str(Path(sys.executable).with_name("sanakit")),
            "train",
            "--config",
            str(tmp_path / "run.yaml"),
            "--run-dir",
            str(folder),
        ]
        module = ["-m", *launcher] if launcher else []
        sets = [] if name != "alone again" else ["--set", "train.seed=1"]
        result = subprocess.run(
            [sys.executable, *module, *command, *sets],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=900, check=False,
        )  # fmt: skip
        assert (folder / "validation.json").is_file(), f"{name}: {result.stderr[-3000:]}"
        assert json.loads((folder / "validation.json").read_text())["stages"]["full"]["gates"], name
        assert result.stderr.splitlines().count("training finetune (24)") == 1, name  # rank 0 alone speaks
        ranks = sorted(path.name for path in (folder / ".ranks").glob("*.json"))
        assert ranks == (["0.json", "1.json"] if launcher else []), name
        weights[name] = load_file(folder / "model" / "diffusion_pytorch_model.safetensors")

    def apart(a, b):
        return max(float((weights[a][k] - weights[b][k]).abs().max()) for k in weights[a])

    for name in RECIPES:
        assert apart("alone", name) < 1e-4 < apart("alone", "alone again"), name
        assert weights[name].keys() == weights["alone"].keys()
    assert all(torch.isfinite(value).all() for value in weights["torchrun"].values())
