"""Five swaps of the embedded world, one for each thing that a decision can say, and their pages in a browser.

    python experiments/report_cases.py                # everything that is missing; about 20 minutes of one core
    python experiments/report_cases.py good lossy     # these cases alone
    python experiments/report_cases.py --pages        # pages and screenshots anew, from runs that are there

| case | what is swapped | expected answer |
|---|---|---|
| good | the base's VAE, its decoder trained on for pixels and, a little, for features; through stage full | swap |
| lossy | the same, more for features: detail for 0.1 dB of PSNR; through stage full | swap-with-loss |
| hopeless | a VAE of 64 channels in a quarter of the tokens, under a policy that allows a loss of 3 dB | do-not |
| broken | a VAE with a wrong scaling factor | do-not, fix first |
| inconclusive | a VAE whose race ends after 8 steps | not-yet |

Runs lie in runs/cases/NAME, pages in runs/cases/pages/NAME.html and drift-NAME.html, the comparison of the five in
compare.html, and what chromium draws of each page beside it: PAGE-1280.png, PAGE-390.png (a phone) and PAGE-paper.png.
The exit code is 1 where an answer is not the expected one.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from sanakit.cli import main as sanakit
from sanakit.data import ImageDataset, load_images

RUNS = Path("runs/cases")
PAGES = RUNS / "pages"
DRIFT = RUNS / "drift"
POLICY = RUNS / "policy.yaml"
ALLOWED = "from: default\nallowed_loss:\n  psnr: 3.0  # dB\n"
DRIFT_IMAGES = 192
FEW_IMAGES = 24
WIDTHS = {"1280": 1280, "390": 390, "paper": 687}  # px; paper: between the margins of A4
TALLEST = 12_000  # px of a screenshot
QUICK = ["--set", "component.num_images=64", "--set", "smoke.held_out=64"]
FEW_ARMS = ["--set", "smoke.strategies=[align,lora,finetune]"]
# through stage full, of a VAE whose latents stay: nothing has to be trained
THROUGH = ["--stages", "component,smoke,full", "--set", "smoke.strategies=[reuse,align]"]
THROUGH += ["--set", "evaluate.num_prompts=16", "--set", "evaluate.num_seeds=2"]


@dataclass(frozen=True)
class Case:
    """commands: arguments of sanakit, which leave the run RUNS / name. answer, said: what the decision must say."""

    commands: tuple[tuple[str, ...], ...]
    answer: str
    said: str = ""


def swap(kind: str, candidate: str, name: str, *more: str) -> tuple[str, ...]:
    return (f"swap-{kind}", "--candidate", candidate, "--run-dir", str(RUNS / name), *QUICK, *more)


FEW_ARMS = ["--set", "smoke.strategies=[align,lora,finetune]"]
UNTRAINED = ["--set", "smoke.strategies=[reuse,align]"]  # the latents stay: nothing has to be trained


def decoder(name: str, *more: str) -> tuple[str, ...]:
    """The base's VAE with its decoder trained on for a few steps, left in RUNS / name / vae."""
    command = ["train", "--preset", "vae-decoder", "--run-dir", str(RUNS / name)]
    keys = [*more, "train.batch_size=8", "train.warmup=5", "train.ema_decay=0.9", "component.num_images=64"]
    return (*command, *(part for key in (*keys, "monitors.num_evaluations=2") for part in ("--set", key)))


PIXELS = ("train.max_steps=100", "train.learning_rate=1e-4", "vae.perceptual=0.01", "vae.high_frequency=0")
FEATURES = ("train.max_steps=80", "vae.perceptual=0.03")
CASES = {
    "broken": Case(
        commands=(swap("vae", "dc-f16c16", "broken", "--set", "vae.scaling_factor=0.05"),),
        answer="do-not",
        said="Fix first",
    ),
    "inconclusive": Case(commands=(swap("vae", "dc-f16c16", "inconclusive", "--budget-steps", "8"),), answer="not-yet"),
    "hopeless": Case(
        commands=(swap("vae", "pca-f32c64", "hopeless", "--budget-steps", "50", *FEW_ARMS, "--policy", str(POLICY)),),
        answer="do-not",
        said="The loss is larger than the policy allows",
    ),
    "good": Case(
        commands=(
            decoder("decoder-pixels", *PIXELS),
            swap("vae", f"path:{RUNS / 'decoder-pixels' / 'vae'}", "good", *THROUGH),
        ),
        answer="swap",
    ),
    "lossy": Case(
        commands=(
            decoder("decoder", *FEATURES),
            swap("vae", f"path:{RUNS / 'decoder' / 'vae'}", "lossy", *THROUGH),
        ),
        answer="swap-with-loss",
    ),
}


def call(*arguments: str) -> int:
    """A command of sanakit in this process; its exit code."""
    print("sanakit", *arguments, flush=True)
    sys.argv = ["sanakit", *arguments]
    try:
        sanakit()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run_case(name: str) -> str:
    """Run what is missing of a case; what is wrong with its answer, empty where nothing is."""
    case = CASES[name]
    for command in case.commands:
        if call(*command) not in (0, 1, 4):
            return f"{name}: {' '.join(command)} ended without a verdict"
    decision = json.loads((RUNS / name / "validation.json").read_text(encoding="utf-8"))["decision"]
    if decision["answer"] != case.answer or case.said not in decision["reason"]:
        return (
            f"{name}: expected {case.answer}, {case.said or 'any reason'}; {decision['answer']}: {decision['reason']}"
        )
    return ""


def write_pages(names: list[str]) -> None:
    """The report of each case, and the comparison of all."""
    for name in names:
        call("report", str(RUNS / name), "--out", str(PAGES / f"{name}.html"))
    call("compare", *(str(RUNS / name) for name in names), "--out", str(PAGES / "compare.html"))


def write_drift_pages() -> None:
    """Five comparisons of latents of the base's VAE: other images of one source, the same images saved smaller, another
    source, another scaling factor, and few images."""
    drawings, emoji = load_images("openclipart"), load_images("openmoji")
    rows = np.random.default_rng(0).permutation(len(drawings))[: 2 * DRIFT_IMAGES]
    first, second = drawings.subset(rows[:DRIFT_IMAGES]), drawings.subset(rows[DRIFT_IMAGES:])
    sides = {"reference": first, "good": second, "lossy": second, "hopeless": emoji.subset(range(DRIFT_IMAGES))}
    sides["inconclusive"] = second.subset(range(FEW_IMAGES))
    for name, images in sides.items():
        write_folder(images, DRIFT / name / "images", shrink=2 if name == "lossy" else 1)
        call("encode", "--vae", "dc-f16c32", "--data", str(DRIFT / name / "images"), "--out", str(DRIFT / name))
    for name in (*list(sides)[1:], "broken"):
        pair = (RUNS / "inconclusive", RUNS / "broken") if name == "broken" else (DRIFT / "reference", DRIFT / name)
        call("drift", *map(str, pair), "--html", str(PAGES / f"drift-{name}.html"))


def write_folder(images: ImageDataset, folder: Path, *, shrink: int) -> None:
    """Images with their captions, at 1 / shrink of their size."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, (data, captions) in enumerate(zip(images.images, images.captions, strict=True)):
        drawing = Image.open(BytesIO(data)).convert("RGBA")
        flat = Image.new("RGBA", drawing.size, "white")
        flat.alpha_composite(drawing)
        side = (max(16, flat.width // shrink), max(16, flat.height // shrink))
        flat.convert("RGB").resize(side, Image.Resampling.LANCZOS).save(folder / f"{number:04}.png")
        (folder / f"{number:04}.txt").write_text("\n".join(captions), encoding="utf-8")


FRAMES = """<body style="margin:0;background:#808080">{}<script>onload = () => {{
for (const f of document.querySelectorAll("iframe")) f.style.height = Math.min({},
  f.contentDocument.documentElement.scrollHeight) + "px" }}</script>"""
FRAME = '<iframe src="{}" style="width:{}px;height:10px;border:0;position:absolute;left:{}px;top:0"></iframe>'


def draw_page(page: Path) -> None:
    """Three screenshots of a page by chromium, in one start: 1280 px, a phone's width, and as it is printed."""
    paper = page.with_suffix(".paper.html")
    text = page.read_text(encoding="utf-8")
    paper.write_text(text.replace("@media print", "@media all"), encoding="utf-8")
    frames, lefts, left = [], {}, 0
    for name, width in WIDTHS.items():
        frames.append(FRAME.format((paper if name == "paper" else page).name, width, left))
        lefts[name] = left
        left += width
    around, drawn = page.with_suffix(".frames.html"), page.with_suffix(".all.png")
    around.write_text(FRAMES.format("".join(frames), TALLEST), encoding="utf-8")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={(PAGES / '.profile').resolve()}", "--virtual-time-budget=4000"]
    options += [f"--window-size={left},{TALLEST}", f"--screenshot={drawn.resolve()}", around.resolve().as_uri()]
    subprocess.run([browser, *options], check=True, capture_output=True, timeout=300)
    whole = Image.open(drawn).convert("RGB")
    for name, width in WIDTHS.items():
        column = whole.crop((lefts[name], 0, lefts[name] + width, whole.height))
        grey = np.asarray(column) == 128
        column.crop((0, 0, width, int((~grey.all((1, 2))).nonzero()[0].max()) + 1)).save(
            page.with_name(f"{page.stem}-{name}.png")
        )
    for extra in (paper, around, drawn):
        extra.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--pages", action="store_true", help="run nothing: pages and screenshots alone")
    parser.add_argument("--no-pages", action="store_true", help="the runs alone")
    asked = parser.parse_args()
    names = asked.names or list(CASES)
    if unknown := set(names) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    PAGES.mkdir(parents=True, exist_ok=True)
    POLICY.write_text(ALLOWED, encoding="utf-8")
    wrong = [] if asked.pages else [told for name in names if (told := run_case(name))]
    if not asked.no_pages:
        finished = [name for name in names if (RUNS / name / "validation.json").is_file()]
        write_pages(finished)
        write_drift_pages()
        for page in sorted(PAGES.glob("*.html")):
            draw_page(page)
    print("\n".join(wrong) or f"{len(names)} answers are as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
