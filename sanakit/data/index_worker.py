"""python -m sanakit.data.index_worker TASK HOME: read parts of an index, one line of JSON on standard output for each.

Started by data/index.py. It imports no torch.
"""

import json
import sys
from pathlib import Path

from sanakit.data.index import read_part
from sanakit.data.part import PartPlan
from sanakit.errors import SanakitError


def main() -> None:
    """Read every part of the task; a part that is refused is told with its code, and the others are read."""
    task, home = sys.argv[1:]
    for fields in json.loads(Path(task).read_text(encoding="utf-8")):
        part = PartPlan(**fields)
        answer = {"part": part.key}
        try:
            read_part(part, Path(home))
        except SanakitError as error:
            answer |= {"code": error.code, "found": error.found, "cause": error.cause, "fix": error.fix}
        except OSError as error:
            answer |= {"code": "SK0903", "found": f"cannot write {home}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
