"""What an accelerator is asked for, counted on the fake one: layers of models by device, waits of the host, bytes to
the device.

PYTHONPATH=tests:. python experiments/benchmarks/device_counts.py [--json FILE]

Prints a row for each goal: what it was before there was a placement, the goal, and what is measured. Counts, no times:
nothing here depends on how fast the machine is. Needs g++ (tests/fake_accelerator/README.md); takes about two minutes.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_accelerator
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sanakit.assembly import LatentDiffusion
from sanakit.config import make_config
from sanakit.data import load_images
from sanakit.data.dataset import LatentDataset
from sanakit.evaluation.held_out import held_out
from sanakit.flow import EVAL_SIGMAS
from sanakit.placement import choose
from sanakit.sampling import sample_euler, sample_images
from sanakit.strategies import STRATEGIES
from sanakit.swap import stages as engine
from sanakit.swap.context import Swap
from sanakit.swap.plan import build
from sanakit.swap.settings import options_of
from sanakit.training.loop import fit, new_state
from sanakit.training.monitors import make_monitors

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)
IMAGES, PROMPTS, STEPS = 160, 16, (4, 24)


@dataclass(frozen=True)
class Row:
    """A goal. met: whether what was measured reaches it."""

    what: str
    before: str
    goal: str
    measured: str
    met: bool


@contextmanager
def layers_by_device() -> Iterator[Counter[str]]:
    """How many layers of any model were called on each kind of device."""
    calls: Counter[str] = Counter()

    def count(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, LAYERS) and not isinstance(module.weight, FakeTensor):  # an estimate computes nothing
            calls[module.weight.device.type] += 1

    handle = nn.modules.module.register_module_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def images_in(folder: Path) -> Path:
    """A folder of IMAGES embedded images with their captions."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        source = load_images("openclipart")
        for i in range(0, IMAGES * 20, 20):
            (folder / f"{i}.webp").write_bytes(source.images[i])
            (folder / f"{i}.txt").write_text("\n".join(source.captions[i]))
    return folder


def prepared(candidate: dict[str, Any], folder: Path) -> Swap:
    """A swap of the embedded base on a few images, on the fake accelerator; its cache is empty."""
    small = {
        "smoke": {"held_out": 16, "samples": 8},
        "component": {"num_images": 16},
        "train": {"max_steps": 24, "batch_size": 8, "start": "align", "ema_decay": 0.9},
        "data": {"source": str(images_in(folder.parent / "images"))},
    }
    return engine.prepare(make_config(small | candidate), folder, lambda *_: None, placement=choose("auto"))


def operators(what: str, work: Callable[[], Any]) -> Row:
    """Every layer of a model that a piece of work calls must be on the device."""
    with layers_by_device() as calls:
        work()
    there, total = calls[fake_accelerator.NAME], sum(calls.values())
    return Row(f"layers on the device, {what}", "0", "all", f"{there:,} of {total:,}", there == total > 0)


def bytes_of(work: Callable[[], Any]) -> int:
    with fake_accelerator.Trace() as trace:
        work()
    return trace.to_device_bytes


def evaluation_rows(system: LatentDiffusion, data: LatentDataset) -> list[Row]:
    """Bytes to the device beyond the core's weights, of an evaluation and of sampling."""
    weights = bytes_of(lambda: _held(system))
    one, all_ = (
        bytes_of(lambda s=sigmas: held_out(system, data, count=PROMPTS, sigmas=s)) - weights
        for sigmas in (EVAL_SIGMAS[:1], EVAL_SIGMAS)
    )
    prompt = data.prompts(torch.arange(4), torch.ones(4, dtype=torch.long))
    few, many = (bytes_of(lambda n=n: sample_euler(system, prompt, num_steps=n)) - weights for n in STEPS)
    count = len(EVAL_SIGMAS)
    return [
        Row(
            f"bytes to the device, {PROMPTS} prompts at {count} sigmas over those at one",
            f"{count} x",
            "1 x",
            f"{all_ / one:.2f} x ({one:,} bytes)",
            all_ < 1.01 * one,
        ),
        Row(
            f"bytes to the device, {STEPS[1]} Euler steps over {STEPS[0]}",
            f"{STEPS[1] / STEPS[0]:.0f} x",
            "1 x",
            f"{many / few:.2f} x ({few:,} bytes)",
            many < 1.01 * few,
        ),
    ]


def _held(system: LatentDiffusion) -> None:
    with system.placement.holding(system.core, part=system.part):
        pass


def step_row(swap: Swap, system: LatentDiffusion) -> Row:
    """Waits of the host in eight steps with every monitor on, none of them an evaluation."""
    options = options_of(swap.config, STRATEGIES.get("finetune"))
    groups = STRATEGIES.get("finetune").parameter_groups(system.core)
    state = new_state(system.core, groups, options, placement=swap.placement)
    data, base = swap.candidate_data[0], (swap.base_system, swap.base_data[0])
    section = make_config({"monitors": {"num_evaluations": 1}}).monitors
    monitors = make_monitors(section, system, data, base, options)

    def observe(step: int, loss: float, batch: Any, predicted: Any) -> None:
        monitors.observe(batch, predicted)

    fit(system, data, options, state, until=4, after_step=observe)
    with fake_accelerator.Trace("/sanakit/") as trace:
        fit(system, data, options, state, until=12, after_step=observe)
    monitors.close()
    each = trace.syncs / 8
    print(trace, file=sys.stderr)
    return Row("host synchronisations per training step", "2", "<= 1", f"{each:g}", each <= 1)


def rows_of(kind: str, candidate: dict[str, Any], folder: Path) -> list[Row]:
    swap = prepared(candidate, folder)
    named = f"{kind} swap"
    rows = [
        operators(f"encode, {named}", lambda: (swap.base_data, swap.candidate_data)),
        operators(f"stage component, {named}", lambda: engine.component(swap)),
        operators(f"base evaluation, {named}", lambda: (swap.base_held_out, swap.base_blind)),
    ]
    built: list[LatentDiffusion] = []

    def align() -> None:
        data = swap.candidate_data[0], swap.base_data[0]
        for name in ("align-blocks", "align"):
            strategy = STRATEGIES.get(name)
            built.append(build(swap.base_system, swap.candidate, strategy, *data, seed=0, draws=64)[0])

    rows.append(operators(f"alignment, {named}", align))
    rows.append(operators(f"sampling, {named}", lambda: sample_images(swap.base_system, ["a cat"], num_steps=4)))
    if kind == "VAE":
        rows += evaluation_rows(swap.base_system, swap.base_data[1])
        rows.append(step_row(swap, built[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="Also write the rows.")
    arguments = parser.parse_args()
    fake_accelerator.install()
    rows: list[Row] = []
    with fake_accelerator.present(), tempfile.TemporaryDirectory() as folder:
        os.environ["SANAKIT_CACHE"] = str(Path(folder) / "cache")  # empty: everything is encoded
        candidates = {"VAE": {"vae": {"name": "dc-f16c16"}}, "text": {"text_encoder": {"name": "minilm"}}}
        for kind, candidate in candidates.items():
            rows += rows_of(kind, candidate, Path(folder) / kind)
    print("| what | before | goal | measured | met |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.before} | {row.goal} | {row.measured} | {'yes' if row.met else 'NO'} |")
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    sys.exit(not all(row.met for row in rows))


if __name__ == "__main__":
    main()
