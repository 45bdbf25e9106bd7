"""The whole path at real sizes with no network: Sana-0.6B, DC-AE f32c32 and a FLUX.1-shaped VAE, random weights.

Builds the two pipeline parts at their published configurations, saves them as folders, swaps the VAE, aligns in
closed form, takes one training step, exports, reloads, samples two steps; prints seconds and peak memory of each.
Images and captions are noise: nothing here says anything about quality. The text encoder has Gemma-2-2b's width
(2304) but two layers and a vocabulary of 128, so that the machine holds everything; Sana's own has 26 and 256,000.

    python experiments/benchmarks/real_export.py --out /tmp/real-size
    python experiments/benchmarks/real_export.py --base hub:Efficient-Large-Model/Sana_600M_512px_diffusers \
        --candidate hub:black-forest-labs/FLUX.1-schnell:vae --size 512 --out /tmp/real-size     # with a network
"""

import argparse
import json
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from real_parts import FLUX_1, build_base

from sanakit.adapters import ADAPTERS
from sanakit.alignment import align_input, align_output
from sanakit.assembly import LatentDiffusion
from sanakit.data.dataset import LatentDataset
from sanakit.interop.export import export_pipeline
from sanakit.interop.pipeline import SanakitPipeline
from sanakit.loading import load_base, load_vae
from sanakit.strategies.groups import AlignHead
from sanakit.training.loop import TrainOptions, fit, new_state

ROWS: list[dict] = []


@contextmanager
def measured(label: str):
    start = time.perf_counter()
    yield
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    row = {
        "step": label,
        "seconds": round(time.perf_counter() - start, 1),
        "resident_gb": round(int(status["VmRSS"].split()[0]) / 2**20, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    ROWS.append(row)
    print(
        f"{label:<36} {row['seconds']:7.1f} s   {row['resident_gb']:5.2f} GB now   {row['peak_gb']:5.2f} GB peak",
        flush=True,
    )


def dataset(system: LatentDiffusion, images: torch.Tensor, prompts: list[str]) -> LatentDataset:
    latents = torch.cat([system.vae.encode(image[None]) for image in images])
    count = len(images)
    return LatentDataset(
        names=prompts,
        latents=latents[:, None],
        captions=system.text_encoder.encode(prompts),
        first=torch.arange(count),
        count=torch.ones(count, dtype=torch.long),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", help="path: or hub: of a pipeline; default: built here with random weights")
    parser.add_argument("--candidate", help="path: or hub: of a VAE; default: FLUX.1's configuration, random weights")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    base_name, candidate_name = options.base, options.candidate
    if base_name is None:
        with measured("build and save the base"):
            build_base(options.out / "base", options.size)
        base_name = f"path:{options.out / 'base'}"
    if candidate_name is None:
        with measured("build and save the candidate"):
            AutoencoderKL(**FLUX_1).save_pretrained(options.out / "vae")
        candidate_name = f"path:{options.out / 'vae'}"

    with measured("load the base"):
        base = load_base(base_name).system()
    with measured("load the candidate"):
        candidate = load_vae(candidate_name)
    images = torch.rand(options.images, 3, options.size, options.size) * 2 - 1
    prompts = [f"image {i}" for i in range(options.images)]
    with measured("encode with the base"):
        base_data = dataset(base, images, prompts)
    with measured("swap"):
        linear = ADAPTERS.get("linear-latents")
        core = linear.fit(
            base.core, candidate.spec, base_ratio=base.vae.spec.spatial_compression_ratio, image_size=options.size
        )
    embedding, base.core.transformer_blocks, base.vae = base.core, torch.nn.ModuleList(), candidate  # free what is done
    system = LatentDiffusion(
        vae=candidate, text_encoder=base.text_encoder, core=core, image_size=options.size, flow_shift=base.flow_shift
    )
    with measured("encode with the candidate"):
        data = dataset(system, images, prompts)
    with measured("align input and output, closed form"):
        score = align_input(core, embedding, data.latents[:, 0], base_data.latents[:, 0])
        align_output(system, data, count=options.images, batch_size=2)
    with measured("one training step, interface layers alone"):
        state = new_state(core, AlignHead.parameter_groups(core), TrainOptions(max_steps=1))
        losses: list[float] = []
        fit(
            system,
            data,
            TrainOptions(max_steps=1, batch_size=2),
            state,
            after_step=lambda step, loss, batch, predicted: losses.append(loss),
        )
        del state
    with measured("export"):
        reasons = export_pipeline(
            options.out / "export",
            core=core,
            vae=candidate,
            text_encoder=system.text_encoder,
            image_size=options.size,
            flow_shift=float(system.flow_shift or 1.0),
        )
    del system, base, core, candidate, embedding
    with measured("reload"):
        pipe = SanakitPipeline.from_pretrained(options.out / "export")
    with measured("sample two steps"):
        image = pipe("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    image.save(options.out / "sample.png")
    facts = {
        "parameters": {"core": sum(p.numel() for p in pipe.transformer.parameters())}
        | {name: sum(p.numel() for p in getattr(pipe, name).parameters()) for name in ("vae", "text_encoder")},
        **score,
        "loss": losses[0],
        "reasons": reasons,
        "image": image.size,
        "rows": ROWS,
    }
    (options.out / "figures.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({k: v for k, v in facts.items() if k != "rows"}, indent=1))


if __name__ == "__main__":
    main()
