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


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("swap", "stages"),
    [
        (["swap-vae", "--candidate", "kl-f8c4"], "component,smoke"),
        (["swap-text-encoder", "--candidate", "minilm"], "component"),
    ],
    ids=["vae", "text"],
)
def test_two_processes_validate_as_one_does_gate_by_gate(small_world, tmp_path, swap, stages):
    sets = ["train.batch_size=4", "train.warmup=2", "smoke.held_out=16", "evaluate.num_prompts=0"]
    asked = [*swap, "--base", small_world["base"], "--data", small_world["data"]["source"], "--stages", stages]
    asked += ["--force", "--budget-steps", "8", *(word for value in sets for word in ("--set", value))]
    told = []
    for name, launcher in {"alone": [], "together": ["-m", *RECIPES["torchrun"]]}.items():
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["SANAKIT_CACHE"] = str(tmp_path / f"cache of {name}")  # else the second one reads the first one's
        command = [*launcher, str(Path(sys.executable).with_name("sanakit")), *asked, "--run-dir", str(tmp_path / name)]
        result = subprocess.run(
            [sys.executable, *command],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=900, check=False,
        )  # fmt: skip
        assert (tmp_path / name / "validation.json").is_file(), f"{name}: {result.stderr[-3000:]}"
        found = json.loads((tmp_path / name / "validation.json").read_text())["stages"]
        assert list(found) == stages.split(","), f"{name}: {result.stderr[-3000:]}"
        gates = [gate for stage in found.values() for gate in stage["gates"]]
        told.append([(gate["gate"], gate["verdict"], gate["value"], gate["ci_low"], gate["ci_high"]) for gate in gates])
    assert told[0] == told[1] and len(told[0]) >= 11
