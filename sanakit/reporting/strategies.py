"""Strategies in the report: the race with its forecasts, loss curves, and what each would cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from sanakit.reporting import conclusions
from sanakit.reporting.charts import Series, forecast_bar, is_number, legend, line_chart
from sanakit.reporting.ci import share
from sanakit.reporting.page import duration, number, panel

Row = dict[str, Any]

WHY_ENDED = {
    "told": "its answer was sure enough",
    "steps": "its steps were spent",
    "time": "no further step would have fitted into the time limit",
}
FORECAST = ("predicted_steps", "predicted_steps_low", "predicted_steps_high")
OUTCOME = ("initial_loss", "held_out_loss", "relative_error", "learning_rate", "trained_parameters")
CANDIDATE = dict.fromkeys((*FORECAST, *OUTCOME, "diverged", "dropped")) | {"title": "", "raced": True}
FORECAST_SHOWN = 4.0  # lengths of the race: a forecast further out is drawn to here


def chosen_word(strategy: Row) -> str:
    """What the strategy that a race names is called: where none is expected to arrive, it is only the nearest."""
    return "recommended" if strategy.get("in_sight", True) else "nearest"


def race_answer(strategy: Row) -> list[str]:
    """What a race says, in sentences: the answer with its probability, why it ended, and where its probability is not
    calibrated. Empty for runs of earlier versions."""
    if strategy.get("probability") is None:
        return []
    name, horizon = strategy["recommended"], f"{strategy['horizon']:,} steps"
    best: Row = next((c for c in strategy["candidates"] if c["name"] == name), {})
    ended = f"the race ended after {strategy['budget_steps']:,} steps: {WHY_ENDED[strategy['stopped_by']]}"
    if strategy["in_sight"] and best.get("predicted_steps") == 0:  # measured, so no probability is needed
        told = f"{name} has the base's quality before any step: nothing has to be trained"
        return [told, ended] if strategy["budget_steps"] else [told]
    sure, within = share(strategy["probability"]), share(strategy["probability_within_horizon"])
    if strategy["in_sight"]:
        margin = f"{strategy['margin'] - 1:.0%}"
        told = f"{name} is within {margin} of the cheapest with probability {sure}; "
        told += f"reaches the base's quality within {horizon} with {within}"
        told += _interval(best)
    else:
        told = f"no strategy is expected to reach the base's quality within {horizon}, with probability {sure}; "
        told += f"{name} is nearest"
    return [told, ended, *([strategy["extrapolated"]] if strategy.get("extrapolated") else [])]


def _interval(row: Row) -> str:
    """The interval of a forecast in words; empty where the arrival was measured, or where nothing was forecast."""
    low, high = row.get("predicted_steps_low"), row.get("predicted_steps_high")
    if low is None or low == high:
        return ""
    return f" ({row['interval']:.0%} interval {low:,.0f} to {'open' if high is None else f'{high:,.0f}'} steps)"


def left_at(row: Row, race: Row) -> int | None:
    """The step at which an arm left the race because it was clearly worse; None for one that arrived or ran to the
    end."""
    steps, budget = row.get("steps") or [], race.get("budget_steps")
    if row.get("dropped"):
        return int(steps[-1]) if steps else 0
    arrived = is_number(row.get("predicted_steps")) and steps and row["predicted_steps"] <= steps[-1]
    if not steps or not budget or not 0 < steps[-1] < budget or arrived or row.get("finalist", True):
        return None
    return int(steps[-1])


def outcome(row: Row, race: Row) -> str:
    """What the race says of a strategy. A forecast means something for one that arrived or ran to the end; of any other
    it is said why it left."""
    if not row.get("raced", True):
        return "not trained (--controls)"
    if row.get("diverged"):
        return "diverged"
    left = left_at(row, race)
    return steps_text(row) if left is None else f"left: {why_left(row, left)}"


def why_left(row: Row, step: int | None) -> str:
    """The reason that strategy.json states; runs of earlier versions dropped an arm for one reason only."""
    return str(row.get("dropped") or f"clearly worse at step {step}")


def steps_text(row: Row) -> str:
    steps, low, high = (row.get(f"predicted_steps{end}") for end in ("", "_low", "_high"))
    known = "not in sight" if steps is None else f"{steps:,.0f}"
    return known if low is None else f"{known} ({low:,.0f} to {'open' if high is None else f'{high:,.0f}'})"


def with_forecast_bars(candidates: list[Row], race: Row) -> list[Row]:
    """Rows of the table: what is told of each, and a bar for a forecast that means something."""
    told = [c | {"left": (left := left_at(c, race)), "left_why": why_left(c, left)} for c in candidates]
    means = [c for c in told if c["left"] is None and c["raced"] and not c["diverged"]]
    limit = max((c[n] for c in means for n in FORECAST if is_number(c[n])), default=0.0) or 1.0
    return [
        c
        | {
            "bar": forecast_bar(c["predicted_steps"], c["predicted_steps_low"], c["predicted_steps_high"], limit)
            if c in means
            else ""
        }
        for c in told
    ]


def prompt_gains(race: Row) -> list[Row]:
    """What prompts are worth on held-out images, over all captions and by kind, in a swap of the text encoder."""
    gains = race.get("prompt_gain")
    by_kind = gains if isinstance(gains, Mapping) else {}
    none = dict.fromkeys(("candidate", "base", "images"))
    return [none | dict(gain) | {"captions": kind} for kind, gain in by_kind.items() if isinstance(gain, Mapping)]


def race_chart(candidates: Sequence[Row], race: Row, colours: Mapping[str, int]) -> list[Row]:
    """Every strategy's error over the base's by step, the base's level, and where each is forecast to arrive there."""
    goal, budget = (1.0 if race.get("target") else None), race.get("budget_steps") or 0
    lines: list[Series] = []
    bands: list[Series] = []
    rows: list[list[Any]] = []
    for c in (c for c in candidates if c["raced"]):  # a control before any step would stretch the axis
        points = [(step + 1, e) for step, e in zip(c.get("steps") or [], c.get("relative_errors") or [], strict=False)]
        if not points:
            continue
        lines.append((c["name"], points))
        rows += [[c["name"], "measured", step - 1, e] for step, e in points]
        low, high = c["predicted_steps_low"], c["predicted_steps_high"]
        last = points[-1]
        if is_number(goal) and is_number(low) and low + 1 > last[0] and budget and left_at(c, race) is None:
            edge = FORECAST_SHOWN * budget
            ends = [min(low + 1, edge), min(high + 1 if is_number(high) else edge, edge)]
            bands.append((c["name"], [last, *((x, goal) for x in ends)]))
            rows += [[c["name"], label, x, goal] for label, x in (("forecast, early", low), ("forecast, late", high))]
    if not moved(lines):  # nobody was trained: the table says all
        return []
    title = "The race: error over the base's, with forecast bands"
    options: Row = {"x_label": "step + 1", "y_label": "error over the base's", "colours": colours}
    svg = line_chart(lines, title=title, log_x=True, limit=goal, bands=bands, **options)
    note = f"Dashed: the base. Shaded: between the early and the late end of the forecast ({level(race)}), "
    note += "cut at four lengths of the race."
    return panel(
        title,
        svg,
        ["strategy", "kind", "step", "error over the base's"],
        rows,
        key=legend([n for n, _ in lines], colours),
        note=note,
        says=conclusions.nearest_at_the_end(lines),
    )


def moved(lines: Sequence[Series]) -> bool:
    """Whether the lines reach over more than one step."""
    return len({point[0] for _, points in lines for point in points}) > 1


def level(race: Row) -> str:
    """Of a run's intervals; runs of earlier versions do not name it."""
    return f"{race.get('interval', 0.9):.0%}"


def distance_chart(candidates: Sequence[Row], colours: Mapping[str, int]) -> list[Row]:
    """Feature distance to the base by depth before any step;
    a start that several strategies share under the first's name."""
    starts: dict[str, Mapping[str, list[float]]] = {}
    for c in candidates:
        distances = c.get("feature_distance")
        if isinstance(distances, Mapping) and distances not in starts.values():
            starts[c["name"]] = distances
    if not starts:
        return []
    sigmas = list(next(iter(starts.values())))
    middle = sigmas[len(sigmas) // 2]
    lines: list[Series] = [(name, list(enumerate(distances.get(middle) or []))) for name, distances in starts.items()]
    rows = [
        [name, sigma, depth, value]
        for name, distances in starts.items()
        for sigma, values in distances.items()
        for depth, value in enumerate(values)
    ]
    title = f"Feature distance to the base before any step, sigma {middle}"
    options: Row = {"x_label": "depth (0 = patch embedding)", "y_label": "relative squared distance"}
    svg = line_chart(lines, title=title, colours=colours, **options)
    note = "Strategies that start alike share a line."
    columns = ["start", "sigma", "depth", "relative squared distance"]
    says = conclusions.nearest_start({name: by_noise.get(middle) or [] for name, by_noise in starts.items()})
    return panel(title, svg, columns, rows, key=legend([name for name, _ in lines], colours), note=note, says=says)


def loss_curves(stage: str, metrics: Sequence[Row], colours: Mapping[str, int]) -> list[Row]:
    split: dict[str, dict[str, list[tuple[float, float]]]] = {"held_out": {}, "train": {}}
    for row in metrics:
        if row["stage"] == stage and row["split"] in split:
            split[row["split"]].setdefault(row["strategy"], []).append((row["step"], row["loss"]))
    held_out, train = list(split["held_out"].items()), list(split["train"].items())
    if not moved(held_out):
        return []
    title = f"Held-out velocity loss, stage {stage}"
    svg = line_chart(held_out, title=title, x_label="step", y_label="loss", faint=train, colours=colours)
    rows = [
        [name, kind, *point]
        for kind, lines in (("held-out", held_out), ("train", train))
        for name, points in lines
        for point in points
    ]
    note = "Thin lines: training loss." if train else ""
    return panel(
        title,
        svg,
        ["strategy", "split", "step", "loss"],
        rows,
        key=legend([n for n, _ in held_out], colours),
        note=note,
        says=conclusions.lowest_at_the_end(held_out, "held-out loss"),
    )


def loss_by_sigma(stage: str, metrics: Sequence[Row], colours: Mapping[str, int]) -> list[Row]:
    """Each strategy's last held-out loss, split by sigma."""
    last: dict[str, Row] = {}
    for row in metrics:
        if row["stage"] == stage and row["split"] == "held_out" and row.get("by_sigma"):
            last[row["strategy"]] = max(row, last.get(row["strategy"], row), key=lambda r: r["step"])
    series = [(name, [(float(s), loss) for s, loss in row["by_sigma"].items()]) for name, row in last.items()]
    title = f"Loss by sigma at the last step, stage {stage}"
    svg = line_chart(series, title=title, x_label="sigma (1 = noise)", y_label="loss", colours=colours)
    rows = [[name, last[name]["step"], *point] for name, points in series for point in points]
    columns, says = ["strategy", "step", "sigma", "loss"], conclusions.largest_loss(series)
    return panel(title, svg, columns, rows, key=legend(list(last), colours), says=says)


def cost_rows(stages: Sequence[Row], candidates: Sequence[Row]) -> list[list[Any]]:
    """What was spent, and what each strategy's forecast would cost on the same machine."""
    rows: list[list[Any]] = [[f"stage {s['name']}", duration(s["seconds"]), ""] for s in stages]
    for c in candidates:
        rate, steps = c.get("seconds_per_step"), c["predicted_steps"]
        if is_number(rate) and rate and is_number(steps):
            once = (c.get("seconds_once") or 0.0) if steps else 0.0
            source = f"{number(steps)} steps of {rate * 1000:.0f} ms" + (f", {duration(once)} before" if once else "")
            rows.append([f"{c['name']}, forecast", duration(once + rate * steps), source])
    return rows
