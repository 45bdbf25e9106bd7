"""Listing imports nothing, names are unique, plugins are found and isolated."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sanakit.cli import info  # noqa: F401
from sanakit.cli.app import app
from sanakit.errors import SanakitError
from sanakit.registry import Registry
from sanakit.vaes import VAES


def install(folder, name, source, points):
    """A third-party distribution in a site folder: one module and its entry points."""
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(points)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


PLUGIN = """
    raise_on_import = 1 / {zero}
    from sanakit.vaes.base import VAES
    from sanakit.vaes.pca import PCAVAE

    @VAES.register("{name}", title="From a plugin", licence="MIT")
    class Ours(PCAVAE):
        pass
"""


def test_a_plugin_adds_a_vae_by_entry_point_alone(site):
    install(site, "plugin_a", PLUGIN.format(zero=1, name="ours"), "[sanakit.vaes]\nours = plugin_a:Ours\n")
    registry = Registry("vaes")
    entry = registry.entries()["ours"]
    assert (entry.origin, entry.title, entry.licence, entry.error) == ("plugin_a", "From a plugin", "MIT", None)
    assert "plugin_a" not in sys.modules
    assert registry.get("ours").tiny().spec.label == "f8c4"


def test_a_broken_plugin_is_a_row_and_only_get_fails(site):
    install(
        site,
        "plugin_b",
        PLUGIN.format(zero=0, name="broken"),
        "[sanakit.vaes]\nbroken = plugin_b:Ours\ngone = nowhere:X\n",
    )
    registry = Registry("vaes")
    assert registry.entries()["gone"].error == "OSError: module nowhere is not installed"
    with pytest.raises(SanakitError, match="SK0103.*ZeroDivisionError"):
        registry.get("broken")
    assert registry.get("pca-f8c4")


def test_a_name_used_twice_is_an_error(site):
    install(site, "plugin_c", PLUGIN.format(zero=1, name="pca-f8c4"), "[sanakit.vaes]\npca-f8c4 = plugin_c:Ours\n")
    registry = Registry("vaes")
    assert registry.entries()["pca-f8c4"].error == "name used twice: builtin and plugin_c"
    with pytest.raises(SanakitError, match="SK0102"):
        registry.get("pca-f8c4")


def test_plugins_show_on_the_command_line(site):
    install(site, "plugin_d", PLUGIN.format(zero=1, name="theirs"), "[sanakit.vaes]\ntheirs = plugin_d:Ours\n")
    install(site, "plugin_e", "", "[sanakit.drift]\nlost = nowhere:statistic\n")
    run = CliRunner().invoke
    rows = {row["name"]: row for row in json.loads(run(app, ["ls", "--json"]).stdout)}
    assert rows["theirs"]["origin"] == "plugin_d" and rows["theirs"]["error"] is None
    assert "nowhere" in rows["lost"]["error"] and "nowhere" in run(app, ["ls", "drift"]).stdout
    result = run(app, ["doctor", "--json"])
    broken = [row for row in json.loads(result.stdout) if row["check"].startswith("plugin")]
    assert result.exit_code == 0 and [(row["check"], row["status"]) for row in broken] == [("plugin lost", "warn")]
    assert broken[0]["fix"] == "pip uninstall plugin_e"


def test_the_vae_of_the_contributors_first_page_works(site):
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    install(site, "first_page", source, "[sanakit.vaes]\nours-f8c4 = first_page:OursF8C4\n")
    registry = Registry("vaes")
    assert registry.entries()["ours-f8c4"].title == "Our autoencoder, f8c4"
    vae = registry.get("ours-f8c4").tiny()
    images = torch.zeros(2, 3, 32, 48)
    assert vae.encode(images).shape == (2, *vae.spec.shape(32, 48))
    assert vae.decode(vae.encode(images)).shape == images.shape


def test_registering_another_object_under_a_name_is_refused():
    with pytest.raises(SanakitError, match="SK0102"):
        VAES.get("pca-f8c4") and VAES.register("pca-f8c4", title="another")(type("Other", (), {}))


def test_unknown_name_suggests_and_lists():
    with pytest.raises(SanakitError, match=r"did you mean pca-f8c4"):
        VAES.get("pca-f8c")


HEAVY = ("torch", "diffusers", "transformers", "pandas", "numpy", "sklearn", "torchmetrics")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ls"], ["ls", "vaes", "--json"], ["explain", "SK0203"], ["--version"]]
)
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['sanakit', *{arguments!r}]\n"
        "from sanakit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


TABLE = """
    raise_on_import = 1 / {zero}
    from sanakit.registry import row
    from sanakit.vaes.base import VAES
    from sanakit.vaes.pca import PCAVAE

    class Family(PCAVAE):
        hub = ""

    VAES.table(
        globals(),
        {{
            "First": row(Family, "first-of-table", title="The first", licence="MIT", hub="one/first"),
            "Second": row(Family, "second-of-table", title="The second", hub="one/second"),
        }},
    )
"""


def test_a_table_registers_a_class_for_each_row_and_is_listed_unread(site):
    points = "[sanakit.vaes]\nfirst-of-table = plugin_t:First\nsecond-of-table = plugin_t:Second\n"
    install(site, "plugin_t", TABLE.format(zero=1), points)
    registry = Registry("vaes")
    rows = [registry.entries()[name] for name in ("first-of-table", "second-of-table")]
    assert [(row.title, row.licence, row.attribute) for row in rows] == [
        ("The first", "MIT", "First"),
        ("The second", "", "Second"),
    ]
    assert "plugin_t" not in sys.modules
    made = registry.get("second-of-table")
    assert (made.hub, made.name, made.__module__, made.__qualname__) == (
        "one/second",
        "second-of-table",
        "plugin_t",
        "Second",
    )
    assert sys.modules["plugin_t"].Second is made and made.tiny().spec.label == "f8c4"


def test_families_of_one_shape_are_tables_and_their_classes_are_found_by_name():
    """An exported folder names its text encoder's class by module and name."""
    from sanakit.text_encoders import TEXT_ENCODERS
    from sanakit.text_encoders.qwen import Qwen3Tiny  # type: ignore[attr-defined]

    assert TEXT_ENCODERS.get("qwen3-0.6b") is Qwen3Tiny and Qwen3Tiny.__module__ == "sanakit.text_encoders.qwen"
    names = [entry.name for entry in VAES.entries().values() if entry.module == "sanakit.vaes.dc_ae"]
    assert names[:2] == ["dc-ae-f32c32-sana-1.0", "dc-ae-f32c32-sana-1.1"] and len(names) == 9
