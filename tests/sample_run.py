"""A made-up run folder with markup in every text, for the tests of pages."""

import json

EVIL = "<script>alert(1)</script>\"'&"


def verdict_alone(path):
    """A run folder that holds validation.json and nothing else."""
    gate = {
        "gate": "component/x",
        "code": "SK0203",
        "metric": EVIL,
        "value": 1.0,
        "ci_low": 0.5,
        "ci_high": 2.0,
        "threshold": 1.5,
        "verdict": "inconclusive",
        "hint": EVIL,
    }
    candidate = {
        "name": "finetune",
        "title": "t",
        "predicted_steps": None,
        "predicted_steps_low": 3.0,
        "predicted_steps_high": None,
        "initial_loss": 1.0,
        "held_out_loss": 0.5,
        "relative_error": 0.1,
        "trained_parameters": 12,
    }
    validation = {
        "schema_version": 1,
        "base": "base",
        "candidate": EVIL,
        "kind": "vae",
        "verdict": "inconclusive",
        "next": "sanakit ls",
        "stages": {"component": {"verdict": "inconclusive", "gates": [gate], "seconds": 2.0}},
        "strategy": {"recommended": "finetune", "candidates": [candidate]},
    }
    (path / "validation.json").write_text(json.dumps(validation))


def fill(run_dir):
    """Everything that older runs wrote."""
    (run_dir / "component.json").write_text(
        json.dumps(
            {
                "rows": [{"metric": "PSNR", "unit": "dB", "base": 20, "candidate": 21.5, "better": "higher"}],
                "channels": {
                    side: {m: [0.1, -0.2] for m in ("mean", "std", "skewness", "kurtosis")}
                    for side in ("base", "candidate")
                },
            }
        )
    )
    (run_dir / "plan.json").write_text(
        json.dumps(
            {
                "groups": [
                    {"group": "input", "action": "align", "parameters": 1, "parameters_before": 2, "note": EVIL}
                ],
                "notes": [EVIL],
            }
        )
    )
    rows = [
        {
            "stage": "smoke",
            "strategy": "finetune",
            "step": s,
            "split": "held_out",
            "loss": 1 / (s + 1),
            "by_sigma": {"0.1": 1, "0.9": 2},
        }
        for s in (0, 5, 10)
    ]
    rows += [row | {"split": "train", "by_sigma": None, "loss": row["loss"] * 0.9} for row in rows]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    reading = {
        "stage": "full",
        "name": "welch-max",
        "title": "t",
        "value": 3.0,
        "step": 5,
        "where": "channel 1",
        "ci_low": None,
        "ci_high": None,
        "p_value": 0.001,
        "threshold": 0.01,
        "alarm": True,
    }
    (run_dir / "readings.jsonl").write_text(json.dumps(reading) + "\n")
    (run_dir / "figures").mkdir()
    (run_dir / "figures" / "a.png").write_bytes(b"\x89PNG")
    (run_dir.parent / "outside.png").write_bytes(b"\x89PNG")
    (run_dir / "figures.json").write_text(
        json.dumps(
            [
                {"section": "samples", "title": "inside", "caption": EVIL, "file": "figures/a.png"},
                {"section": "samples", "title": "outside the folder", "caption": "", "file": "../outside.png"},
            ]
        )
    )
    (run_dir / "ledger.jsonl").write_text(json.dumps({"name": EVIL, "reason": EVIL}) + "\n")
    (run_dir / "provenance.json").write_text(json.dumps({"git": {"commit": "abc"}}))
    (run_dir / "config.yaml").write_text("base: x\n")


def chart_files(run_dir):
    """What the newer sections of the report are drawn from."""
    channels = {
        side: {"mean": [0.1, -0.2], "std": [1.0, 0.5], "skewness": [0, 1], "kurtosis": [2, 3]}
        for side in ("base", "candidate")
    }
    curve = {
        "title": "Power spectra",
        "x": "half cycles per image",
        "y": "share",
        "series": {"images": [[1, 0.9], [2, 0.1]]},
    }
    component = {
        "rows": [],
        "channels": channels,
        "curves": [curve],
        "prompts": [EVIL, "b"],
        "similarity": {"candidate": [[1, 0.2], [0.2, 1]]},
    }
    (run_dir / "component.json").write_text(json.dumps(component))
    validation = json.loads((run_dir / "validation.json").read_text())
    validation["policy"] = {"name": "strict"}
    validation["stages"]["component"]["gates"][0] |= {"samples": 100, "samples_needed": 250, "at_least": True}
    race = {
        "steps": [0, 4, 8],
        "relative_errors": [2.0, 1.6, 1.4],
        "predicted_steps": 20,
        "predicted_steps_low": 15,
        "seconds_per_step": 0.5,
        "feature_distance": {"0.1": [0.5, 0.4], "0.5": [0.3, 0.25], "0.9": [0.2, float("nan")]},
    }
    validation["strategy"]["candidates"][0] |= race
    (run_dir / "validation.json").write_text(json.dumps(validation))
    (run_dir / "strategy.json").write_text(json.dumps({"budget_steps": 8, "target": {"measure": "x"}}))
