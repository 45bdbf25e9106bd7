"""The tables of docs/real-sana.md: what a swap of Sana needs by stage on two cards, from the dry run.

    python experiments/benchmarks/needs_table.py [--print]

Nothing is downloaded: Sana's and the candidates' published configurations are recorded. Operations are counted, hours
are theirs at the rate that the table names; with the seconds a step that you measured, `--dry-run --seconds-per-step`
gives your own.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from sanakit.config import make_config  # noqa: E402
from sanakit.needs import Assumed, needs_of  # noqa: E402

PAGE = ROOT / "docs" / "real-sana.md"
BEGIN, END = "<!-- needs: begin -->\n", "<!-- needs: end -->\n"
OWNER = "hub:Efficient-Large-Model"
IMAGES = 10_000
RATE = 100e12  # operations a second that the hours are stated at
STAGES = ["component", "smoke", "full"]
CARDS = (24, 80)  # GB
SWAPS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("0.6B, 512 px, VAE", f"{OWNER}/Sana_600M_512px_diffusers", 512, {"vae": {"name": "flux.1-vae"}}),
    ("1.6B, 1024 px, VAE", f"{OWNER}/Sana_1600M_1024px_diffusers", 1024, {"vae": {"name": "flux.1-vae"}}),
    ("0.6B, 512 px, text", f"{OWNER}/Sana_600M_512px_diffusers", 512, {"text_encoder": {"name": "qwen3-0.6b"}}),
]


def rows_of(label: str, base: str, size: int, candidate: dict[str, Any], card: int) -> list[str]:
    values = {"base": base, "data": {"image_size": size}, "train": {"batch_size": 32, "max_steps": 2000}}
    values["smoke"] = {"budget_steps": 100}
    config = make_config(values | candidate)
    assumed = Assumed(memory=card * 10**9)
    needs = needs_of(config, STAGES, assumed, num_images=IMAGES)
    told, rows = needs.as_dict(), []
    for stage in STAGES:
        phases = told["stages"][stage]["phases"]
        worst = max(phases, key=lambda row: row["peak"])
        operations = sum(row["flops"] for row in phases)
        fits = "" if worst["peak"] <= assumed.room else " (does not fit)"
        rows.append(
            f"| {label} | {card} GB | {stage} | {worst['peak'] / 1e9:.1f} GB: {worst['name']}{fits} | "
            f"{operations / 1e15:,.0f} | {operations / RATE / 3600:.1f} |"
        )
    train = told["train"]
    checkpointing = "checkpointing" if train["gradient_checkpointing"] else "no checkpointing"
    rows.append(
        f"| {label} | {card} GB | all | host {told['host']['total'] / 1e9:.0f} GB, disk "
        f"{told['disk']['total'] / 1e9:.0f} GB; micro-batch {train['micro_batch']}, {checkpointing} | | |"
    )
    return rows


def table() -> str:
    lines = [
        "| base, image size, swap | card | stage | most on the device: phase | PFLOP | "
        f"hours at {RATE / 1e12:.0f} TFLOP/s |",
        "|---|---|---|---|---|---|",
    ]
    for swap in SWAPS:
        for card in CARDS:
            lines += rows_of(*swap, card)
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the table instead of writing the page")
    if parser.parse_args().print:
        print(table())
        return
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
