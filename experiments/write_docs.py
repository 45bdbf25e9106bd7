"""Write the generated pages: docs/codes.md from the catalogue, docs/gates.md from the registry, the thresholds and the
measured results, docs/zoo.md from the records of components, docs/decision-study.md from the studies' results and
the plan of the one under way, the tables of docs/performance.md and docs/scale.md from their results.

python experiments/write_docs.py
"""

import json
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from sanakit.checks import GATES
from sanakit.checks.policy import rules
from sanakit.contracts import LatentStats, TextSpec
from sanakit.errors import CODES
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
sys.path.append(str(ROOT / "experiments" / "studies"))

import study_plan  # noqa: E402
from decision_study import done_runs  # noqa: E402


def codes() -> str:
    """docs/codes.md, whole."""
    lines = [
        "# Codes",
        "",
        (
            "Written by `python experiments/write_docs.py`; `sanakit explain CODE` says the same. Gates: "
            "[gates.md](gates.md)."
        ),
        "",
        "| code | title | why | fix |",
        "|---|---|---|---|",
    ]
    lines += [f"| {code} | {cell(e.title)} | {cell(e.why)} | {cell(e.fix)} |" for code, e in CODES.items()]
    return "\n".join(lines) + "\n"


GATES_INTRO = """# Gates

Written by `python experiments/write_docs.py` from the registry, `sanakit/checks/policy.py` and
`experiments/results/`.

A gate is a rule on one number. A value with an interval (90%, bootstrap over images or prompts) that straddles the
threshold is **inconclusive** (exit code 4), never a pass; it says about how many more samples would decide, and by
which key they are asked for (an interval of fewer than 8 values
is always inconclusive): `component.num_images` (192 held-out images or captions), `smoke.held_out` (128 images of
smoke and full), `smoke.samples` (8 drawn images), each of them `--set KEY=N` and at most what the held-out split has.
The first gate that fails in a stage names the cause: causes stand before what follows from them.

`--policy default|strict|FILE` chooses the thresholds. A file overrides single gates; unknown keys are refused:

```yaml
from: strict
thresholds:
  component/truncation: 0.1
```

The policy is recorded in `validation.json` and is part of a stage's fingerprint: another policy decides again on what
was measured, nothing is measured twice.

A component alone, with no base: `sanakit validate --stage component --base none --vae NAME` (or `--text-encoder`).
For machines that build: `--json`, `--junit FILE`, `--markdown FILE`.
"""


def render_gates() -> str:
    """docs/gates.md, whole."""
    return "\n".join([GATES_INTRO, *thresholds(), *catalogue(read("fault_catalogue.json"))]) + "\n"


def thresholds() -> list[str]:
    calibration = read("gate_calibration.json")
    measured = {row["gate"]: row for row in calibration.get("gates", [])}
    faults = read("fault_catalogue.json").get("faults", [])
    lines = [
        "## Thresholds, and where they come from",
        "",
        "**A/A**: clean systems, "
        f"{sum(row['runs'] for row in measured.values()):,} readings of {len(calibration.get('systems', []))} "
        f"(`{calibration.get('command', '')}`; the systems are in `experiments/faults/clean_runs.py`). Of the system "
        "nearest to the threshold, q is the 95% quantile of its readings towards it and s the way from its median to "
        "q. A strict threshold leaves at least s beyond q, a default one 2 s, and both stand short of the nearest "
        "planted fault. **Definition**: the threshold is what the words mean; clean readings are there to see that it "
        "holds. The readings of `smoke/samples` and `full/samples` are of 8 samples each; the gates draw 32 since, "
        "which narrows their intervals.",
        "",
        "| gate | asks whether | default | strict | comes from | readings | q of clean systems | nearest fault |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in GATES.entries().values():
        record = rules()[entry.name]
        default, strict = record.default, record.strict
        row = measured.get(entry.name)
        source = f"definition: {record.definition}" if record.definition else "A/A"
        runs = f"{row['runs']} of {row['systems']}" if row else ""
        clean = f"{row['quantile']:.3g}, {cell(row['worst_system'])}" if row else ""
        near = nearest_fault(entry.name, default, faults)
        lines.append(
            f"| `{entry.name}` | {cell(entry.title)} | {default:g} | {strict:g} | {cell(source)} | {runs} | {clean} "
            f"| {'' if near is None else f'{near:.3g}'} |"
        )
    failed = [f"`{row['gate']}` {row['failed']} of {row['runs']}" for row in measured.values() if row["failed"]]
    undecided = [
        f"`{row['gate']}` {row['undecided']} of {row['runs']}" for row in measured.values() if row["undecided"]
    ]
    lines += [
        "",
        f"Evaluated by `default`, clean readings failed: {', '.join(failed) or 'none'}. Could not be decided: "
        f"{', '.join(undecided) or 'none'}.",
    ]
    if calibration.get("missing"):
        lines += ["", f"Not measured yet: {', '.join(calibration['missing'])}."]
    return [*lines, ""]


def nearest_fault(gate: str, threshold: float, faults: list[dict[str, Any]]) -> float | None:
    """Reading of the planted fault that this gate must catch, the one nearest to its threshold."""
    values = [row["value"] for row in faults if row["gate"] == gate and "value" in row]
    return min(values, key=lambda value: abs(value - threshold), default=None)


def catalogue(results: dict[str, Any]) -> list[str]:
    if not results:
        return []
    s = results["summary"]
    lines = [
        "## The fault catalogue",
        "",
        f"Small real systems, each broken in one way (`experiments/faults/faults.py`): {s['caught']} of {s['faults']} "
        f"caught, {s['named_cause']} by what names the cause, {s['caught_before_full']} before any step beyond smoke. "
        f"Clean systems: {s['alarms']} alarms in {s['clean']}. `{results['command']}`",
        "",
        "| fault | public threads | caught by | code | stage | caught | cause named |",
        "|---|---|---|---|---|---|---|",
    ]

    def yes(value):
        return "yes" if value else "**no**"

    for row in results["faults"]:
        lines.append(
            f"| {cell(row['fault'])} | {cell(row['threads'])} | {row['gate']} | {row['code']} | {row['stage']} "
            f"| {yes(row['caught'])} | {yes(row['named_cause'])} |"
        )
    lines += ["", "| clean system | verdict | not passed |", "|---|---|---|"]
    lines += [
        f"| {cell(r['system'])} | {r['verdict']} | {cell(', '.join(r['not_passed']))} |" for r in results["clean"]
    ]
    return lines


def read(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else {}


def cell(text: str) -> str:
    return re.sub(r"[|]", "/", text).replace("[", "\\[")


def zoo() -> str:
    lines = [
        "# The zoo",
        "",
        "Written by `python experiments/write_docs.py` from the records; `sanakit describe NAME` shows one. Every name",
        "has a tiny twin built from its real class, on which the contract tests run. Nothing is fetched before a name",
        "is used; `hub:` needs a network, and where a title says gated, `hf auth login`. A licence that reads *see",
        "repository* is not known here: check before you use it. No published weights were loaded for want of a",
        "network: shapes and readings are tested on the twins. A commit behind a name is what is fetched.",
        "",
        "## VAEs",
        "",
        "z: raw latents. Statistics that config.json states win over the record's.",
        "",
        "| name | what | from | latents | licence |",
        "|---|---|---|---|---|",
    ]
    for name, entry in VAES.entries().items():
        component = VAES.get(name)
        source = "in this package" if entry.embedded else _source(component)
        lines.append(f"| `{name}` | {entry.title} | {source} | {_affine(component)} | {entry.licence} |")
    lines += [
        "",
        "## Text encoders",
        "",
        "| name | what | from | tokens | reading | licence |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in TEXT_ENCODERS.entries().items():
        component = TEXT_ENCODERS.get(name)
        source, spec = _source(component), component.spec
        lines.append(
            f"| `{name}` | {entry.title} | {source} | {spec.max_tokens} | {_reading(spec)} | {entry.licence} |"
        )
    return "\n".join(lines) + "\n"


def _source(component: Any) -> str:
    hub = getattr(component, "hub", None)
    pinned = f" at {component.revision[:7]}" if getattr(component, "revision", None) else ""
    return f"`hub:{hub}`{pinned}" if hub else "a package"


def _affine(component: Any) -> str:
    stats: LatentStats | None = getattr(component, "stats", None)
    if stats is None or getattr(component, "stats_with_weights", False):
        return "statistics beside the weights"
    if len(stats.mean) > 1 or len(stats.std) > 1:
        return "(z - mean) / std per channel"
    scale = f"{1 / stats.std[0]:.5g}"
    if stats.mean[0]:
        return f"(z - {stats.mean[0]:g}) * {scale}"
    return "z" if scale == "1" else f"z * {scale}"


def _reading(spec: TextSpec) -> str:
    layers = {"last": "last layer", "mean": "mean of normed layers"}
    parts = [layers.get(str(spec.layer), f"layer {spec.layer}")]
    if spec.instruction:
        parts.append("Sana's instruction")
    if spec.select == "first-last":
        parts.append("token 0 and the last 299")
    if spec.attend_padding:
        parts.append("attends to padding")
    if spec.lower_case:
        parts.append("lower case")
    return ", ".join(parts)


DECISIONS_INTRO = """# Is the smoke stage right?

After this page you know how often the race recommends the cheapest strategy, what its stated probability is worth, and
on which swaps that was measured. The model behind the probability is in [forecast.md](forecast.md).

Written by `python experiments/write_docs.py` from `experiments/results/decision_study.json`; `{command}`
writes that file and the constants of the forecast (`sanakit/swap/forecast.json`). **What was measured:** {runs} runs of
{swaps} swaps. {earlier} of the runs are the earlier study's, in a small world (64 px, 16 tokens, cores of 1.3 M
parameters trained for 8,000 steps), {new} the larger study's ([below](#the-study-under-way)), of which {done} of
{planned} runs are done. Every strategy of a swap was trained on, and races are replayed from those runs. **What was
not:** the evaluation third of the larger study has not been read. No figure on this page is of a swap that was kept
back.

**Left out.** No race is replayed under constants that its own swap helped to fit: the law is fitted to the other swaps
(leave one swap out, both seeds of it), and once more to the swaps of the other bases (leave one base out). Figures in
brackets are 90% bootstrap intervals over swaps. They do not count what was chosen while looking at these same curves:
the form of the law, the probability at which a race ends ({tells:g}) and the rule that nobody leaves a race for noise.

**Reached** means a relative error of at most {reached} (text encoder), 1 being the base
([strategies.md](strategies.md)). {text_unit} Cost is steps
times the strategy's step time, and what distillation spends on the base's trajectories first. **Right**: the
recommended strategy reached the target at most 10% dearer than the cheapest, or the race said "not in sight" where
nobody got there. **Told**: the stated probability is at least {tells:g}. Controls (naive, scratch) do not
race.

**Read it with care.** One seed for most swaps. A strategy that had not arrived when its run ended counts as one that
does not arrive where a decision is judged, and as censored where a forecast is. Rows of the earlier study: the 128
held-out images are the first ones in file order, all of them emoji; sanakit itself and the larger study evaluate on a
random sample. Learning rates were chosen at step 25; a race of today chooses at half of its budget, and at 50 where its
length is automatic. Rows with distillation and those against scratch beyond 500 steps were run last, on bases trained
anew by the same recipe (held-out loss .706 and .777); the other rows stand on their first training. near-dc was run to
800 steps under earlier defaults of the script.
"""
TEXT_UNITS = {
    "earlier": "Rows of text encoders are in the earlier unit (2 = the base with shuffled prompts, mean over noise "
    "levels). For today's unit nothing has been measured, and sanakit says so (`extrapolated`).",
    "new": "Rows of text encoders are the larger study's, in today's unit.",
}
REACHED = {"earlier": "1.05 (VAE) or 1.10", "new": "1.05 (VAE) or 1.15"}


STUDY_UNDER_WAY = """## The study under way

The larger study is under way ({done} of {planned} runs are done), on bases that are trained on the captions of today.
This section is its plan. Its runs of swaps that may fit the forecast stand above as they finish (bold); those of text
encoders come in together, as their unit is another. Nothing is said of the evaluation third before it is whole.

**Which swaps.** {swaps} swaps on three bases, {text} of them of the text encoder. They were named in
`experiments/studies/study_plan.py` before any of them was run. {earlier} of them are swaps that the earlier study ran
too (on other bases); the other {new} are new. Text encoders were chosen among those whose closed form starts near the
base: MiniLM's layers 5, 4, 3 and 1 start at 1.18, 1.19, 1.25 and 1.28 on the tiny-sana of then (1 is the base, 2 does
not see the prompt). Where others start was not measured before they were named.

**The evaluation third.** {held} swaps ({held_text} of the text encoder) are kept for the final evaluation. They are
drawn from the new ones by a rule that knows nothing but names: of every kind, those with the lowest SHA-256 of the seed
{seed} and the swap's name. Their runs lie in a file of their own. One function reads that file, one command calls it,
and that command refuses to run twice or too early, under constants of other runs than today's, and where the third is
in another unit than the constants.

**What will count.** Written before the third was read, as several readings are possible:

- *Told, right and cost* are of races of automatic length, of the first seed of every swap. Second seeds stand beside
  them.
- *Coverage* is of the 80% intervals of those forecasts that a user sees at the end of such a race; the other rows stand
  beside it.
- *The base rate* of the Brier score is that of the third itself. Where every answer is right it is 1, and no stated
  probability below 1 can beat it: the score is then reported as it is, and the goal as not reached.
- *Open answers*: a strategy that was not run far enough to exclude that it would have been cheaper counts as one that
  does not arrive. Their number is reported.
- *Near swaps against scratch* are fitting swaps; `summary` prints them.

**What is run.** Every strategy, from the closed form that it begins at in a race, at three learning rates until step
50, then at the best one (a race leaves a rate that is clearly worse than a higher one after a quarter of its budget, so
it costs a little less than is counted here). All strategies run to step 500. Where nobody has reached the base's
quality by then, lora, cross-attention and finetune run to 2,000 steps; where nobody has by then and the race says "not
in sight", the two nearest run to 4,000. (In dc-minilm's first runs of wordllama and wordllama-64 cross-attention ended
at 500. The first runs also trained lora and finetune from the start that a race does not take; nothing reads those.)
From scratch: five near and five other VAE swaps, until the target or 3,000 steps. A swap that arrives after more than
200 steps is run with a second seed. The 128 held-out images are a random sample of all sources. Curves hold the errors
of every image at 17 steps up to 4,000 (75, 150 and 300 among them) and the training losses.

**How to run it.**

```
python experiments/studies/study_world.py base dc-minilm      # also pca-wordllama, tiny-sana: makes and notes the base
python experiments/studies/study_candidates.py                # candidates that no package ships
python experiments/studies/decision_study.py work             # takes the next unfinished run, until stopped
python experiments/studies/decision_study.py status           # how many runs of how many are done
python experiments/studies/decision_study.py summary          # fits the forecast's constants, writes what stands above
python experiments/studies/decision_study.py evaluate         # once, at the end
```

`mpnet-packaged` and `gemma-3-270m-gguf` need their packages ([zoo.md](zoo.md)). A run keeps a checkpoint every five
minutes and goes on from there bit by bit. Several `work` may run side by side, on one thread each. The bases lie in
`experiments/assets/study_bases` with their cards: another processor rounds otherwise, and trains another core from the
same seed (dc-minilm: held-out loss .7069 and .7071). A run on a base other than the noted one is refused. When a base
is made anew by the same recipe on the same data, runs on the earlier one count; three of the runs are of that kind.

**State.** `status` tells it from `experiments/results/study_ledger.jsonl`.
"""


def study_numbers() -> dict[str, int]:
    """How many swaps the plan has, of which kinds, and how many of its runs are done."""
    swaps, held = study_plan.SWAPS, study_plan.evaluation_third()
    done, late = done_runs()
    return {
        "swaps": len(swaps),
        "text": sum(swap.kind == "text" for swap in swaps),
        "earlier": len(study_plan.EARLIER),
        "new": len(study_plan.NEW),
        "held": len(held),
        "held_text": sum(swap.kind == "text" for swap in held),
        "seed": study_plan.SEED,
        "done": len(done),
        "planned": len(study_plan.runs(late)),
    }


def _plan_table() -> list[str]:
    """The candidates of every base; bold: of the evaluation third, with an asterisk:
    run before by the earlier study."""
    held = study_plan.evaluation_third()
    cells: dict[tuple[str, str], list[str]] = {}
    for swap in study_plan.SWAPS:
        name = f"**{swap.candidate}**" if swap in held else swap.candidate
        name += "\\*" if swap in study_plan.EARLIER else ""
        cells.setdefault((swap.base, swap.kind), []).append(name)
    return [
        "Bold: the evaluation third. Asterisk: the earlier study ran this swap, on another base.",
        "",
        "| base | kind | candidates |",
        "|---|---|---|",
        *(f"| {base} | {kind} | {', '.join(names)} |" for (base, kind), names in cells.items()),
    ]


def decisions() -> str:
    """docs/decision-study.md, whole."""
    study = read("decision_study.json")
    numbers, plan = {key: study["constants"][key] for key in ("runs", "swaps")}, study_numbers()
    numbers |= {key: plan[key] for key in ("done", "planned")}
    studies = Counter(row["study"] for row in study["swaps"])
    text = next(row["study"] for row in study["swaps"] if row["kind"] == "text_encoder")
    numbers |= {"earlier": studies["earlier"], "new": studies["new"]}
    intro = DECISIONS_INTRO.format(
        command=study["command"], tells=study["tells"], reached=REACHED[text], text_unit=TEXT_UNITS[text], **numbers
    )

    intro = "\n\n".join(
        textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False) for part in intro.split("\n\n")
    )

    def number(key):
        return "not measured" if study[key] is None else f"{study[key]:g}"

    lines = [intro, ""]
    for title, key in LEFT_OUT.items():
        lines += [f"## {title}", "", *_decision_table(study[key]), "", *_stated_table(study[key]), ""]
        lines += [*_coverage_table(study[key]["forecasts"]), ""]
    lines += [*_largest_core(study["largest_core"]), FIGURES_READ]
    lines += [
        "## Swap by swap",
        "",
        "What races of automatic length said, leaving the swap out. Bold: runs of the larger study, in whose races a "
        "strategy begins at the closed form of lower error (`@align-blocks`: of every block).",
        "",
        *_swap_table(study["swaps"]),
        "",
        "## Ranks",
        "",
        f"Spearman of errors after 100 steps and at the last step that all strategies of a swap ran: of the strategies "
        f"within a swap {number('spearman_smoke_full')} (mean over swaps), of all strategies of all swaps "
        f"{number('spearman_pooled')}, of the swaps by their best strategy {number('spearman_candidates')}.",
        "",
        f"Near VAE swaps ({', '.join(study['near'])}): the cheapest strategy took "
        f"{number('near_steps_ratio')} of scratch's steps in the mean and {number('near_steps_most')} at most, where "
        f"scratch was run on for {study['near_run_on']:,} steps or more; {study['near_not_reached']} of them were not "
        "reached. By swap below.",
        "",
        *_savings(study["swaps"]),
        "",
        STUDY_UNDER_WAY.format(**plan),
        *_plan_table(),
    ]
    return "\n".join(lines) + "\n"


LEFT_OUT = {"Leave one swap out": "leave_one_swap_out", "Leave one base out": "leave_one_base_out"}
FIGURES_READ = """**How to read the tables.** Cost is over a race of exactly 100 steps, the search of learning rates
with it. The Brier score is the mean squared difference between the stated probability and what happened (0 is perfect);
beside it, that of always saying how often it happens. Coverage counts a run that ended without arriving as what it
shows, by Kaplan and Meier's estimate: the true steps are above the steps it was run. Most of the forecasts are
censored, so the intervals are wide. The interval score is of uncensored forecasts, in the logarithm of steps: width
plus what a miss costs; lower is better, and a certain forecast that is right scores 0. "Shown": of the strategies that
ran to the race's end, the forecasts that a user sees. Rows of 100 steps and of automatic length are those of a race as
it is; races of exactly 50 and 200 steps are replayed with learning rates chosen at 50 and the warm-up of a race of 100.
"""


def _largest_core(figures: dict[str, Any] | None) -> list[str]:
    """Forecasts of the largest core's curves by the law of the smaller ones."""
    if figures is None:
        return ["No core larger than the others was run, so calibration across sizes is not known.", ""]
    return [
        "## The largest core",
        "",
        f"Swaps of the core of {figures['parameters']:,} parameters, by the law of the smaller ones: "
        f"{figures['swaps']} swaps, so the intervals are wide or empty.",
        "",
        *_decision_table(figures),
        "",
        *_coverage_table(figures["forecasts"]),
        "",
    ]


def _span(ends: list[float]) -> str:
    return f"({ends[0]:.2f} to {ends[1]:.2f})"


def _decision_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        "| race of | told | right of these | right of all | mean cost | median cost | Brier score | of the base rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["decisions"]:
        name = "automatic length" if row["race"] == "auto" else f"{row['race']} steps"
        lines.append(
            f"| {name} | {row['told']} of {row['runs']} {_span(row['told_interval'])} | "
            f"{row['right_of_told']} | {row['right']} "
            f"{_span(row['right_interval'])} | {row['mean_cost']:.2f} {_span(row['cost_interval'])} | "
            f"{row['median_cost']:.2f} | "
            f"{row['brier']:.3f} {_span(row['brier_interval'])} | {row['brier_of_base_rate']:.3f} |"
        )
    auto = next(row for row in figures["decisions"] if row["race"] == "auto")
    ends = ", ".join(f"{count} after {end}" for end, count in auto["ends"].items())
    return [*lines, "", f"Races of automatic length ended: {ends} steps."]


def _stated_table(figures: dict[str, Any]) -> list[str]:
    lines = ["| stated probability | answers (a swap counts once a race) | mean stated | right |", "|---|---|---|---|"]
    for row in figures["stated"]:
        lines.append(
            f"| {row['from']:g} to {row['to']:g} | {row['answers']} | {row['stated']:.2f} | {row['right']:.2f} |"
        )
    return lines


def _coverage_table(figures: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| forecasts after | of | number | censored | 80% intervals cover | 90% intervals cover | interval score |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in figures:
        for name, part in (("every strategy", row), ("shown", row["shown"])):
            cells = [
                "" if part[key] is None else f"{part[key]:.2f} {_span(part[f'{key}_interval'])}"
                for key in ("coverage_80", "coverage_90", "interval_score")
            ]
            lines.append(
                f"| {row['race']} steps | {name} | {part['forecasts']} | {part['censored']} | {' | '.join(cells)} |"
            )
    return lines


def _swap_table(rows: list[dict[str, Any]]) -> list[str]:
    names = ("reuse", "align", "align-blocks", "align+head", "lora", "cross-attention", "distill", "finetune")
    names += ("naive", "scratch")
    lines = [
        'Steps at which a strategy got there; "> n": it was run for n steps and did not.',
        "",
        "| base | candidate | " + " | ".join(names) + " | cheapest | the race said | probability | after | right |",
        "|---|---|" + "---|" * (len(names) + 5),
    ]
    for row in rows:
        steps = " | ".join(_steps(row, name) for name in names)
        lines.append(
            f"| {row['base']} | {_candidate(row)} | {steps} | {row['truth']} | {row['recommended']} | "
            f"{row['probability']:.2f} "
            f"| {row['race_steps']} | {'yes' if row['right'] else 'no'} |"
        )
    return lines


def _candidate(row: dict[str, Any]) -> str:
    name = row["candidate"].split("/")[-1] + (f" (seed {row['seed']})" if row["seed"] else "")
    return f"**{name}**" if row["study"] == "new" else name


def _savings(rows: list[dict[str, Any]]) -> list[str]:
    """What the cheapest strategy of every VAE swap takes of scratch's steps."""
    lines = [
        "## Against scratch",
        "",
        (
            'Steps to the base\'s quality. Scratch at its best rate of the sweep; where it did not get there ("> n"), '
            "the share is"
        ),
        "an upper bound.",
        "",
        "| base | candidate | cheapest | steps | scratch | share |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["kind"] == "vae" and row["scratch_ratio"] is not None:
            known = row["steps"]["scratch"] is not None
            share = f"{'' if known or not row['scratch_ratio'] else '< '}{row['scratch_ratio']:.1%}"
            cells = (
                row["base"],
                _candidate(row),
                row["truth"],
                str(row["steps"][row["truth"]]),
                _steps(row, "scratch"),
                share,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _steps(row: dict[str, Any], name: str) -> str:
    name = next((arm for arm in row["steps"] if name in (arm, arm.partition("@")[0])), name)
    if name not in row["steps"]:
        return ""
    if row["steps"][name] is not None:
        return str(row["steps"][name])
    return f"> {row['run_to'][name]}" if row["run_to"][name] else "no"


def performance() -> str:
    """docs/performance.md with its table filled anew; the text around it, and rows of other studies, stay."""
    page = (ROOT / "docs" / "performance.md").read_text()
    rows = {}
    for row in json.loads((RESULTS / "performance.json").read_text()):
        values = f"{row['ratio']:.3g} | {row['low']:.3g} to {row['high']:.3g} | {row['meaning']} | {row['peer']}"
        rows[row["name"]] = f"| {row['name']} | {values} | {row['date']} | `{row['command']}` |"
    head, line, rest = page.partition("|---|---|---|---|---|---|---|\n")
    table, blank, after = rest.partition("\n\n")
    lines = {match[1]: match[0] for match in re.finditer(r"^\| (.+?) \|.*$", table, re.M)} | rows
    return head + line + "\n".join(lines.values()) + blank + after


def scale() -> str:
    """docs/scale.md with its measured table filled anew; the text around it stays."""
    page = (ROOT / "docs" / "scale.md").read_text()
    lines = ["| what | goal | value | met | measured |", "|---|---|---|---|---|"]
    for row in read("scale.json").values():
        of = f"{row['date']}, load {row['load']:g} on {row['cores']} cores"
        for told in row["lines"]:
            met = "yes" if told["met"] else "**no**"
            lines.append(
                f"| {told['what']} | {told['goal']} | {told['value']:,} | {met} | {cell(told['measured'])} ({of}) |"
            )
    if len(lines) == 2:
        lines = ["Not measured yet."]
    head, begin, rest = page.partition("<!-- measured: begin -->\n")
    _, end, after = rest.partition("<!-- measured: end -->")
    return head + begin + "\n".join(lines) + "\n" + end + after


RELIABLE = "| Is the recommended strategy the cheapest one? |"


def readme() -> str:
    """README.md with the answer on the race filled anew; the text around it stays."""
    page = (ROOT / "README.md").read_text()
    study = read("decision_study.json")
    swap, base = ({row["race"]: row for row in study[key]["decisions"]}["auto"] for key in LEFT_OUT.values())
    intervals = [
        next(row["shown"] for row in study[key]["forecasts"] if row["race"] == 50) for key in LEFT_OUT.values()
    ]
    low, high = intervals[0]["coverage_80_interval"]
    new = sum(row["study"] == "new" for row in study["swaps"])
    cores = {
        f"{end / 1e6:.1f}" for known in study["constants"]["calibrated_for"].values() for end in known["parameters"]
    }
    unit = {row["study"] for row in study["swaps"] if row["kind"] == "text_encoder"}
    answer = (
        f"{swap['runs']} races of {study['constants']['swaps']} swaps, {new} of them of the larger study, each judged "
        "by constants fitted to the other swaps: races of automatic length could tell in "
        f"{swap['told']} of {swap['runs']}, {swap['right_of_told']} of them right, at {swap['mean_cost']:.2f} of the "
        f"mean cost of a race of 100 steps; with a whole base left out {base['told']} of {base['runs']}, "
        f"{base['right_of_told']} right. 80% intervals cover {intervals[0]['coverage_80']:.2f} of the forecasts shown "
        f"after 50 steps (90% bootstrap interval {low:.2f} to {high:.2f}; runs that ended early accounted for), "
        f"{intervals[1]['coverage_80']:.2f} with a base left out. Cores of {' to '.join(sorted(cores))} M parameters"
        f"{', text encoders in an earlier unit' if unit == {'earlier'} else ''}. The law was chosen on these curves; "
        "the evaluation third of the larger study is in none of these figures. Near swaps take "
        f"{study['near_steps_ratio']:.0%} of scratch's steps, {study['near_steps_most']:.0%} at most "
        "([docs/decision-study.md](docs/decision-study.md), "
        f"[docs/forecast.md](docs/forecast.md)) | `{study['command']}` |"
    )
    head, line, rest = page.partition(RELIABLE)
    return head + line + " " + answer + rest[rest.index("\n") :]


PAGES = {
    "README.md": readme,
    "docs/codes.md": codes,
    "docs/decision-study.md": decisions,
    "docs/gates.md": render_gates,
    "docs/performance.md": performance,
    "docs/scale.md": scale,
    "docs/zoo.md": zoo,
}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (ROOT / page).write_text(render())
        print(page)
