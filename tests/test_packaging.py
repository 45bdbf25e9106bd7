"""The package around the code: what a wheel holds, licences of its assets, shell completion."""

import json
import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import sanakit
from sanakit.cli import completion
from sanakit.registry import Registry

PACKAGE = Path(sanakit.__file__).parent
ROOT = PACKAGE.parent
ASSETS = PACKAGE / "assets"
DRAWINGS = """
from pathlib import Path

import sanakit as sk

drawings = sk.load_images("openclipart").subset(range(0, 4000, 40))
Path("images").mkdir()
for number, (image, captions) in enumerate(zip(drawings.images, drawings.captions)):
    Path(f"images/{number}.webp").write_bytes(image)
    Path(f"images/{number}.txt").write_text("\\n".join(captions), encoding="utf-8")
"""
COMPLETE = "import sys; sys.argv = ['sanakit']; from sanakit.cli import main; main()"


def test_every_packed_asset_has_its_licence_in_the_notice():
    rows = [line.split("|") for line in (ASSETS / "NOTICE.md").read_text().splitlines() if line.startswith("| `")]
    stated = {row[1].strip(" `"): row[3].strip() for row in rows}
    packed = {f"{kind}/{path.name}" for kind in ("vaes", "cores") for path in (ASSETS / kind).iterdir()}
    packed |= {path.name for path in ASSETS.iterdir() if path.suffix in (".parquet", ".tsv")}
    assert stated.keys() == packed
    for name, licence in stated.items():
        card = ASSETS / name / "card.json" if "/" in name else (ASSETS / name).with_suffix(".card.json")
        assert json.loads(card.read_text())["licence"].startswith(licence)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "sanakit/assets/NOTICE.md" in project["license-files"] and "CC-BY-SA-4.0" in project["license"]


def complete(words):
    """What bash is offered after these words, the last one incomplete."""
    facts = {"_SANAKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    result = subprocess.run([sys.executable, "-c", COMPLETE], env=os.environ | facts, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_a_shell_completes_commands_and_names():
    assert complete("sanakit swap-") == ["swap-vae", "swap-text-encoder"]
    assert complete("sanakit swap-vae --candidate dc-f16") == completion.candidates("dc-f16") != []


def test_completions_are_the_registered_names():
    assert completion.candidates("") == [*Registry("vaes").names(), *Registry("text-encoders").names()]
    assert completion.strategies("a")[:2] == ["auto", "align"] and completion.bases("tiny") == ["tiny-sana"]
    assert completion.kinds("d") == ["drift", "datasets"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree; skipped where its build backend cannot be fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend hatchling cannot be fetched here")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_holds_assets_templates_and_licences(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"sanakit/py.typed", "sanakit/scaffold/templates/vae.py.txt"} <= names
    assert {f"sanakit/{path.relative_to(PACKAGE)}" for path in ASSETS.rglob("*") if path.is_file()} <= names
    licences = {name.partition("licenses/")[2] for name in names if "licenses/" in name}
    assert licences == {"LICENSE", "sanakit/assets/NOTICE.md"}
    assert "License-Expression: Apache-2.0 AND CC-BY-SA-4.0" in metadata
    assert not [name for name in names if name.startswith(("tests/", "experiments/"))]


@pytest.mark.slow
def test_the_main_job_runs_from_a_wheel_in_another_folder(wheel, tmp_path):
    """In an environment of its own that sees this one's libraries, and not this tree."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["SANAKIT_CACHE"] = str(tmp_path / "cache")

    def run(*arguments):
        command = [str(python), "-m", "sanakit", *arguments]
        return subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True, check=False)

    where = [str(python), "-c", "import sanakit; print(sanakit.__file__)"]
    place = subprocess.run(where, cwd=elsewhere, env=env, capture_output=True, text=True, check=True).stdout
    assert place.startswith(str(site))
    made = subprocess.run([str(python), "-c", DRAWINGS], cwd=elsewhere, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    job = ["swap-vae", "--candidate", "pca-f16c16", "--data", "images", "--run-dir", "run", "--strategy", "align+head"]
    sizes = ["component.num_images=64", "smoke.held_out=16", "train.start_draws=64", "train.batch_size=8"]
    small = [word for size in sizes for word in ("--set", size)]
    result = run(*job, *small, "--budget-steps", "8", "--force", "--json")
    assert result.returncode in (0, 1, 4), result.stderr
    record = json.loads(result.stdout)
    assert set(record["stages"]) == {"component", "smoke"} and all(s["gates"] for s in record["stages"].values())
    assert record["strategy"]["candidates"][0]["name"] == "align+head" and record["decision"]
    drawn = run("sample", "--model", "tiny-sana", "--prompt", "red apple", "--num-steps", "2", "--out", "apple.png")
    assert drawn.returncode == 0 and (elsewhere / "apple.png").is_file(), drawn.stderr
    assert run("report", "run", "--out", "page.html").returncode == 0 and (elsewhere / "page.html").stat().st_size > 1e4
    assert run("new", "gate", "ours").returncode == 0 and (elsewhere / "ours" / "pyproject.toml").is_file()
