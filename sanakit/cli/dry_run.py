"""--dry-run: what every stage will need, as a table or as JSON; exit code 3 where it cannot fit."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanakit.cli.options import place
from sanakit.cli.output import print_json
from sanakit.errors import SanakitError

if TYPE_CHECKING:
    from sanakit.config import Config


def print_needs(
    config: "Config",
    stages: Sequence[str],
    *,
    device: str,
    world_size: int | None,
    device_memory: str | None,
    seconds_per_step: float | None,
    num_images: int | None,
    seconds_per_image: float | None,
    run_dir: Path | None,
    as_json: bool,
) -> None:
    """Print the needs of the stages. Raises SK0907 after that, where a phase does not fit the device."""
    from sanakit.needs import needs_of, require_fit
    from sanakit.needs.fit import assumed_from, parse_size

    memory, ranks = None if device_memory is None else parse_size(device_memory), world_size or 1

    def needed(other: "Config") -> Any:
        return needs_of(other, stages, assumed(other), world_size=ranks, num_images=num_images)

    def assumed(other: "Config") -> Any:
        return assumed_from(other, place(device, other), memory)

    needs, known = needed(config), assumed(config)
    seconds, source = seconds_per_step, "given"
    if seconds is None:
        seconds, source = measured_seconds(run_dir, needs.train["strategy"], ranks)
    per_image, image_source = seconds_per_image, "given"
    if per_image is None and num_images is None:  # the data are at hand
        per_image, image_source = tried_seconds(needs.config), "tried here"
    document = needs.as_dict(seconds, per_image) | {"device_memory": known.memory, "device_room": known.room}
    document |= {
        "seconds_from": source if seconds is not None else None,
        "seconds_per_image_from": image_source if per_image is not None else None,
        "fits": needs.peak <= (known.room or needs.peak),
    }
    if as_json:
        print_json({"config": needs.config.model_dump(mode="json"), "needs": document})
    else:
        sys.stdout.write(table_of(document))
    require_fit(needs, known, needed)


def needs_options(
    dry_run: bool,
    world_size: int | None,
    device_memory: str | None,
    seconds_per_step: float | None,
    num_images: int | None,
    seconds_per_image: float | None = None,
) -> dict[str, Any] | None:
    """What `print_needs` is asked; None without --dry-run. Raises SK0104 for an option of the dry run without it."""
    options = {
        "world_size": world_size,
        "device_memory": device_memory,
        "seconds_per_step": seconds_per_step,
        "num_images": num_images,
        "seconds_per_image": seconds_per_image,
    }
    for name, value in options.items():
        if value is not None and not dry_run:
            starts = "; torchrun --nproc_per_node starts ranks" if name == "world_size" else ""
            raise SanakitError("SK0104", f"--{name.replace('_', '-')} belongs to --dry-run{starts}")
    return options if dry_run else None


def tried_seconds(config: "Config") -> float:
    """Of reading and decoding an image of the data, by a rank on this machine."""
    from sanakit.needs.reading import read_data, seconds_per_image

    return seconds_per_image(read_data(config), config.data.size)


def measured_seconds(run_dir: Path | None, strategy: str, ranks: int) -> tuple[float | None, str]:
    """Of a step of the strategy on so many ranks, from the run's own race, and where it is from; None where it has
    none. A step on another number of ranks is taken to be longer in proportion."""
    folder = run_dir or Path()
    try:
        raced = json.loads((folder / "strategy.json").read_text(encoding="utf-8"))
        seconds = [
            c["seconds_per_step"] for c in raced["candidates"] if c["name"] == strategy and c["seconds_per_step"]
        ]
        known = json.loads((folder / "provenance.json").read_text(encoding="utf-8")) if seconds else {}
        then = int(known.get("ranks", 1))
        each = float(seconds[0]) * then / ranks if seconds else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, ""
    return each, "measured" if then == ranks else f"measured on {then} rank(s), {ranks} taken to share it evenly"


def table_of(needs: dict[str, Any]) -> str:
    """The needs in lines: a row a phase, then host, disk and how a step is cut."""
    lines = [f"{'stage':<10} {'phase':<44} {'device':>9} {'at once':>8} {'steps':>7} {'hours':>7}  of which"]
    for stage, need in needs["stages"].items():
        for row in need["phases"]:
            parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in row["device"].items())
            steps = f"{row['steps']:,}" if row["steps"] else ""
            hours = "" if row["hours"] is None else f"{row['hours']:.2f}"
            lines.append(
                f"{stage:<10} {row['name']:<44} {gigabytes(row['peak']):>9} {row['at_once']:>8} {steps:>7} {hours:>7}  "
                f"{parts}"
            )
        hours = "" if need["hours"] is None else f"{need['hours']:.2f}"
        steps = f"{need['steps']:,}" if need["steps"] else ""
        lines.append(
            f"{stage:<10} {'the most, and the sum':<44} {gigabytes(need['device']):>9} {'':>8} {steps:>7} {hours:>7}"
        )
    for label in ("host", "disk"):
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in needs[label].items() if name != "total")
        lines.append(f"{label:<10} {gigabytes(needs[label]['total'])}: {parts}")
    train = needs["train"]
    checkpointing = "with" if train["gradient_checkpointing"] else "without"
    lines.append(
        f"{'training':<10} {train['strategy']}, batch {train['batch_size']} in micro-batches of "
        f"{train['micro_batch']}, {train['precision']}, {checkpointing} gradient checkpointing, "
        f"{needs['world_size']} rank(s)"
    )
    if needs["device_memory"]:
        lines.append(
            f"{'device':<10} {gigabytes(needs['device'])} of {gigabytes(needs['device_room'])} room "
            f"({gigabytes(needs['device_memory'])} less what driver, kernels and allocator take)"
        )
    if needs["seconds_per_step"] is None:
        lines.append(f"{'time':<10} unknown: give --seconds-per-step, or a --run-dir whose race measured it")
    else:
        lines.append(
            f"{'time':<10} {needs['seconds_per_step']:g} s a step ({needs['seconds_from']}); other phases at as many "
            "operations a second"
        )
    if needs["seconds_per_image"] is None:
        lines.append(f"{'images':<10} give --seconds-per-image to know what reading and decoding them takes")
    else:
        lines.append(
            f"{'images':<10} {needs['seconds_per_image']:.3g} s to read and decode one by a rank "
            f"({needs['seconds_per_image_from']}), beside the device"
        )
    lines += [f"{'note':<10} {note}" for note in needs["notes"]]
    return "\n".join(lines) + "\n"


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 5e7 else f"{size / 1e6:,.1f} MB"
