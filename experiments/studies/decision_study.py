"""Is the smoke stage right? Every strategy of a swap is run to the end and compared with what its race would have said.

    python experiments/studies/study_candidates.py                # once: candidates that no package ships
    python experiments/studies/decision_study.py status           # how many runs of how many are done
    python experiments/studies/decision_study.py work             # the plan's next unfinished run, until stopped
    python experiments/studies/decision_study.py work --only dc-minilm --count 3
    python experiments/studies/decision_study.py evaluate         # once, at the end: the evaluation third
    python experiments/studies/decision_study.py summary          # fits the forecast, prints what it was worth

The plan is experiments/studies/study_plan.py; what a run trains is in the docstring of study_run.py. Runs are JSON
lines in experiments/results. A run that is stopped goes on from its checkpoint (runs/study/work), by `work` again;
several processes may work side by side, each takes a run that no other has.
"""

import argparse
import datetime
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import study_rows
from study_plan import StudyRun, plan_fingerprint, runs
from study_rows import RESULTS, read_bases, read_evaluation, read_ledger

WORLD = Path("runs/study")
HELD_OUT = 128
IMAGE_SIZES = {"tiny-sana": 96}  # px; the bases that study_world.py trains have 64
STUDY = "study_verdict.json"


def done_runs(results: Path = RESULTS) -> tuple[set[str], set[str]]:
    """Names of the runs that are done on today's bases and plan, and of the swaps that are due a second seed."""
    bases = {name: {facts["fingerprint"], *facts.get("earlier", [])} for name, facts in read_bases(results).items()}
    lines = [line for line in read_ledger(results) if line["plan"] == plan_fingerprint()]
    valid = [line for line in lines if line["base_fingerprint"] in bases.get(line["swap"].split()[0], ())]
    return {line["run"] for line in valid}, {line["swap"] for line in valid if line["late"] and not line["seed"]}


def print_status(results: Path = RESULTS) -> None:
    done, late = done_runs(results)
    groups: dict[str, list[StudyRun]] = {"evaluation third": [], "fitting swaps": [], "second seeds": []}
    for run in runs(late):
        name = "second seeds" if run.seed else "evaluation third" if run.evaluation else "fitting swaps"
        groups[name].append(run)
    every = [run for group in groups.values() for run in group]
    print(f"{sum(run.name in done for run in every)} of {len(every)} runs are done (plan {plan_fingerprint()})")
    for name, group in groups.items():
        kinds = Counter(run.swap.kind for run in group if run.name in done)
        print(f"  {name}: {sum(kinds.values())} of {len(group)} ({kinds['vae']} VAE, {kinds['text']} text)")
    bases = read_bases(results)
    for base in sorted({run.swap.base for run in every}):
        facts = bases.get(base)
        print(f"  base {base}: " + (facts["fingerprint"][:12] if facts else "not made yet (study_world.py base)"))
    others = {line["run"] for line in read_ledger(results)} - done
    if others:
        print(f"  {len(others)} runs of another base or plan do not count")


def next_run(only: str, taken: set[str], results: Path = RESULTS) -> StudyRun | None:
    """The first run of the plan whose name holds `only`, that is not done, whose base is there,
    and that is not in `taken`."""
    done, late = done_runs(results)
    bases = read_bases(results)
    for run in runs(late):
        if only in run.name and run.name not in done | taken and run.swap.base in bases:
            return run
    return None


def work(args: argparse.Namespace) -> None:
    """Take runs until none is left, `--count` are done, or a signal comes."""
    from sanakit.distributed import STOP
    from sanakit.swap.race import RaceStopped

    taken: set[str] = set()
    finished = 0
    while not args.count or finished < args.count:
        run = next_run(args.only, taken)
        if run is None:
            print("nothing is left to take")
            return
        taken.add(run.name)
        with study_rows.claimed(WORLD / "work" / run.folder) as ours:
            if not ours or run.name in done_runs()[0]:
                continue
            print(f"{datetime.datetime.now():%H:%M} {run.name}", flush=True)
            try:
                with STOP.installed():
                    finish(run)
            except RaceStopped as stopped:
                print(stopped, flush=True)
                return
        shutil.rmtree(WORLD / "work" / run.folder, ignore_errors=True)
        finished += 1


def finish(run: StudyRun) -> None:
    """Train one run to its end and add its row."""
    from study_run import Runner

    swap = open_swap(run)
    require_base(run.swap.base, swap.base_fingerprint, swap.images.fingerprint)
    runner = Runner(swap=swap, run=run, folder=WORLD / "work" / run.folder)
    row = runner.finish()
    study_rows.add_run(row, evaluation=run.evaluation, late=runner.late)
    steps = ", ".join(f"{name} {arm.steps[-1]}" for name, arm in runner.arms.items() if arm.state)
    told = "" if run.evaluation else f", steps: {steps}"  # where an arm ends says when it arrived
    print(f"  done after {row['minutes']:.0f} minutes{told}", flush=True)


def open_swap(run: StudyRun) -> Any:
    from study_candidates import name_of
    from study_world import base_name

    from sanakit.config import make_config
    from sanakit.run import RunFolder
    from sanakit.swap.context import Swap

    swap = run.swap
    size = IMAGE_SIZES.get(swap.base)
    values = {
        "base": base_name(swap.base),
        "vae" if swap.kind == "vae" else "text_encoder": {"name": name_of(swap.candidate)},
        "data": {"image_size": size or 64},
        "train": {"seed": run.seed},
        "smoke": {"held_out": HELD_OUT},
    }
    config = make_config(values)
    return Swap(config=config, run=RunFolder(Path(), config))


def require_base(name: str, fingerprint: dict[str, str], data: str, results: Path = RESULTS) -> None:
    """Refuse a base, or images and captions, other than those that study_bases.json names:
    rows of two bases do not mix."""
    from sanakit.hashing import hash_record

    known, facts = read_bases(results).get(name, {}), {"fingerprint": hash_record(fingerprint), "data": data}
    for key, value in facts.items():
        if known.get(key) != value:
            raise SystemExit(
                f"base {name}: its {key} is {value[:12]}, study_bases.json says {str(known.get(key))[:12]}. "
                f"`python experiments/studies/study_world.py base {name}` makes another one; runs on the old one then "
                "count only if recipe and data are the same."
            )


def evaluate(results: Path = RESULTS) -> dict[str, Any]:
    """Evaluate the race on the evaluation third, under the constants of the package: once, when all of its runs are
    done and the constants are those of the fitting runs. Raises SystemExit otherwise."""
    import study_verdict
    from study_curves import from_row, read_records

    verdict = results / STUDY
    if verdict.is_file():
        raise SystemExit(f"{verdict} is there: the evaluation third has been used, and is used once")
    done, late = done_runs(results)
    missing = [run.name for run in runs(late) if run.evaluation and run.name not in done]
    if missing:
        raise SystemExit(f"{len(missing)} runs of the evaluation third are not done, first {missing[0]}")
    fitting = read_records(done, results)
    study_verdict.require_constants(fitting)
    rows = [row for row in read_evaluation(results) if row["run"] in done]
    records = [from_row(row) for row in rows]
    study_verdict.require_unit(records)
    today = {"plan": plan_fingerprint(), "date": f"{datetime.date.today()}"}
    verdicts = today | study_verdict.verdict_of(records, fitting)
    verdicts["every_arm"] = [study_verdict.arms_of(row) for row in rows]
    verdict.write_text(json.dumps(verdicts, indent=1) + "\n")
    print(json.dumps({key: value for key, value in verdicts.items() if key not in study_verdict.ALONE}, indent=1))
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("work", help="take the next unfinished run, and on until stopped")
    worker.add_argument("--only", default="", help="runs whose name holds this text")
    worker.add_argument("--count", type=int, default=0, help="stop after so many, by default after the last")
    commands.add_parser("status", help="how many runs of how many are done")
    commands.add_parser("evaluate", help="evaluate the evaluation third, once")
    commands.add_parser("summary", help="fit the forecast's law and print what it was worth on swaps left out")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.command == "status":
        print_status()
        return
    import torch

    torch.set_num_threads(1)
    if args.command == "work":
        work(args)
    elif args.command == "evaluate":
        evaluate()
    else:
        from study_figures import summary

        summary(done_runs()[0])


if __name__ == "__main__":
    main()
