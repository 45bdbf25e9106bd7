"""A/A calibration: what every gate reads of clean systems (clean_runs.py), against its thresholds.

python experiments/faults/calibrate_gates.py    then python experiments/write_docs.py
About half an hour on one core. Each system is kept under runs/calibration as soon as it is measured; the same command
goes on after an interruption, and measures again what hangs on another base core. Writes
experiments/results/gate_calibration.json.

The rule: of the worst clean system, q is the 95% quantile of its readings towards the threshold and s the way from its
median to q. A strict threshold leaves s beyond q, a default one 2 s, and both stand short of the nearest planted fault.
"""

import argparse
import ast
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sanakit.checks
from sanakit.checks.policy import Policy, rules
from sanakit.contracts import GateResult, Verdict
from sanakit.hashing import hash_module, hash_record

OUT = Path(__file__).parents[1] / "results" / "gate_calibration.json"
KEPT = Path("runs") / "calibration"
APART = ("stage.py", "policy.py", "causes.py", "evidence.py")  # they evaluate, and measure nothing
JUDGING = ("default", "strict", "at_least", "at_most", "above", "definition")  # arguments of a rule
MARGIN = {"strict": 1.0, "default": 2.0}  # ways from the median to the quantile that a threshold leaves beyond it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--count", type=int, default=384, help="images and prompts that splits of stage component are drawn from"
    )
    parser.add_argument("--splits", type=int, default=8, help="random splits of them")
    parser.add_argument("--seeds", type=int, default=2, help="of every swap from end to end")
    parser.add_argument(
        "--kept", action="store_true", help="measure nothing: write what is kept, and say what is missing"
    )
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from clean_runs import CleanWorld, pieces

    torch.set_num_threads(1)
    rows, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        world = CleanWorld(Path(folder), arguments.count)
        base, code = hash_module(world.base.core), sources()
        for piece in pieces(arguments.splits, arguments.seeds):
            facts = {"system": piece.system, "code": code, "base": None if piece.stage == "component" else base}
            facts |= {"count": arguments.count, "size": piece.size, "data": world.image_set.fingerprint}
            path = KEPT / f"{hash_record(facts)[:20]}.json"
            if arguments.kept and not path.is_file():
                missing.append(piece.system)
            else:
                rows += kept_or_measured(path, piece, world)
    sizes = {k: v for k, v in vars(arguments).items() if k != "kept"}
    command = "python experiments/faults/calibrate_gates.py" + "".join(f" --{k} {v}" for k, v in sizes.items())
    by_gate: dict[str, list[tuple[str, GateResult]]] = {}
    for system, result in rows:
        by_gate.setdefault(result.gate, []).append((system, result))
    gates = [calibrated(gate, readings) for gate, readings in by_gate.items()]
    systems = list(dict.fromkeys(system for system, _ in rows))
    result = {"gates": gates, "systems": systems, "missing": missing, "command": command}
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(OUT)


def sources() -> str:
    """Hash of the code that measures, without docstrings and thresholds: another gate or probe reads other numbers."""
    files = [path for path in sorted(Path(sanakit.checks.__file__).parent.glob("*.py")) if path.name not in APART]
    return hash_record([code_of(path.read_text()) for path in files])


def code_of(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in JUDGING]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def kept_or_measured(path: Path, piece: Any, world: Any) -> list[tuple[str, GateResult]]:
    """System and result of every run and gate, evaluated by the thresholds of today."""
    if not path.is_file():
        start = time.perf_counter()
        rows = [r.as_dict() for results in piece.measure(world) for r in results]
        print(f"{piece.stage} {piece.system}: {time.perf_counter() - start:.0f} s", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows))
        temporary.replace(path)
    results = [GateResult.from_dict(row) for row in json.loads(path.read_text())]
    return [(piece.system, result) for result in Policy().apply(results)]


def calibrated(gate: str, rows: list[tuple[str, GateResult]]) -> dict[str, Any]:
    """Towards the threshold: the worst system's 95% quantile, what the rule asks for, and what the verdicts were."""
    at_least, verdicts = rows[0][1].at_least, [result.verdict for _, result in rows]
    sign = 1.0 if at_least else -1.0  # sign * value: the larger, the better
    goodness: dict[str, list[float]] = {}
    for system, result in rows:
        goodness.setdefault(system, []).append(sign * result.value)
    low = {system: float(np.quantile(values, 0.05)) for system, values in goodness.items()}
    worst = min(low, key=lambda system: low[system])
    way = float(np.median(goodness[worst])) - low[worst]
    limits = {name: getattr(rules()[gate], name) for name in ("default", "strict")}
    asked = {name: low[worst] - share * way for name, share in MARGIN.items()}
    return {
        "gate": gate,
        "at_least": at_least,
        **limits,
        "runs": len(rows),
        "systems": len(goodness),
        "worst_system": worst,
        "quantile": sign * low[worst] + 0.0,  # no minus zero
        "worst": sign * min(min(values) for values in goodness.values()) + 0.0,
        "median_of_all": sign * float(np.median(np.concatenate(list(goodness.values())))),
        **{f"asked_{name}": sign * value for name, value in asked.items()},
        **{f"clears_{name}": bool(sign * limits[name] <= value) for name, value in asked.items()},
        "failed": verdicts.count(Verdict.FAIL),
        "undecided": verdicts.count(Verdict.INCONCLUSIVE),
    }


if __name__ == "__main__":
    main()
