"""How memory and time grow with the number of images: prints the table of docs/scale.md, and measures its rows.

    python experiments/benchmarks/scale.py                      # every row that was not measured yet
    python experiments/benchmarks/scale.py --rows index,loop    # these, anew
    python experiments/benchmarks/scale.py --print              # what was measured

Images are small and made here (48 px, in tar shards of 1,000). A row runs in processes of its own and is kept in
experiments/results/scale.json as soon as it is done, so that a run that was stopped goes on with the next one.
`python experiments/write_docs.py` puts the table into docs/scale.md.
"""

import argparse
import datetime
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from scale_rows import ROWS, Asked

RESULT = Path(__file__).parent.parent / "results" / "scale.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help=f"of {','.join(ROWS)}; by default those that were not measured yet")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument("--sizes", default="2000,20000,200000", help="images of live training; the last two compared")
    parser.add_argument("--added", type=int, default=10_000, help="images of the cache that grows by one")
    parser.add_argument("--virtual", type=int, default=10_000_000, help="images that statistics read")
    parser.add_argument("--indexed", type=int, default=200_000, help="images of the index by two processes")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sanakit-scale")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ["SANAKIT_CACHE"] = str(arguments.work / "cache")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    asked = Asked(
        work=arguments.work,
        sizes=tuple(int(size) for size in arguments.sizes.split(",")),
        added=arguments.added,
        virtual=arguments.virtual,
        indexed=arguments.indexed,
        kills=arguments.kills,
    )
    rows: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    names = arguments.rows.split(",") if arguments.rows else [name for name in ROWS if name not in rows]
    for name in [] if arguments.print else names:
        lines = ROWS[name](asked)
        facts = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "load": round(os.getloadavg()[1], 1)}
        rows[name] = {"lines": lines} | facts | {"cores": os.cpu_count()}
        ordered = {key: rows[key] for key in ROWS if key in rows}
        RESULT.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        show(rows[name])
    if arguments.print:
        for row in rows.values():
            show(row)


def show(row: dict[str, Any]) -> None:
    for told in row["lines"]:
        met = "yes" if told["met"] else "NO"
        print(f"{told['what']:80} {told['value']:>9,} {told['goal']:>8} {met:>4}", flush=True)
        print(f"    {told['measured']}; load {row['load']} on {row['cores']} cores, {row['date']}", flush=True)


if __name__ == "__main__":
    main()
