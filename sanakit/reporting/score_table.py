"""Scores of samples of several systems as one table: runs that went through stage full, each beside its own base, and
files that `sanakit evaluate --out` wrote."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sanakit.errors import SanakitError
from sanakit.reporting.charts import is_number
from sanakit.reporting.samples import BETTER, WORSE, evaluated_rows

Row = dict[str, Any]
PROTOCOL = ("num_prompts", "num_seeds", "seed", "num_steps", "guidance_scale", "data_fingerprint")


def scores_of_run(validation: Mapping[str, Any]) -> Row:
    """What a row of the leaderboard holds of evaluation.json: `scores` and the numbers that they were drawn with."""
    evaluation = validation.get("evaluation") or {}
    return {"scores": evaluated_rows(evaluation), "scored_with": {key: evaluation.get(key) for key in PROTOCOL}}


def read_scores(path: Path) -> Row:
    """A file of `sanakit evaluate --out` as a row of the table. Raises SK0104 for any other file."""
    fix = "`sanakit evaluate --model M --data D --out FILE` writes one."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        scores = [
            {"label": f"{one['metric']} ({one['features']})" if one["features"] else one["metric"]}
            | {"candidate": one["value"], "base": None, "true": one["of_true_images"], "better": one["better"]}
            | {"sense": "", "note": one["error"]}
            for one in record["scores"]
        ]
        facts = {"candidate": str(record["model"]), "run": f"{path.name}, images of {record['data']}"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"--scores {path} holds no scores ({type(error).__name__}: {error})"
        raise SanakitError("SK0104", told, fix=fix) from error
    return {**facts, "rank": None, "scores": scores, "scored_with": {key: record.get(key) for key in PROTOCOL}}


def score_table(rows: Sequence[Row]) -> Row:
    """`labels` of the columns with which side is better and what true images score, and `rows`: name, run, said, and a
    cell a label. rows: of the leaderboard and of `read_scores`; those without scores are left out."""
    scored = [row for row in rows if row["scores"]]
    labels: dict[str, Row] = {}
    for row in scored:
        for one in row["scores"]:
            if labels.get(one["label"], {}).get("true") is None:
                labels[one["label"]] = {"better": one["better"], "true": one["true"]}
    return {
        "labels": labels,
        "rows": [
            {"name": f"{row['rank']}. {row['candidate']}" if row["rank"] else row["candidate"], "run": row["run"]}
            | {"said": f"{_beside_base(row['scores'])}{drawn_with(row['scored_with'])}"}
            | {"cells": {one["label"]: one for one in row["scores"]}}
            for row in scored
        ],
    }


def _beside_base(scores: Sequence[Row]) -> str:
    """`beside its base better in 1, worse in 2 of 6; `; empty where no base was scored."""
    compared = [one["sense"] for one in scores if is_number(one["base"])]
    count = Counter(compared)
    if not compared:
        return ""
    return f"beside its base better in {count[BETTER]}, worse in {count[WORSE]} of {len(compared)}; "


def drawn_with(protocol: Mapping[str, Any]) -> str:
    """`16 prompts, 2 samples each, seed 0, 24 steps, guidance 3, data 1a2b3c4d`; files of earlier versions do not state
    the last three."""
    told = f"{protocol['num_prompts']} prompts, {protocol['num_seeds']} samples each, seed {protocol['seed']}"
    steps, guidance, data = (protocol.get(key) for key in ("num_steps", "guidance_scale", "data_fingerprint"))
    told += f", {steps} steps" if steps else ""
    told += f", guidance {guidance:g}" if is_number(guidance) else ""
    return told + (f", data {str(data)[:8]}" if data else "")


def score_warnings(rows: Sequence[Row]) -> list[str]:
    """Where scores were not drawn alike: numbers of prompts, samples and steps, seed, guidance and data."""
    told = dict.fromkeys(drawn_with(row["scored_with"]) for row in rows if row["scores"])
    if len(told) < 2:
        return []
    return [f"The samples were not drawn alike ({'; '.join(told)}): their scores are not ranked against each other."]
