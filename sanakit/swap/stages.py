"""The three stages of a swap: component baseline, small end-to-end, full run.

Each measures, asks its gates, writes its part of validation.json, and is not done again while its inputs' fingerprint
agrees.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sanakit.alignment import feature_distance
from sanakit.assembly import LatentDiffusion
from sanakit.contracts import GateResult, Verdict
from sanakit.data.cache import to_images
from sanakit.errors import SanakitError
from sanakit.evaluate import averaged, conditional_gain
from sanakit.gates import run_gates
from sanakit.hashing import hash_record
from sanakit.run import SCHEMA_VERSION, provenance
from sanakit.sampling import sample_images
from sanakit.swap.base import STRATEGIES, Strategy
from sanakit.swap.component import measure_text_encoder, measure_vae
from sanakit.swap.context import Swap, prepare
from sanakit.swap.diffusability import FEWEST, compare_panels
from sanakit.swap.distill import Teacher
from sanakit.swap.figures import save_grid
from sanakit.swap.forecast import steps_that_tell
from sanakit.swap.full import train_full
from sanakit.swap.plan import applicable, describe_plan, mask_remark, swap_core
from sanakit.swap.probe_training import base_evidence, course_evidence, movement_evidence, sample_evidence
from sanakit.swap.race import Arm, Course, at_best_rate, race, recommend
from sanakit.swap.start import build_start, choose_start, start_needs, start_remark, starting_at, tokens_of
from sanakit.swap.tune_vae import tune_vae
from sanakit.vaes import VAE

__all__ = ["STAGES", "prepare", "run_stages"]

PANEL = 128  # pictures of the diffusability panel
STAGES = ("component", "smoke", "full")
DISTANCE_SIGMAS = (0.1, 0.5, 0.9)


def component(swap: Swap) -> list[GateResult]:
    """The candidate by itself, next to the base's own component."""
    held_out = swap.halves[1]
    judges = held_out.subset(range(min(swap.config.component.pictures, len(held_out))))
    if isinstance(swap.candidate, VAE):
        measured = measure_vae(
            swap.candidate,
            None if swap.bare else swap.base_system.vae,
            judges,
            swap.config.data.image_size,
            swap.run.path,
            swap.progress,
        )
    else:
        measured = measure_text_encoder(
            swap.candidate, None if swap.bare else swap.base_system.text_encoder, judges, swap.run.path
        )
        if not measured.evidence["nonfinite_embeddings"] and swap.layers:
            swap.run.write_json("layers.json", swap.layers)
    pictures = held_out.subset(range(min(PANEL, len(held_out))))
    finite = not measured.evidence.get(
        "nonfinite_latents", 1
    )  # absent for a text encoder, or where the geometry is wrong
    if isinstance(swap.candidate, VAE) and finite and len(pictures) >= FEWEST:
        images = to_images(pictures.pixels(swap.config.data.image_size))
        measured.rows += compare_panels(None if swap.bare else swap.base_system.vae, swap.candidate, images)
    kept = ("rows", "channels", "curves", "similarity", "prompts")
    swap.run.write_json("component.json", {name: getattr(measured, name) for name in kept})
    swap.run.append("readings.jsonl", [r.as_dict() | {"stage": "component"} for r in measured.readings])
    swap.add_figures("component", measured.figures)
    return run_gates("component", measured.evidence, swap.policy)


def smoke(swap: Swap) -> list[GateResult]:
    """Race the strategies under one budget against the base."""
    config, base, candidate = swap.config, swap.base_system, swap.candidate
    names = [config.train.strategy]
    if config.train.strategy == "auto":
        names = applicable(config.smoke.strategies, base, candidate)
    train, test = swap.candidate_data
    base_train, _ = swap.base_data
    core = swap_core(base, candidate, config.train.seed, config.adapter.name)
    plan = describe_plan(base, candidate, core, names) | {"base": swap.base.name, "candidate": config.candidate}
    plan["notes"] += [remark for remark in [mask_remark(base, swap.base_data[1])] if remark]
    shape = candidate.spec.shape(base.image_size, base.image_size) if isinstance(candidate, VAE) else base.latent_shape
    needs = start_needs(config, core, shape, [STRATEGIES.get(name) for name in names])
    plan |= needs
    plan["notes"] += [remark for remark in [start_remark(base.num_tokens, tokens_of(core, shape), needs)] if remark]
    swap.run.write_json("plan.json", plan)

    budget, arms = config.smoke.budget_steps, []
    starts: dict[str, tuple[LatentDiffusion, dict[str, Any]]] = {}  # strategies that start alike are built once

    def started(strategy: type[Strategy]) -> tuple[LatentDiffusion, dict[str, Any]]:
        if strategy.initialise not in starts:
            system, scores = build_start(swap, strategy)
            starts[strategy.initialise] = system, scores | {"feature_distance": _distance(swap, system)}
        return starts[strategy.initialise]

    begin = choose_start(swap, [STRATEGIES.get(name) for name in names], started)
    course: Course | None = None
    for number, name in enumerate(names):
        swap.progress(f"preparing {name}", number, len(names))
        strategy = starting_at(STRATEGIES.get(name), begin)
        start, scores = started(strategy)
        course = course or Course(
            data=train,
            test=test,
            target=swap.target,
            count=swap.num_held_out,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            teacher=Teacher(base=base, data=base_train, seed=config.train.seed),
        )
        alike = next((arm for arm in arms if arm.strategy.initialise == strategy.initialise), None)
        own = config.train.learning_rate
        arm = at_best_rate(
            course,
            strategy,
            start,
            budget=budget,
            rates=(own / strategy.learning_rate,) if own else config.smoke.rates,
            alike=alike,
            on_step=lambda step, name=name: swap.progress(f"rates of {name}", step, budget // 4),  # type: ignore[misc]
        )
        arm.scores |= scores | {"start": strategy.initialise}
        arms.append(arm)
    assert course is not None
    on_step = lambda arm, step: swap.progress(f"racing {arm.strategy.name}", step, budget)
    finalists = race(course, arms, budget=budget, on_step=on_step)

    best = recommend(arms)
    assert best.forecast is not None
    more = steps_that_tell(best.forecast, budget)
    swap.run.append("metrics.jsonl", [row for arm in arms for row in _rows(arm)])
    swap.run.write_json(
        "strategy.json",
        {
            "recommended": best.strategy.name,
            "conclusive": best.forecast.conclusive,
            "candidates": [arm.as_dict() | {"finalist": arm in finalists} for arm in arms],
            "budget_steps": budget,
            "steps_that_tell": more,
            "target": {"measure": swap.target.measure, "unit": swap.target.unit, "tolerance": swap.target.tolerance},
            "base_held_out_loss": swap.base_held_out.loss,
        },
    )
    with averaged(best.system.core, best.average):
        figures = _sample_figures(swap, best, budget)
        gain = conditional_gain(best.system, test, count=swap.num_held_out)
        wiring = sample_evidence(best.system, test, swap.sample_prompts(), config.train.seed)
    swap.add_figures("smoke", figures)
    wiring |= base_evidence(base, swap.base_data[1], swap.base_held_out)
    wiring |= course_evidence(best.system, train, best.options)
    if best.state:
        wiring |= movement_evidence(starts[best.strategy.initialise][0].core, best.system.core, best.average)

    by_name = {arm.strategy.name: arm for arm in arms}
    naive, aligned = by_name.get("naive"), by_name.get("finetune") or by_name.get("align")
    # progress is measured from the start without knowledge: naive, where it raced
    start = (naive or best).results[0]
    evidence: dict[str, Any] = {
        "start_losses": start.losses.mean(0).numpy(),
        "start_at_base": swap.target.reached(start),
        "end_losses": best.results[-1].losses.mean(0).numpy(),
        "conditional_gain": gain.numpy(),
        "relative_error": best.errors[-1],
        "base_relative_error": swap.target.base,
        "steps_that_tell": more,
        "forecast_arrives": bool(np.isfinite(best.forecast.steps)),
    } | wiring
    if naive and aligned:
        evidence["naive_start_losses"] = naive.results[0].losses.mean(0).numpy()
        evidence["aligned_start_losses"] = aligned.results[0].losses.mean(0).numpy()
    return run_gates("smoke", evidence, swap.policy)


def _distance(swap: Swap, system: LatentDiffusion) -> dict[str, list[float]]:
    """Feature distance to the base by sigma and depth on held-out pictures, before any step."""
    own, theirs = swap.candidate_data[1], swap.base_data[1]
    rows = torch.arange(min(64, len(own)))
    first = torch.ones_like(rows)
    latents = own.latents[rows, 0], theirs.latents[rows, 0]
    prompts = own.prompts(rows, first), theirs.prompts(rows, first)
    distances = {
        f"{sigma:g}": feature_distance(system, swap.base_system, *latents, *prompts, sigma=sigma)
        for sigma in DISTANCE_SIGMAS
    }
    return {sigma: [round(value, 5) for value in found] for sigma, found in distances.items()}


def _rows(arm: Arm) -> list[dict[str, Any]]:
    row = {"stage": "smoke", "strategy": arm.strategy.name}
    return [
        row | {"step": s, "split": "held_out", "loss": r.loss, "by_sigma": r.by_sigma}
        for s, r in zip(arm.steps, arm.results, strict=True)
    ] + [row | {"step": s, "split": "train", "loss": v, "by_sigma": None} for s, v in arm.train_loss]


def _sample_figures(swap: Swap, best: Arm, budget: int) -> list[dict[str, str]]:
    prompts, figures = swap.sample_prompts(), []
    titles = {
        "base": "base",
        "candidate": f"candidate, after {best.steps[-1]} of {budget} steps of {best.strategy.name}",
    }
    for done, (label, system) in enumerate((("base", swap.base_system), ("candidate", best.system))):
        swap.progress("sampling", done, 2)
        images = sample_images(system, prompts, seed=swap.config.train.seed)
        name = f"samples-smoke-{label}"
        figures.append(save_grid(swap.run.path, name, images, "samples", titles[label], "; ".join(prompts)))
    return figures


def full(swap: Swap) -> list[GateResult]:
    """Train with the recommended strategy, monitors on, and write the model; with train.target vae, the VAE."""
    if swap.config.train.target == "vae":
        return run_gates("tune", tune_vae(swap), swap.policy)
    return run_gates("full", train_full(swap), swap.policy)


RUNNERS: dict[str, Callable[[Swap], list[GateResult]]] = {"component": component, "smoke": smoke, "full": full}


def run_stages(swap: Swap, stages: list[str], *, force: bool = False, resume: str = "auto") -> dict[str, Any]:
    """Run the stages in order; a failed one ends the row unless forced. Returns and writes validation.json."""
    config, run = swap.config, swap.run
    swap.resume = resume
    if swap.bare and stages != ["component"]:
        raise SanakitError("SK0104", f"stages {', '.join(stages)} need a base, found --base none; component does not")
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
    finish(swap, validation)  # a run that ends early, stopped by a monitor say, can be reported too

    for stage in [s for s in STAGES if s in stages]:
        done = validation["stages"].get(stage)
        measured = swap.fingerprint(stage)
        fingerprint = hash_record([measured, swap.policy.fingerprint])
        if done and done.get("measured") == measured:
            swap.progress(f"{stage}: done before", 1, 1)
            if done["fingerprint"] != fingerprint:
                gates = swap.policy.apply([GateResult.from_dict(gate) for gate in done["gates"]])
                done |= _judged(gates) | {"fingerprint": fingerprint}
                finish(swap, validation)
        else:
            for name in ("metrics.jsonl", "readings.jsonl"):
                run.drop_stage(name, stage)
            start = time.perf_counter()
            gates = RUNNERS[stage](swap)
            validation["stages"][stage] = _judged(gates) | {
                "seconds": round(time.perf_counter() - start, 1),
                "measured": measured,
                "fingerprint": fingerprint,
            }
            finish(swap, validation)
        if validation["stages"][stage]["verdict"] == Verdict.FAIL and not force:
            break
    return finish(swap, validation)


def _judged(gates: list[GateResult]) -> dict[str, Any]:
    return {"verdict": str(Verdict.worst([g.verdict for g in gates])), "gates": [g.as_dict() for g in gates]}


def finish(swap: Swap, validation: dict[str, Any]) -> dict[str, Any]:
    stages = validation["stages"]
    validation["stages"] = {name: stages[name] for name in STAGES if name in stages}
    validation["strategy"] = swap.run.read_json("strategy.json", {"recommended": None, "candidates": []})
    if layers := swap.run.read_json("layers.json"):
        validation["layers"] = layers
    verdict = Verdict.worst([Verdict(stage["verdict"]) for stage in stages.values()])
    validation["verdict"] = str(verdict)
    validation["policy"] = swap.policy.as_dict()
    validation["next"] = _next_command(swap, validation, verdict)
    swap.run.write_json("validation.json", validation)
    return validation


def _next_command(swap: Swap, validation: dict[str, Any], verdict: Verdict) -> str:
    failed = [g for s in validation["stages"].values() for g in s["gates"] if g["verdict"] == Verdict.FAIL]
    if failed:
        return f"sanakit explain {failed[0]['code']}"
    if swap.bare:
        kind = "vae" if swap.config.kind == "vae" else "text-encoder"
        return f"sanakit swap-{kind} --candidate {swap.config.candidate}"
    wanted = ("full",) if swap.config.train.target == "vae" else STAGES
    pending = [s for s in wanted if s not in validation["stages"]]
    if pending:
        return f"sanakit validate --stage {pending[0]} --run-dir {swap.run.path}"
    if swap.config.train.target == "vae":
        return f"sanakit swap-vae --candidate path:{swap.run.path}/vae"
    return f"sanakit sample --model {swap.run.path}/model --prompt 'red apple' --out sample.png"
