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

from sanakit.checks import StageResult, evaluate_stage
from sanakit.checks.component import Measured, measure_text_encoder, measure_vae
from sanakit.checks.diffusability import FEWEST, compare_panels
from sanakit.checks.measure_training import (
    SPREAD_SAMPLES,
    base_evidence,
    course_evidence,
    movement_evidence,
    sample_evidence,
)
from sanakit.contracts import GateResult, Verdict
from sanakit.data import ImageDataset
from sanakit.data.cache import to_images
from sanakit.data.describe import describe
from sanakit.distributed import peak_megabytes, world_size
from sanakit.evaluation.figures import save_compared, save_grid
from sanakit.evaluation.held_out import averaged
from sanakit.evaluation.perceptual import extractor
from sanakit.hashing import hash_record
from sanakit.run import SCHEMA_VERSION, provenance, stored
from sanakit.sampling import sample_side_by_side
from sanakit.swap.arm import Arm
from sanakit.swap.context import Swap, prepare
from sanakit.swap.control import control_evidence, meaning_evidence
from sanakit.swap.decided import decided, tokens_row
from sanakit.swap.early import require_base
from sanakit.swap.ending import RaceResult
from sanakit.swap.evaluated import RECORD, broken_metrics
from sanakit.swap.forecast import steps_that_tell
from sanakit.swap.full import gains_by_caption, prompt_gains, train_full
from sanakit.swap.lineup import Starts, race_store, raced_names, run_race, stopping, write_plan
from sanakit.swap.outcome import comparison
from sanakit.swap.plugins import incomplete, measure_stage, not_measured
from sanakit.swap.recorded import RACE, drop_others, raced
from sanakit.swap.settings import rungs_in
from sanakit.swap.tune_decoder import tune_decoder
from sanakit.swap.tune_vae import tune_vae
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE

__all__ = ["STAGES", "prepare", "run_stages"]

PANEL = 128  # images of the diffusability panel
STAGES = ("component", "smoke", "full")


def component(swap: Swap) -> StageResult:
    """The candidate by itself, next to the base's own component."""
    held_out = swap.splits[1]
    evaluation_images = held_out.subset(list(range(min(swap.config.component.num_images, len(held_out)))))
    is_vae = isinstance(swap.candidate, VAE)
    replaced = None if swap.bare else swap.base_system.vae if is_vae else swap.base_system.text_encoder
    with swap.placement.holding(swap.candidate, replaced, extractor()):
        measured = _measured(swap, replaced, evaluation_images)
    if not is_vae:
        if not measured.evidence["nonfinite_embeddings"] and swap.layers:
            swap.run.write_json("layers.json", swap.layers)
        if not measured.evidence["nonfinite_embeddings"] and not swap.bare:
            measured.evidence |= meaning_evidence(swap)
    dataset = held_out.subset(list(range(min(PANEL, len(held_out)))))
    finite = not measured.evidence.get(
        "nonfinite_latents", 1
    )  # absent for a text encoder, or where the geometry is wrong
    if isinstance(swap.candidate, VAE) and finite and len(dataset) >= FEWEST:
        images = to_images(dataset.pixels(swap.config.data.size))
        base_vae = None if swap.bare else swap.base_system.vae
        measured.rows += tokens_row(swap)
        with swap.placement.holding(swap.candidate, base_vae, extractor()):
            measured.rows += compare_panels(base_vae, swap.candidate, images)
    kept = ("rows", "channels", "curves", "similarity", "prompts")
    swap.run.write_json("component.json", {name: getattr(measured, name) for name in kept})
    swap.run.append("readings.jsonl", [r.as_dict() | {"stage": "component"} for r in measured.readings])
    swap.add_figures("component", measured.figures)
    return evaluate_stage("component", measured.evidence, swap.policy)


def _measured(swap: Swap, base_component: VAE | TextEncoder | None, images: ImageDataset) -> Measured:
    """The candidate beside the base's own component on held-out images; both are on the device."""
    if isinstance(swap.candidate, VAE):
        assert base_component is None or isinstance(base_component, VAE)
        size = swap.config.data.size
        return measure_vae(swap.candidate, base_component, images, size, swap.run.path, swap.progress)
    assert base_component is None or isinstance(base_component, TextEncoder)
    return measure_text_encoder(swap.candidate, base_component, images, swap.run.path)


def smoke(swap: Swap) -> StageResult:
    """Race the strategies against the base: plan, race, evidence."""
    names, broken = raced_names(swap)
    if not names:
        return StageResult(results=broken)
    write_plan(swap, names)
    arms, result, starts = run_race(swap, names)
    _record_race(swap, arms, result)
    stage_result = evaluate_stage("smoke", _race_evidence(swap, arms, result, starts), swap.policy)
    stage_result.results += broken
    return stage_result


def _record_race(swap: Swap, arms: list[Arm], result: RaceResult) -> None:
    """Rows of metrics.jsonl, strategy.json, and samples of the recommended arm."""
    swap.run.append("metrics.jsonl", [row for arm in arms for row in _rows(arm)])
    swap.run.write_json(RACE, comparison(swap, arms, result) | {"measured": swap.fingerprint("smoke")})
    with averaged(result.best.system.core, result.best.average):
        swap.add_figures("smoke", _sample_figures(swap, result.best, result.step))


def _race_evidence(swap: Swap, arms: list[Arm], result: RaceResult, starts: Starts) -> dict[str, Any]:
    """What the gates of the stage read. starts: systems before any step, by `Strategy.start_key`."""
    best = result.best
    assert best.forecast is not None
    train, test = swap.candidate_data
    by_name = {arm.strategy.name: arm for arm in arms if arm.results}
    naive, aligned = by_name.get("naive"), by_name.get("finetune") or by_name.get("align")
    # progress is measured from the start without knowledge: naive, where it raced
    start = (naive or best).results[0]
    evidence: dict[str, Any] = {
        "start_at_base": swap.target.reached(start),
        "end_losses": best.results[-1].losses.mean(0).numpy(),
        "relative_error": best.errors[-1],
        "base_relative_error": swap.target.base,
        "steps_that_tell": steps_that_tell(best.forecast, result.step),
        "forecast_arrives": bool(np.isfinite(best.forecast.steps)),
    }
    with averaged(best.system.core, best.average):
        gains = prompt_gains(swap, best.system, test)
        evidence |= sample_evidence(
            best.system,
            test,
            swap.sample_prompts(SPREAD_SAMPLES),
            swap.config.train.seed,
            at_once=swap.config.smoke.samples,
        )
    evidence |= gains | base_evidence(swap.base_system, swap.base_data[1], swap.base_held_out)
    evidence |= course_evidence(best.system, train, best.options)
    if best.state:
        before = starts[best.strategy.start_key()][0].core
        evidence |= movement_evidence(before, best.system.core, best.average)
    if naive or best.state:  # else nothing is trained
        evidence["start_losses"] = start.losses.mean(0).numpy()
    if isinstance(swap.candidate, TextEncoder):
        race = swap.run.read_json(RACE, {})
        swap.run.write_json(RACE, race | {"prompt_gain": gains_by_caption(gains, test)})
        with stopping(race_store(swap)):
            evidence |= control_evidence(swap, rungs_in(swap.config).halving)
    if naive and aligned:
        evidence["naive_start_losses"] = naive.results[0].losses.mean(0).numpy()
        evidence["aligned_start_losses"] = aligned.results[0].losses.mean(0).numpy()
    return evidence


def _rows(arm: Arm) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"stage": "smoke", "strategy": arm.strategy.name}
    return [
        row | {"step": s, "split": "held_out", "loss": r.loss, "by_sigma": r.by_sigma}
        for s, r in zip(arm.steps, arm.results, strict=True)
    ] + [row | {"step": s, "split": "train", "loss": v, "by_sigma": None} for s, v in arm.train_loss]


def _sample_figures(swap: Swap, best: Arm, budget: int) -> list[dict[str, str]]:
    prompts, figures = {side: swap.sample_prompts(base=side == "base") for side in ("base", "candidate")}, []
    titles = {
        "base": "base",
        "candidate": f"candidate, after {best.steps[-1]} of {budget} steps of {best.strategy.name}",
    }
    swap.progress("sampling", 0, 2)
    systems = {"base": swap.base_system, "candidate": best.system}
    sides = sample_side_by_side(systems, prompts, seed=swap.config.train.seed)
    for label, images in sides.items():
        name, said = f"samples-smoke-{label}", "; ".join(prompts[label])
        figures.append(save_grid(swap.run.path, name, images, "samples", titles[label], said))
    truth, splits = swap.sample_truth()
    told = list(zip(prompts["candidate"], splits, strict=True))
    return figures + save_compared(swap.run.path, "smoke", told, {"truth": truth} | sides)


def full(swap: Swap) -> StageResult:
    """Train with the recommended strategy, monitors on, and write the model; with train.target vae or vae-decoder, the
    VAE."""
    if swap.trains_vae_alone:
        tune = tune_vae if swap.config.train.target == "vae" else tune_decoder
        return evaluate_stage("tune", tune(swap), swap.policy)
    stage_result = evaluate_stage("full", train_full(swap), swap.policy)
    stage_result.results += broken_metrics(swap)
    return stage_result


RUNNERS: dict[str, Callable[[Swap], StageResult]] = {"component": component, "smoke": smoke, "full": full}


def run_stages(swap: Swap, stages: list[str], *, force: bool = False, resume: str = "auto") -> dict[str, Any]:
    """Run the stages in order; a failed one ends the row unless forced. Returns and writes validation.json."""
    config, run = swap.config, swap.run
    swap.resume = resume
    require_base(config, stages)
    validation = {"schema_version": SCHEMA_VERSION} | run.read_validation()
    validation |= {"base": swap.base.name, "kind": config.kind, "candidate": config.candidate or swap.base.card["vae"]}
    run.write_json("provenance.json", provenance(_facts(swap, validation["candidate"])))
    run.write_text("ledger.jsonl", "".join(json.dumps(row) + "\n" for row in swap.images.ledger))
    drop_others(swap, validation)
    finish(swap, validation)  # a run that ends early, stopped by a monitor say, can be reported too

    for stage in [s for s in STAGES if s in stages]:
        done = validation["stages"].get(stage)
        measured = swap.fingerprint(stage)
        fingerprint = hash_record([measured, swap.policy.fingerprint])
        if done and done.get("measured") == measured and not incomplete(done):
            swap.progress(f"{stage}: done before", 1, 1)
            if done["fingerprint"] != fingerprint:
                gates = swap.policy.apply([GateResult.from_dict(gate) for gate in done["gates"]])
                done |= _evaluated(gates) | {"fingerprint": fingerprint}
                finish(swap, validation)
        else:
            if validation["stages"].pop(stage, None):
                finish(swap, validation)  # a stage that raises leaves no earlier verdict standing
            for name in ("metrics.jsonl", "readings.jsonl"):
                run.keep_rows(name, lambda row: row.get("stage") != stage)
            start = time.perf_counter()
            stage_result = measure_stage(stage, RUNNERS[stage], swap)
            validation["stages"][stage] = _evaluated(stage_result.results) | {
                "not_applied": stage_result.not_applied,
                "seconds": round(time.perf_counter() - start, 1),
                "peak_mb": round(peak_megabytes()),
                "measured": measured,
                **({"steps": swap.config.train.max_steps} if stage == "full" else {}),
                "fingerprint": fingerprint,
            }
            if stage == "smoke":
                drop_others(swap, validation)  # a full run of what another race recommended
            finish(swap, validation)
            if stage == "smoke" and not not_measured(validation["stages"][stage]):
                race_store(swap).clear()
        if not_measured(validation["stages"][stage]):
            break
        if validation["stages"][stage]["verdict"] == Verdict.FAIL and not force:
            break
    return finish(swap, validation)


def _facts(swap: Swap, candidate: str) -> dict[str, Any]:
    """What provenance.json says of a run beside packages, hardware and code."""
    config = swap.config
    return {
        "base": {"name": swap.base.name, "card": {k: v for k, v in swap.base.card.items() if k != "curve"}},
        "candidate": {
            "name": candidate,
            "fingerprint": swap.candidate.fingerprint(),
            "quantised": getattr(swap.candidate, "quantised", ""),
            "overrides": {"scaling_factor": config.vae.scaling_factor},
        },
        "data": {
            "source": stored(config).data.source,
            "fingerprint": swap.images.fingerprint,
            "images": len(swap.images),
            "description": describe(swap.images),
        },
        "seed": config.train.seed,
        "ranks": world_size(),
        "threads": torch.get_num_threads(),
        "placement": swap.placement.as_dict(),
        "automatic": list(swap.run.automatic),
        "kernels": swap.config.train.kernels,
    }


def _evaluated(gates: list[GateResult]) -> dict[str, Any]:
    return {"verdict": str(Verdict.worst([g.verdict for g in gates])), "gates": [g.as_dict() for g in gates]}


def finish(swap: Swap, validation: dict[str, Any]) -> dict[str, Any]:
    stages = validation["stages"]
    validation["stages"] = {name: stages[name] for name in STAGES if name in stages}
    validation["strategy"] = raced(swap) or {"recommended": None, "candidates": []}
    for name in ("layers", "evaluation"):
        validation.pop(name, None)
    if "component" in stages and (layers := swap.run.read_json("layers.json", {})):
        validation["layers"] = layers
    if "full" in stages and (evaluation := swap.run.read_json(RECORD, {})):
        validation["evaluation"] = evaluation
    validation["verdict"] = str(Verdict.worst([Verdict(stage["verdict"]) for stage in stages.values()]))
    validation["policy"] = swap.policy.as_dict()
    validation |= decided(swap, validation)
    swap.run.write_json("validation.json", validation)
    return validation
