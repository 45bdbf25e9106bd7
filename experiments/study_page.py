"""docs/decision-study.md and README's answer on the race: the studies' figures, the evaluation third's verdict, and the
plan of the study.
"""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
sys.path.append(str(ROOT / "experiments" / "studies"))

import study_plan  # noqa: E402
from decision_study import done_runs  # noqa: E402

DECISIONS_INTRO = """# Is the smoke stage right?

After this page you know how often the race recommends the cheapest strategy, what its stated probability is worth, and
on which swaps that was measured. The model behind the probability is in [forecast.md](forecast.md).

Written by `python experiments/write_docs.py` from `experiments/results/decision_study.json`; `{command}`
writes that file and the constants of the forecast (`sanakit/swap/forecast.json`). **What was measured:** {runs} runs of
{swaps} swaps on three bases (tiny-sana: 5.9 M parameters at 96 px; the study's own: 1.3 M at 64 px), of
{done} of {planned} runs that are planned ([below](#the-study)). Every strategy of a swap was trained on, and races are
replayed from those runs. {third}

**Left out.** No race is replayed under constants that its own swap helped to fit: the law is fitted to the other swaps
(leave one swap out, both seeds of it), and once more to the swaps of the other bases (leave one base out). Figures in
brackets are 90% bootstrap intervals over swaps. They do not count what was chosen while looking at these same curves:
the form of the law, the probability at which a race ends ({tells:g}) and the rule that nobody leaves a race for noise.
(The law's form was chosen on the curves of an earlier study, of whose swaps this one repeats some on other bases; those
curves are in none of the figures.)

**Reached** means a relative error of at most 1.05 (VAE) or 1.15 (text encoder), 1 being the base
([strategies.md](strategies.md)). Cost is steps times the strategy's step time, and what distillation spends on the
base's trajectories first. **Right**: the recommended strategy reached the target at most 10% dearer than the cheapest,
or the race said "not in sight" where nobody got there. **Told**: the stated probability is at least {tells:g}. Controls
(naive, scratch) do not race.

**Read it with care.** One seed for most swaps. A strategy that had not arrived when its run ended counts as one that
does not arrive where a decision is judged, and as censored where a forecast is. The 128 held-out images are one random
sample of all sources.
"""


STUDY = """## The study

{done} of its {planned} runs are done. This section is its plan.

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


NOT_READ = """**What was not:** the evaluation third has not been read. No figure on this page is of
a swap that was kept back."""
WAS_READ = """**The last word** is that of the [evaluation third](#the-evaluation-third): swaps that nothing was chosen
on."""
EVALUATED = """## The evaluation third

{runs} runs of {swaps} swaps, read once, on {date}, by `python experiments/studies/decision_study.py evaluate`
(`experiments/results/study_verdict.json`), under constants fitted to {fit_runs} runs of {fit_swaps} other swaps.{since}
Nothing was chosen on these swaps: not the constants, not the law's form, not the probability at which a race ends. What
counts was [written before](#the-study). Two things were known of it: its first runs were trained by a worker that
printed at which step a strategy ended, and a layer of Gemma-3 could not be kept in half precision, which was mended so
that this swap could be run.

To check the verdict: delete its file and run the command again. Under the committed constants it says the same.
"""


def read(name: str) -> dict[str, Any]:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else {}


def _filled(text: str) -> str:
    """Paragraphs broken at 120 letters."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(textwrap.fill(p, 120, break_long_words=False, break_on_hyphens=False) for p in paragraphs)


def decisions() -> str:
    """docs/decision-study.md, whole."""
    study = read("decision_study.json")
    numbers, plan = {key: study["constants"][key] for key in ("runs", "swaps")}, study_numbers()
    numbers |= {key: plan[key] for key in ("done", "planned")}
    verdict = read("study_verdict.json")
    intro = DECISIONS_INTRO.format(
        command=study["command"],
        tells=study["tells"],
        third=WAS_READ if verdict else NOT_READ,
        **numbers,
    )
    intro = _filled(intro)

    def number(key):
        return "not measured" if study[key] is None else f"{study[key]:g}"

    lines = [intro, "", *evaluation(verdict, study)]
    for title, key in LEFT_OUT.items():
        lines += [f"## {title}", "", *_decision_table(study[key]), "", *_stated_table(study[key]), ""]
        lines += [*_coverage_table(study[key]["forecasts"]), ""]
    lines += [*_largest_core(study["largest_core"]), FIGURES_READ]
    lines += [
        "## Swap by swap",
        "",
        "What races of automatic length said, leaving the swap out. A strategy begins at the closed form of lower "
        "error (`@align-blocks`: of every block).",
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
        STUDY.format(**plan),
        *_plan_table(),
    ]
    return "\n".join(lines) + "\n"


def evaluation(verdict: dict[str, Any], study: dict[str, Any]) -> list[str]:
    """What the evaluation third said, once it has been read."""
    if not verdict:
        return []
    fitted = verdict["constants"]
    first = verdict["groups"]["first seeds"]
    refitted = fitted["data"] != study["constants"]["data"]
    numbers = {"fit_runs": fitted["runs"], "fit_swaps": fitted["swaps"], "date": verdict["date"]}
    numbers |= {"runs": verdict["runs"], "swaps": verdict["swap_count"], "since": REFITTED if refitted else ""}
    near = study["near_steps_ratio"]
    lines = [_filled(EVALUATED.format(**numbers)), ""]
    lines += ["| asked of first seeds, races of automatic length | goal | measured | reached |", "|---|---|---|---|"]
    rows = [*verdict["goals"]]
    rows.append(
        {
            "asked": "near VAE swaps over scratch (of the fitting part)",
            "goal": "3% of the steps at most",
            "measured": f"{near:.1%} in the mean, {study['near_steps_most']:.1%} at most",
            "reached": near <= 0.03,
        }
    )
    for row in rows:
        reached = "yes" if row["reached"] else "**no**"
        lines.append(f"| {row['asked']} | {row['goal']} | {row['measured']} | {reached} |")
    left_open = sum(bool(row["open"]) for row in verdict["answers"] if row["race"] == "auto" and not row["seed"])
    lines += [
        "",
        f"Open answers among them: {left_open}.",
        "",
        NOT_REACHED,
        *_decision_table(first),
        "",
        *_stated_table(first),
        "",
    ]
    lines += [*_coverage_table(first["forecasts"]), "", "By kind of swap, base and size, all seeds:", ""]
    lines += [*_group_table(verdict["groups"]), ""]
    if larger := verdict["largest_core"]:
        told = f"{larger['swaps']} swaps of the core of {larger['parameters']:,} parameters"
        lines += [f"{told}, by a law fitted to the smaller cores alone:", "", *_decision_table(larger), ""]
        lines += [*_coverage_table(larger["forecasts"]), ""]
    return [*lines, *_swap_table(verdict["swaps"]), ""]


REFITTED = " The constants of today were fitted to more runs since."


NOT_REACHED = """**What was not reached, and why.**

- *Two answers of 16 were wrong.* pca-f16c64 into dc-minilm: after 50 steps the race says with .80 that nothing arrives
  within 2,000; `finetune` does after 736 (732 at the second seed). After 200 steps it would have said .64 and gone on.
  gemma-3-270m-gguf?layer=9 into pca-wordllama: the race names `distill` with .92, which had not arrived when its run
  ended at step 500; `cross-attention` arrives after 650. `distill` was not run on, so this answer is open, and by the
  rule below it counts as wrong. At the second seed `distill` arrives after 144 steps, and the race is right.
- *Near swaps over scratch.* In one of the five, pca-f16c48 into pca-wordllama, the cheapest strategy takes 842 steps;
  scratch had not arrived after 3,000, so its share is at most 28%. pca-rotated takes 9%, the other three 1% or less.
"""


def _group_table(groups: dict[str, Any]) -> list[str]:
    lines = [
        "| group | told | right of these | P of .9 or more | right of these | mean cost | Brier score | base rate's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in groups.items():
        row = next(row for row in figures["decisions"] if row["race"] == "auto")
        lines.append(
            f"| {name} | {row['told']} of {row['runs']} | {row['right_of_told']} | {row['sure']} | "
            f"{row['right_of_sure']} | {row['mean_cost']:.2f} | {row['brier']:.3f} | {row['brier_of_base_rate']:.3f} |"
        )
    return lines


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


def _length(row: dict[str, Any]) -> str:
    return "automatic length" if row["race"] == "auto" else f"{row['race']} steps"


def _decision_table(figures: dict[str, Any]) -> list[str]:
    lines = [
        "| race of | told | right of these | right of all | mean cost | median cost | Brier score | of the base rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["decisions"]:
        lines.append(
            f"| {_length(row)} | {row['told']} of {row['runs']} {_span(row['told_interval'])} | "
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
                f"| {_length(row)} | {name} | {part['forecasts']} | {part['censored']} | {' | '.join(cells)} |"
            )
    return lines


def _swap_table(rows: list[dict[str, Any]]) -> list[str]:
    names = ("reuse", "align", "align-blocks", "align+head", "lora", "cross-attention", "distill", "finetune")
    names += ("scratch",)
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
    return row["candidate"].split("/")[-1] + (f" (seed {row['seed']})" if row["seed"] else "")


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


RELIABLE = "| Is the recommended strategy the cheapest one? |"


def _third_in_a_sentence(verdict: dict[str, Any]) -> str:
    if not verdict:
        return "The evaluation third of the study has not been read. "
    first = verdict["groups"]["first seeds"]
    row = next(row for row in first["decisions"] if row["race"] == "auto")
    shown = next(row["shown"] for row in first["forecasts"] if row["race"] == "auto")
    low, high = shown["coverage_80_interval"]
    return (
        f"**{row['runs']} swaps that nothing was chosen on**, read once: races of automatic length told in "
        f"{row['told']}, {row['right_of_told']} of these right ({row['right_of_sure']} of {row['sure']} where the "
        f"stated probability was .9 or more), at {row['mean_cost']:.2f} of the mean cost of a race of 100 steps; 80% "
        f"intervals cover {shown['coverage_80']:.2f} (90% bootstrap interval {low:.2f} to {high:.2f}); Brier score "
        f"{row['brier']:.3f}, {row['brier_of_base_rate']:.3f} by always saying the base rate. "
    )


def readme() -> str:
    """README.md with the answer on the race filled anew; the text around it stays."""
    page = (ROOT / "README.md").read_text()
    study = read("decision_study.json")
    swap, base = ({row["race"]: row for row in study[key]["decisions"]}["auto"] for key in LEFT_OUT.values())
    intervals = [
        next(row["shown"] for row in study[key]["forecasts"] if row["race"] == 50) for key in LEFT_OUT.values()
    ]
    low, high = intervals[0]["coverage_80_interval"]
    cores = {
        f"{end / 1e6:.1f}" for known in study["constants"]["calibrated_for"].values() for end in known["parameters"]
    }
    answer = (
        f"{_third_in_a_sentence(read('study_verdict.json'))}On the swaps that the constants were fitted to, each left "
        f"out in turn: {swap['told']} of {swap['runs']} races told, {swap['right_of_told']} of them right, at "
        f"{swap['mean_cost']:.2f} of the mean cost of a race of 100 steps; with a whole base left out {base['told']} "
        f"of {base['runs']}, {base['right_of_told']} right. 80% intervals cover {intervals[0]['coverage_80']:.2f} of "
        f"the forecasts shown after 50 steps (90% bootstrap interval {low:.2f} to {high:.2f}; runs that ended early "
        f"accounted for), {intervals[1]['coverage_80']:.2f} with a base left out. Cores of "
        f"{' to '.join(sorted(cores))} M parameters. Near swaps take {study['near_steps_ratio']:.0%} of scratch's "
        f"steps in the mean or less, as scratch was not always there when it ended "
        "([docs/decision-study.md](docs/decision-study.md), "
        f"[docs/forecast.md](docs/forecast.md)) | `{study['command']}` |"
    )
    head, line, rest = page.partition(RELIABLE)
    return head + line + " " + answer + rest[rest.index("\n") :]
