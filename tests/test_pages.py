"""The report, the leaderboard and the drift page as a reader meets them: in a real browser, on a phone, on paper, in
the dark, and by a screen reader."""

import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_run import EVIL, chart_files, fill, verdict_alone

import sanakit.reporting
from sanakit.reporting import write_report
from sanakit.reporting.compare import leaderboard, write_comparison
from sanakit.reporting.drift import write_drift_report

PAGES = ("report", "compare", "drift")
PAPER = 687  # px between the margins of A4
STYLE = (Path(sanakit.reporting.__file__).parent / "style.css.j2").read_text()
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
    "--enable-logging=stderr",
]
# scripts are forbidden inside a page, so the page around it measures: sideways scroll on a phone, what leaves the paper
PROBE = """<body style="margin:0">
<iframe src="{0}.html" style="width:390px;height:800px"></iframe>
<iframe src="{0}-paper.html" style="width:{1}px;height:800px"></iframe>
<script>onload = () => {{
  const [phone, paper] = [...document.querySelectorAll("iframe")].map(f => f.contentDocument);
  const wide = [...paper.querySelectorAll("td, th, h1, h2, h3, p, pre, li, img, svg, dd")].filter(
    e => e.getBoundingClientRect().right > paper.documentElement.clientWidth + 1
      || e.matches("pre") && e.scrollWidth > e.clientWidth + 1);
  document.title = JSON.stringify({{scroll: phone.documentElement.scrollWidth,
    client: phone.documentElement.clientWidth,
    cut: wide.map(e => e.tagName + " " + e.textContent.slice(0, 40))}});
}}</script>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    run.mkdir()
    verdict_alone(run)
    fill(run)
    chart_files(run)
    write_report(run, folder / "report.html")
    write_comparison(leaderboard([run]), folder / "compare.html")
    write_drift_report(*drift_findings(), folder / "drift.html")
    return folder


def drift_findings():
    reading = {"name": "n", "title": EVIL, "value": -19.3, "ci_low": None, "ci_high": None, "where": f"latents: {EVIL}"}
    moved = reading | {"p_value": 3e-60, "threshold": 0.05, "alarm": True}
    still = reading | {"p_value": None, "threshold": None, "alarm": False, "where": "embeddings: "}
    moments = {"latents": {side: {"mean": [0.1] * 32, "std": [1.0] * 32} for side in ("reference", "current")}}
    evidence = {
        "latents": {
            "effects": {"mean": [0.1, -0.2], "spread": [0.0, 1.0]},
            "spectra": {"reference": [(0.5, 1.0), (1.0, 0.2)], "current": [(0.5, 1.0), (1.0, 0.4)]},
            "points": {"reference": [[0, 1], [1, 0]], "current": [[2, 1], [1, 2]]},
            "farthest": {"reference": [[3, 0.5]], "current": [[4, 0.25]]},
        }
    }
    carried = {"latents": {"reference": {3: SimpleNamespace(label=EVIL, uri="data:image/png;base64,iVBORw==")}}}
    return {"verdict": "drift", "readings": [still, moved]}, moments, evidence, carried, EVIL, "b" * 80


def chromium(*arguments):
    browser = shutil.which("chromium")
    if browser is None:
        assert not os.environ.get("SANAKIT_REQUIRE_BROWSER"), "chromium must be installed here"
        pytest.skip("chromium is not installed (apt-get install chromium)")
    return subprocess.run([browser, *QUIET, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_scrolls_one_way_paper_cuts_nothing_and_the_console_is_silent(pages, page):
    text = (pages / f"{page}.html").read_text(encoding="utf-8")
    (pages / f"{page}-paper.html").write_text(text.replace("@media print", "@media all"), encoding="utf-8")
    (pages / "probe.html").write_text(PROBE.format(page, PAPER))
    profile = f"--user-data-dir={pages / 'profile'}"
    done = chromium(profile, "--virtual-time-budget=4000", "--dump-dom", (pages / "probe.html").as_uri())
    assert ":CONSOLE" not in done.stderr, done.stderr
    measured = json.loads(html.unescape(done.stdout.split("<title>")[1].split("</title>")[0]))
    assert measured["scroll"] <= measured["client"], measured
    assert measured["cut"] == []


@pytest.mark.parametrize("page", PAGES)
def test_print_holds_every_section(pages, page):
    from pypdf import PdfReader

    out = pages / f"{page}.pdf"
    chromium(f"--user-data-dir={pages / 'profile'}", f"--print-to-pdf={out}", (pages / f"{page}.html").as_uri())
    printed = re.sub(r"\s+", "", "".join(sheet.extract_text() for sheet in PdfReader(out).pages))
    seen = Outline((pages / f"{page}.html").read_text(encoding="utf-8"))
    assert len(seen.headings) >= 2
    for heading in seen.headings:
        assert re.sub(r"\s+", "", heading) in printed, heading
    if page == "report":
        assert "abc" in printed and "git.commit" in printed  # provenance is folded on the screen, open on paper


class Outline(html.parser.HTMLParser):
    """Headings that are printed, and images with what stands for them."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.inside = tag == "h2" and "screen" not in (attributes.get("class") or "")
        if self.inside:
            self.headings.append("")
        if tag == "img":
            self.images.append(attributes.get("alt"))
        if tag == "svg":
            self.images.append(
                attributes.get("aria-hidden") or (attributes.get("role") == "img" and attributes.get("aria-label"))
            )

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.headings[-1] += data


@pytest.mark.parametrize("page", PAGES)
def test_one_small_file_without_script_whose_images_have_words(pages, page):
    path = pages / f"{page}.html"
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 3e6 and "<script" not in text and "default-src 'none'" in text
    images = Outline(text).images
    assert images and all(images), images
    for opening in re.findall(r'<div class="scroll"[^>]*>', text):  # reached and named without a mouse
        assert 'tabindex="0"' in opening and "aria-label=" in opening
    assert "<th>" not in text, "every header says what it heads"


def colours(dark):
    """Variables of the style sheet, by name."""
    blocks = re.findall(r":root \{([^}]*)\}", STYLE)
    return {
        name: value for block in blocks[: 2 if dark else 1] for name, value in re.findall(r"--([\w-]+):(#\w+)", block)
    }


def contrast(first, second):
    """WCAG 2 ratio of two colours, 1 to 21."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out(dark):
    tones = colours(dark)
    assert contrast("#000", "#fff") == pytest.approx(21)
    verdicts = ("pass", "fail", "inconclusive")
    grounds = ["bg", "card", "sunk", *(f"{v}-bg" for v in verdicts)]
    text = [(ink, ground) for ink in ("ink", "soft") for ground in grounds]
    text += [(v, ground) for v in verdicts for ground in ("card", f"{v}-bg")]
    assert {pair: r for pair in text if (r := contrast(tones[pair[0]], tones[pair[1]])) < 4.5} == {}
    lines = [f"c{i}" for i in range(8)]
    assert {c: r for c in lines if (r := contrast(tones[c], tones["card"])) < 3} == {}
