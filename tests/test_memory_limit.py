"""Training from shards under a limit of memory that the images alone exceed."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

IMAGES, SIDE = 600, 256
LIMIT = 64 << 20  # bytes beyond what libraries and system take

SCRIPT = """
import json, resource, sys, threading
from pathlib import Path

import torch
from sanakit.assembly import LatentDiffusion
from sanakit.core.dit import new_core
from sanakit.data import load_images
from sanakit.data.dataset import build_dataset
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.training.loop import TrainOptions, fit, new_state
from sanakit.vaes import VAES

def data_bytes():
    return int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024

source, limit, core = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
threading.stack_size(1 << 20)
parts = {"vae": VAES.get("kl-f8c4").tiny(), "text_encoder": TEXT_ENCODERS.get("minilm").tiny()}
core["in_channels"] = core["out_channels"] = parts["vae"].spec.latent_channels
core["caption_channels"] = parts["text_encoder"].spec.embed_dim
system = LatentDiffusion(**parts, core=new_core(core, seed=0), image_size=32)
options = TrainOptions(max_steps=4, batch_size=8, warmup=0)
state = new_state(system.core, [{"params": list(system.core.parameters()), "scale": 1.0, "name": "core"}], options)
resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + limit,) * 2)
images = load_images(source)
try:
    together = images.images[:]
except MemoryError:
    together = []
data = build_dataset(
    system.vae, system.text_encoder, images.split(False), 32, mirror=True, live_latents=True, live_embeddings=True
)
losses = []
fit(system, data, options, state, after_step=lambda step, loss, *rest: losses.append(loss))
print(json.dumps({"images": len(images), "together": len(together), "losses": losses}))
"""
CORE = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8, "cross_attention_dim": 16, "sample_size": 4, "patch_size": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's data is Linux's")
def test_training_from_shards_stays_below_a_limit_that_the_images_exceed(tmp_path):
    rng, total = np.random.default_rng(0), 0
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(shard * IMAGES // 3, (shard + 1) * IMAGES // 3):
                buffer, pixels = io.BytesIO(), np.full((SIDE, SIDE, 3), i % 256, np.uint8)
                pixels[0] = rng.integers(256, size=(SIDE, 3))
                Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
                for name, content in ((f"{i:04d}.png", buffer.getvalue()), (f"{i:04d}.txt", f"image {i}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                total += buffer.tell()
    assert total > 1.7 * LIMIT
    environment = os.environ | {
        "SANAKIT_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    arguments = [f"{tmp_path}/{{0..2}}.tar", str(LIMIT), json.dumps(CORE)]
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert told.returncode == 0, told.stderr[-3000:]
    result = json.loads(told.stdout.splitlines()[-1])
    assert result["images"] == IMAGES and len(result["losses"]) == 4
    assert result["together"] == 0  # the limit is real: all images at once do not fit
