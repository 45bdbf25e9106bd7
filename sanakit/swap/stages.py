"""The three stages of a swap: component baseline, small end-to-end, full run.

Each measures, asks its gates, writes its part of validation.json, and is not done again while its inputs' fingerprint
agrees.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.assembly import LatentDiffusion
from sanakit.config import Config
from sanakit.contracts import GateResult, Verdict
from sanakit.data import Pictures, load_pictures
from sanakit.data.cache import LatentDataset, Progress, build_dataset, silent, to_images
from sanakit.errors import SanakitError
from sanakit.evaluate import HeldOut, conditional_gain, held_out
from sanakit.gates import run_gates
from sanakit.hashing import hash_record
from sanakit.run import SCHEMA_VERSION, RunFolder, provenance
from sanakit.sampling import sample_images
from sanakit.swap.base import STRATEGIES
from sanakit.swap.component import measure_text_encoder, measure_vae
from sanakit.swap.figures import save_grid
from sanakit.swap.full import train_full
from sanakit.swap.plan import Base, build, describe_plan, load_base, swap_core
from sanakit.swap.race import Arm, recommend, run_arm
from sanakit.text_encoders import TextEncoder, load_text_encoder
from sanakit.vaes import VAE, load_vae

STAGES = ("component", "smoke", "full")
NUM_SAMPLES = 8
MIN_PICTURES = 64


@dataclass(kw_only=True)
class Swap:
    """Everything that the stages share, loaded when first asked for."""

    config: Config
    run: RunFolder
    progress: Progress = silent
    resume: str = "auto"
    arms: list[Arm] = field(default_factory=list)

    @cached_property
    def base(self) -> Base:
        return load_base(self.config.base)

    @cached_property
    def base_system(self) -> LatentDiffusion:
        system = self.base.system()
        if system.image_size != self.config.data.image_size:
            raise SanakitError(
                "SK0104",
                f"data.image_size is {self.config.data.image_size}, {self.base.name} was trained at "
                f"{system.image_size}",
            )
        return system

    @cached_property
    def candidate(self) -> VAE | TextEncoder:
        config = self.config
        if config.kind == "text_encoder":
            assert config.text_encoder.name
            return load_text_encoder(config.text_encoder.name)
        return load_vae(config.vae.name or self.base.card["vae"], scaling_factor=config.vae.scaling_factor)

    @cached_property
    def pictures(self) -> Pictures:
        found = load_pictures(self.config.data.source, max_set_aside=self.config.data.max_set_aside)
        if len(found) < MIN_PICTURES:
            raise SanakitError(
                "SK0403", f"{found.source} holds {len(found)} pictures, at least {MIN_PICTURES} are needed"
            )
        return found

    @cached_property
    def halves(self) -> tuple[Pictures, Pictures]:
        return self.pictures.split(False), self.pictures.split(True)

    @cached_property
    def test_images(self) -> Tensor:
        count = min(self.config.smoke.held_out, len(self.halves[1]))
        return to_images(self.halves[1].subset(range(count)).pixels(self.config.data.image_size))

    def dataset(self, system: LatentDiffusion, held_out_half: bool) -> LatentDataset:
        pictures = self.halves[held_out_half]
        return build_dataset(
            system.vae,
            system.text_encoder,
            pictures,
            system.image_size,
            mirror=not held_out_half,
            progress=self.progress,
            cache=Path(self.config.data.cache) if self.config.data.cache else None,
        )

    @cached_property
    def base_data(self) -> tuple[LatentDataset, LatentDataset]:
        return self.dataset(self.base_system, False), self.dataset(self.base_system, True)

    @cached_property
    def candidate_data(self) -> tuple[LatentDataset, LatentDataset]:
        is_vae = isinstance(self.candidate, VAE)
        probe = LatentDiffusion(
            vae=self.candidate if is_vae else self.base_system.vae,
            text_encoder=self.base_system.text_encoder if is_vae else self.candidate,
            core=swap_core(self.base_system, self.candidate, self.config.train.seed),
            image_size=self.base_system.image_size,
        )
        return self.dataset(probe, False), self.dataset(probe, True)

    @cached_property
    def base_held_out(self) -> HeldOut:
        return held_out(self.base_system, self.base_data[1], images=self.test_images, count=len(self.test_images))

    def sample_prompts(self) -> list[str]:
        """Half of them of the training pictures, half held out; spread over the data set."""
        train, test = self.halves
        pick = lambda p, n: [p.captions[i][0] for i in np.linspace(0, len(p) - 1, n).astype(int)]
        return pick(train, NUM_SAMPLES // 2) + pick(test, NUM_SAMPLES - NUM_SAMPLES // 2)

    def fingerprint(self, stage: str) -> str:
        return hash_record([stage, self.run.key, self.candidate.fingerprint(), self.pictures.fingerprint])

    def add_figures(self, stage: str, figures: list[dict[str, str]]) -> None:
        kept = [f for f in self.run.read_json("figures.json", []) if f["stage"] != stage]
        self.run.write_json("figures.json", kept + [f | {"stage": stage} for f in figures])


def prepare(config: Config, run_dir: Path | None, progress: Progress) -> Swap:
    """Load what can be refused (base, candidate, pictures) before a run folder is made."""
    swap = Swap(config=config, run=RunFolder(Path(), config), progress=progress)
    for part in (swap.base, swap.candidate, swap.pictures):
        assert part is not None
    swap.run = RunFolder.open(config, run_dir)
    return swap


def component(swap: Swap) -> list[GateResult]:
    """The candidate by itself, next to the base's own component."""
    if isinstance(swap.candidate, VAE):
        measured = measure_vae(
            swap.candidate,
            swap.base_system.vae,
            swap.halves[1],
            swap.config.data.image_size,
            swap.run.path,
            swap.progress,
        )
    else:
        measured = measure_text_encoder(swap.candidate, swap.base_system.text_encoder, swap.halves[1])
    swap.run.write_json("component.json", {"rows": measured.rows, "channels": measured.channels})
    swap.run.append("readings.jsonl", [r.as_dict() | {"stage": "component"} for r in measured.readings])
    swap.add_figures("component", measured.figures)
    return run_gates("component", measured.evidence)


def smoke(swap: Swap) -> list[GateResult]:
    """Race the strategies under one budget against the base."""
    config, base = swap.config, swap.base_system
    names = config.smoke.strategies if config.train.strategy == "auto" else (config.train.strategy,)
    train, test = swap.candidate_data
    base_train, _ = swap.base_data
    core = swap_core(base, swap.candidate, config.train.seed)
    swap.run.write_json(
        "plan.json", describe_plan(base, swap.candidate, core) | {"base": swap.base.name, "candidate": config.candidate}
    )
    swap.arms.clear()
    systems: dict[str, LatentDiffusion] = {}
    budget = config.smoke.budget_steps
    for name in names:
        strategy = STRATEGIES.get(name)
        system, scores = build(base, swap.candidate, strategy, train, base_train, seed=config.train.seed)
        arm = run_arm(
            system,
            strategy,
            train,
            test,
            swap.test_images,
            swap.base_held_out,
            budget=budget,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            on_step=lambda step, name=name: swap.progress(f"racing {name}", step, budget),
        )
        arm.scores = scores
        swap.arms.append(arm)
        systems[name] = system
        rows = [
            {"stage": "smoke", "strategy": name, "step": s, "split": "held_out", "loss": r.loss, "by_sigma": r.by_sigma}
            for s, r in zip(arm.steps, arm.results, strict=True)
        ]
        rows += [
            {"stage": "smoke", "strategy": name, "step": s, "split": "train", "loss": v, "by_sigma": None}
            for s, v in arm.train_loss
        ]
        swap.run.append("metrics.jsonl", rows)

    best = recommend(swap.arms)
    swap.run.write_json(
        "strategy.json",
        {
            "recommended": best.strategy.name,
            "candidates": [arm.as_dict() for arm in swap.arms],
            "budget_steps": budget,
            "base_one_step_error": float(swap.base_held_out.one_step.mean()),
            "base_held_out_loss": swap.base_held_out.loss,
        },
    )
    system = systems[best.strategy.name]
    swap.progress("sampling", 0, 2)
    prompts = swap.sample_prompts()
    figures = []
    for label, source in (("base", base), ("candidate", system)):
        images = sample_images(source, prompts, seed=config.train.seed)
        title = f"{label}, after {budget} steps of {best.strategy.name}" if label == "candidate" else "base"
        figures.append(save_grid(swap.run.path, f"samples-smoke-{label}", images, "samples", title, "; ".join(prompts)))
        swap.progress("sampling", 1 + (label == "candidate"), 2)
    swap.add_figures("smoke", figures)

    by_name = {arm.strategy.name: arm for arm in swap.arms}
    naive, aligned = by_name.get("naive"), by_name.get("finetune") or by_name.get("align")
    # progress is measured from the start without knowledge: naive, where it raced
    start = (naive or best).results[0]
    evidence: dict[str, Any] = {
        "start_losses": start.losses.mean(0).numpy(),
        "end_losses": best.results[-1].losses.mean(0).numpy(),
        "conditional_gain": conditional_gain(system, test, count=len(swap.test_images)).numpy(),
        "one_step": best.results[-1].one_step.numpy(),
        "base_one_step": swap.base_held_out.one_step.numpy(),
        "forecast_arrives": bool(np.isfinite(best.forecast.steps)),
    }
    if naive and aligned:
        evidence["naive_start_losses"] = naive.results[0].losses.mean(0).numpy()
        evidence["aligned_start_losses"] = aligned.results[0].losses.mean(0).numpy()
    return run_gates("smoke", evidence)


def full(swap: Swap) -> list[GateResult]:
    """Train with the recommended strategy, monitors on, and write the model."""
    return run_gates("full", train_full(swap))


RUNNERS: dict[str, Callable[[Swap], list[GateResult]]] = {"component": component, "smoke": smoke, "full": full}


def run_stages(swap: Swap, stages: list[str], *, force: bool = False, resume: str = "auto") -> dict[str, Any]:
    """Run the stages in order; a failed one ends the row unless forced. Returns and writes validation.json."""
    config, run = swap.config, swap.run
    swap.resume = resume
    validation = run.read_json("validation.json") or {"schema_version": SCHEMA_VERSION, "stages": {}}
    validation |= {"base": swap.base.name, "kind": config.kind, "candidate": config.candidate or swap.base.card["vae"]}
    run.write_json(
        "provenance.json",
        provenance(
            {
                "base": {"name": swap.base.name, "card": {k: v for k, v in swap.base.card.items() if k != "curve"}},
                "candidate": {
                    "name": validation["candidate"],
                    "fingerprint": swap.candidate.fingerprint(),
                    "overrides": {"scaling_factor": config.vae.scaling_factor},
                },
                "data": {
                    "source": config.data.source,
                    "fingerprint": swap.pictures.fingerprint,
                    "pictures": len(swap.pictures),
                },
                "seed": config.train.seed,
                "threads": torch.get_num_threads(),
            }
        ),
    )
    run.write_text("ledger.jsonl", "".join(json.dumps(row) + "\n" for row in swap.pictures.ledger))

    for stage in [s for s in STAGES if s in stages]:
        done = validation["stages"].get(stage)
        if done and done.get("fingerprint") == swap.fingerprint(stage):
            swap.progress(f"{stage}: done before", 1, 1)
        else:
            for name in ("metrics.jsonl", "readings.jsonl"):
                run.drop_stage(name, stage)
            start = time.perf_counter()
            gates = RUNNERS[stage](swap)
            validation["stages"][stage] = {
                "verdict": str(Verdict.worst([g.verdict for g in gates])),
                "gates": [g.as_dict() for g in gates],
                "seconds": round(time.perf_counter() - start, 1),
                "fingerprint": swap.fingerprint(stage),
            }
            finish(swap, validation)
        if validation["stages"][stage]["verdict"] == Verdict.FAIL and not force:
            break
    return finish(swap, validation)


def finish(swap: Swap, validation: dict[str, Any]) -> dict[str, Any]:
    stages = validation["stages"]
    validation["stages"] = {name: stages[name] for name in STAGES if name in stages}
    validation["strategy"] = swap.run.read_json("strategy.json", {"recommended": None, "candidates": []})
    verdict = Verdict.worst([Verdict(stage["verdict"]) for stage in stages.values()])
    validation["verdict"] = str(verdict)
    validation["next"] = _next_command(swap, validation, verdict)
    swap.run.write_json("validation.json", validation)
    return validation


def _next_command(swap: Swap, validation: dict[str, Any], verdict: Verdict) -> str:
    failed = [g for s in validation["stages"].values() for g in s["gates"] if g["verdict"] == Verdict.FAIL]
    if failed:
        return f"sanakit explain {failed[0]['code']}"
    pending = [s for s in STAGES if s not in validation["stages"]]
    if pending:
        return f"sanakit validate --stage {pending[0]} --run-dir {swap.run.path}"
    return f"sanakit sample --model {swap.run.path}/model --prompt 'red apple' --out sample.png"
