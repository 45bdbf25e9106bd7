"""Plant every fault and run every clean system; write experiments/results/fault_catalogue.json.

python experiments/faults/fault_catalogue.py [--count 192]    then python experiments/write_docs.py
With --only TEXT... the rows whose name holds one of the texts are measured again, the others stay.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sanakit.contracts import Verdict
from sanakit.files import cache_dir

OUT = Path(__file__).parents[1] / "results" / "fault_catalogue.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=192, help="images and prompts of every system")
    parser.add_argument("--only", nargs="+", default=[], help="measure again what holds one of these texts in its name")
    arguments = parser.parse_args()
    count = arguments.count
    sys.path.insert(0, str(Path(__file__).parent))
    from faults import FAULTS, World, clean_systems

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), count)
        kept = json.loads(OUT.read_text()) if arguments.only else {"faults": [], "clean": []}
        known = {row.get("fault") or row["system"]: row for row in kept["faults"] + kept["clean"]}

        def again(name):
            return not arguments.only or any(text in name for text in arguments.only) or name not in known

        def measure(name, work):
            return show(timed(work)) if again(name) else known[name]

        faults = [measure(f.name, lambda f=f: f.run(world)) for f in FAULTS]
        clean = [measure(n, lambda n=n, j=j: evaluate_clean(n, j(world))) for n, j in clean_systems()]
    result = {
        "faults": [{k: v for k, v in row.items() if k != "seconds"} for row in faults],
        "clean": clean,
        "summary": {
            "faults": len(faults),
            "caught": sum(row["caught"] for row in faults),
            "named_cause": sum(row["named_cause"] for row in faults),
            "caught_before_full": sum(row["caught"] and row["stage"] != "full" for row in faults),
            "clean": len(clean),
            "alarms": sum(row["verdict"] == "fail" for row in clean),
        },
        "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "threads": 1, "torch": torch.__version__},
        "command": f"python experiments/faults/fault_catalogue.py --count {count}",
    }
    text = json.dumps(result, indent=1)
    for path in (folder, cache_dir()):  # no path of this machine
        text = text.replace(f"{path}/", "")
    OUT.write_text(text + "\n")
    print(OUT, json.dumps(result["summary"]))


def evaluate_clean(name: str, results: list[Any]) -> dict[str, Any]:
    """A clean system's verdict, and what it read."""
    verdict = Verdict.worst([r.verdict for r in results])
    alarms = [f"{r.gate} {r.value:.4g}" for r in results if r.verdict != Verdict.PASS]
    return {"system": name, "verdict": str(verdict), "gates": len(results), "not_passed": alarms}


def timed(work: Any) -> dict[str, Any]:
    start = time.perf_counter()
    row: dict[str, Any] = work()
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def show(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
