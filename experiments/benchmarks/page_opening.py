"""How long a page takes to open in a real headless Chromium: from navigation to a finished layout, on this machine.

python experiments/benchmarks/page_opening.py reports/*.html [--repeats 5]
Prints one JSON line a page: bytes, and milliseconds, median and worst. Scripts are forbidden inside a page, so a page
around it loads it in a frame and reads the frame's own clock.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROBE = """<body><iframe src="{}" style="width:1200px;height:900px"></iframe><script>
onload = () => {{
  const frame = document.querySelector("iframe");
  frame.contentDocument.documentElement.getBoundingClientRect();
  document.title = frame.contentWindow.performance.now();
}}</script>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        for page in arguments.pages:
            times = [opened(chromium, page.resolve(), Path(folder)) for _ in range(arguments.repeats)]
            row = {"page": page.name, "bytes": page.stat().st_size, "median_ms": round(statistics.median(times))}
            print(json.dumps(row | {"worst_ms": round(max(times)), "repeats": len(times)}), flush=True)


def opened(chromium: str, page: Path, folder: Path) -> float:
    """Milliseconds of one opening, in a fresh browser."""
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(page.as_uri()), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [chromium, *options, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return float(done.stdout.split("<title>")[1].split("</title>")[0])


if __name__ == "__main__":
    main()
