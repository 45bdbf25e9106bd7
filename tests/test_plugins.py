"""One file adds a component: from somebody else's package or in a package of our own, written as the docs say. Broken
plugins never pass for a verdict or end a run."""

import importlib
import json
import re
import sys
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_gates import vae_evidence
from test_registry import install
from typer.testing import CliRunner

from sanakit import cli
from sanakit.checks import GATES, load_policy, run_gates
from sanakit.cli import drift as _drift_command  # noqa: F401  adds the command
from sanakit.cli.app import app
from sanakit.config import dump_config, make_config
from sanakit.contracts import GateResult, Reading, Verdict
from sanakit.core.dit import new_core
from sanakit.data import load_images
from sanakit.data.table import DATASETS
from sanakit.drift import DRIFT
from sanakit.drift.base import COMPONENTS, ask, seen_by, sees
from sanakit.drift.compare import statistics
from sanakit.drift.sample import sample_latents
from sanakit.errors import SanakitError
from sanakit.evaluation.drawing import Asked, Drawn
from sanakit.evaluation.metrics.base import METRICS
from sanakit.evaluation.scores import scores_of
from sanakit.loading import load_text_encoder, load_vae
from sanakit.registry import PACKAGES, Registry
from sanakit.reporting import write_report
from sanakit.reporting.ci import markdown
from sanakit.strategies.base import STRATEGIES, strategy_named
from sanakit.swap import stages as engine
from sanakit.swap.plugins import sound_strategies
from sanakit.testing import check_dataset
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES

ROOT = Path(__file__).parent.parent
PAGE = "".join((ROOT / p).read_text(encoding="utf-8") for p in ("CONTRIBUTING.md", "docs/adding-a-component.md"))
REGISTRIES = (GATES, DRIFT, STRATEGIES, DATASETS, VAES, TEXT_ENCODERS, METRICS)


def example(name):
    """The block of Python on the pages that registers `name`."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if f'.register("{name}"' in b]
    return block


def stated_entry_point(group, name):
    """The attribute that the page's entry point names."""
    (section,) = [part for part in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "entry-points" in part]
    lines = section.split(f'[project.entry-points."sanakit.{group}"]\n')[1].split("\n\n")[0]
    return re.search(rf'"?{re.escape(name)}"? = "[a-z_.]+:(\w+)"', lines)[1]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """`plugin(distribution, source, {"gates": {"component/x": "function"}})` installs one for the time of the test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    objects = [(registry, dict(registry._objects)) for registry in REGISTRIES]
    modules = set(sys.modules)

    def add(name, source, points):
        text = "".join(
            f"[sanakit.{kind}]\n" + "".join(f"{key} = {name}:{item}\n" for key, item in rows.items())
            for kind, rows in points.items()
        )
        install(site, name, source, text)
        for registry in REGISTRIES:
            monkeypatch.setattr(registry, "_listing", None)

    yield add
    for registry, before in objects:
        registry._objects.clear()
        registry._objects.update(before)
        registry._listing = None
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(site) in str(sys.modules[name].__file__):
            del sys.modules[name]


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sanakit", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


@pytest.fixture
def file_beside(plugin, tmp_path, monkeypatch):
    """`file_beside("sanakit.vaes", source)` puts one file into a package of ours for the time of the test."""

    def add(package, source):
        module, folder = importlib.import_module(package), tmp_path / "site" / package
        folder.mkdir()
        (folder / "ours_in_one_file.py").write_text(textwrap.dedent(source))
        monkeypatch.setattr(module, "__path__", [*module.__path__, str(folder)])
        for registry in REGISTRIES:
            monkeypatch.setattr(registry, "_listing", None)

    return add


def use_vae(name, monkeypatch):
    monkeypatch.setattr(VAES.get(name), "load", VAES.get(name).tiny)  # as there is no network
    vae, images = load_vae(name), torch.zeros(2, 3, 32, 48)
    assert vae.decode(vae.encode(images)).shape == images.shape


def use_text_encoder(name, monkeypatch):
    monkeypatch.setattr(TEXT_ENCODERS.get(name), "load", TEXT_ENCODERS.get(name).tiny)
    encoder = load_text_encoder(name)
    embeds = encoder.encode(["red apple", "two words more"]).embeds
    assert embeds.shape == (2, encoder.spec.max_tokens, encoder.spec.embed_dim) and embeds.isfinite().all()


def use_statistic(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(DRIFT, "names", lambda: [name])
    sides = [sample_latents(torch.randn(64, 4, 4, 4, generator=generator) + shift) for shift in (0.0, 3.0)]
    (reading,) = statistics(*sides, 0.05, 0)
    assert reading.name == name and reading.alarm and not reading.error


def use_gate(name, monkeypatch):
    row = next(r for r in run_gates("component", vae_evidence(psnr=np.full(100, 19.0))) if r.gate == name)
    assert (row.verdict, row.threshold, row.error) == (Verdict.FAIL, 20.0, "")


def use_strategy(name, monkeypatch):
    core = new_core(TINY, seed=0)
    assert sound_strategies([name], core) == ([name], [])
    (group,) = strategy_named(name).parameter_groups(core)
    assert group["name"] == "input" and STRATEGIES.get(name).kinds == ("vae",)
    assert sum(p.requires_grad for p in core.parameters()) == len(group["params"]) > 0


def use_metric(name, monkeypatch):
    grey = torch.full((8, 3, 4, 4), 128, dtype=torch.uint8)
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 8, 3, 4, 2)  # stripes of black and white
    drawn = Drawn(asked=Asked(prompts=["p"] * 8, truth=grey, reference=grey), images=images)
    (score,) = scores_of(drawn, [name], ("thumbnail",))
    assert score.value == pytest.approx(float(images[0, 0].float().std())) and score.ci_low == score.ci_high
    assert (score.better, score.of_true_images, score.error) == ("higher", 0, "")


def use_dataset(name, monkeypatch):
    images = load_images(name)
    assert len(images) == 64 and images.names[1] == "red/4" and images.captions[1] == ["a square with 4 parts of red"]
    assert images.pixels(8)[63].mean((0, 1)).tolist() == [252, 3, 0]
    check_dataset(name)


TINY = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 1,
    "attention_head_dim": 8,
    "num_layers": 1,
    "num_cross_attention_heads": 1,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 8,
    "caption_channels": 8,
    "sample_size": 4,
    "patch_size": 1,
}
ONE_FILE = {  # kind of `sanakit ls` -> name on the pages, and how it is used
    "vaes": ("ours-f8c4", use_vae),
    "text-encoders": ("ours-1b", use_text_encoder),
    "drift": ("ours-ks", use_statistic),
    "gates": ("component/ours-sharp", use_gate),
    "strategies": ("ours-patch", use_strategy),
    "metrics": ("ours-contrast", use_metric),
    "datasets": ("ours-colours", use_dataset),
}


def assert_listed_and_described(kind, name, origin):
    row = next(r for r in json.loads(CliRunner().invoke(app, ["ls", kind, "--json"]).stdout) if r["name"] == name)
    facts = json.loads(CliRunner().invoke(app, ["describe", name, "--json"]).stdout)
    assert row["origin"] == facts["origin"] == origin and row["title"] and facts["kind"] == kind
    assert row["licence"] == "Apache-2.0" and row["error"] is facts["error"] is None


@pytest.mark.parametrize("kind", ONE_FILE)
def test_one_file_of_somebody_else_is_listed_described_and_used(kind, plugin, monkeypatch):
    name, use = ONE_FILE[kind]
    group = kind.replace("-", "_")
    plugin(f"theirs_{group}", example(name), {group: {name: stated_entry_point(group, name)}})
    assert_listed_and_described(kind, name, f"theirs_{group}")
    use(name, monkeypatch)


@pytest.mark.parametrize("kind", ONE_FILE)
def test_one_file_in_a_package_of_ours_is_listed_described_and_used(kind, file_beside, monkeypatch):
    name, use = ONE_FILE[kind]
    file_beside(PACKAGES[kind], example(name))
    assert_listed_and_described(kind, name, "builtin")
    use(name, monkeypatch)


def test_a_statistic_sees_the_features_that_it_names(monkeypatch):
    assert seen_by("correlation-max").blocks == {"latents": ("correlation",)}
    assert seen_by("embedding-norms").blocks == {"embeddings": ("norms",)}
    assert seen_by("mmd").blocks["latents"] == seen_by("mmd").blocks["embeddings"] == COMPONENTS
    for wrong in ({"latents": ("spreads",)}, {"embeddings": ("power",)}, {"pixels": ("mean",)}):
        with pytest.raises(ValueError, match="kinds and blocks are"):
            sees(**wrong)


def two_sides(tmp_path, moved=0.0):
    generator = torch.Generator().manual_seed(0)
    for name, shift in (("a", 0.0), ("b", moved)):
        save_file({"latents": torch.randn(64, 4, 4, 4, generator=generator) + shift}, tmp_path / f"{name}.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_a_statistic_written_as_the_page_says_works(plugin, tmp_path, monkeypatch, capsys):
    plugin("ours_drift", example("ours-ks"), {"drift": {"ours-ks": "ks"}})
    for moved, code in ((0.0, 0), (3.0, 1)):
        assert exit_code(monkeypatch, "drift", *two_sides(tmp_path, moved), "--json") == code
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["readings"]}
        assert (rows["ours-ks"]["p_value"] < 0.05) == rows["ours-ks"]["alarm"] == bool(moved)
        assert "error" not in rows["ours-ks"] and rows["ours-ks"]["title"] == "Kolmogorov-Smirnov, first component"


def test_a_gate_written_as_the_page_says_works(plugin):
    plugin("ours_gates", example("component/ours-sharp"), {"gates": {"component/ours-sharp": "sharp"}})
    evidence = [vae_evidence(psnr=np.full(100, value)) for value in (21.5, 19.0)]
    good, bad = (run_gates("component", one)[-1] for one in evidence)
    assert (good.gate, good.threshold, good.verdict, bad.verdict) == (
        "component/ours-sharp",
        20.0,
        Verdict.PASS,
        Verdict.FAIL,
    )
    assert run_gates("component", evidence[0], load_policy("strict"))[-1].threshold == 22.0
    own_code = example("component/ours-sharp").replace("SK0201", "OURS01").replace("ours-sharp", "ours-coded")
    plugin("coded_gates", own_code, {"gates": {"component/ours-coded": "sharp"}})
    for asked in ("component/ours-coded", "OURS01", "ours01"):  # a gate and a code of somebody else
        told = CliRunner().invoke(app, ["explain", asked]).stdout
        assert told.startswith("component/ours-coded, of coded_gates: reconstructions reach 20 dB"), asked
        assert "passes: at least 20 (strict 22)" in told and "OURS01" in told


def test_a_statistic_may_take_either_keyword():
    seen = []

    @DRIFT.register("takes-all", title="t")
    def takes_all(reference, current, alpha, **options):
        seen.append(options)
        return Reading(name="", value=np.float32(1), p_value=np.float64(0.5))

    @DRIFT.register("takes-seed", title="t")
    def takes_seed(reference, current, alpha, *, seed):
        seen.append(seed)
        return Reading(name="x", value=1)

    rows = np.zeros((4, 2))
    try:
        reading = ask("takes-all", rows, rows, 0.05, names=["a", "b"], seed=3)
        assert ask("takes-seed", rows, rows, 0.05, names=["a", "b"], seed=3).error == ""
    finally:
        del DRIFT._objects["takes-all"], DRIFT._objects["takes-seed"]
    assert seen == [{"names": ["a", "b"], "seed": 3}, 3]
    assert reading.name == "takes-all" and type(reading.value) is type(reading.p_value) is float


BROKEN_STATISTICS = """
    import numpy as np
    from sanakit.contracts import Reading
    from sanakit.drift.base import DRIFT

    @DRIFT.register("raises", title="t")
    def raises(reference, current, alpha):
        return {}["missing"]

    @DRIFT.register("exits", title="t")
    def exits(reference, current, alpha):
        raise SystemExit(1)

    @DRIFT.register("tells", title="t")
    def tells(reference, current, alpha):
        return 0.5

    @DRIFT.register("no-probability", title="t")
    def no_probability(reference, current, alpha):
        return Reading(name="no-probability", value=1.0, p_value=float("nan"))
"""
NAMES = {"raises": "KeyError", "exits": "SystemExit: 1", "tells": "returned float", "no-probability": "p_value nan"}


def test_a_statistic_that_raises_is_a_row_and_the_others_are_measured(plugin, tmp_path, monkeypatch, capsys):
    clean = json.loads(CliRunner().invoke(app, ["drift", *map(str, two_sides(tmp_path)), "--json"]).stdout)
    plugin("bad_drift", BROKEN_STATISTICS, {"drift": {name: name.replace("-", "_") for name in NAMES}})
    page = tmp_path / "page.html"
    assert exit_code(monkeypatch, "drift", *two_sides(tmp_path), "--json", "--html", page) == 5
    document = json.loads(capsys.readouterr().out)
    broken = {row["name"]: row for row in document["readings"] if row.get("error")}
    assert broken.keys() == NAMES.keys() and document["verdict"] == "inconclusive"
    for name, said in NAMES.items():
        row = broken[name]
        assert (
            row["error"].startswith("bad_drift: ") and said in row["error"] and row["title"] == "could not be evaluated"
        )
        assert row["value"] is row["p_value"] is None and not row["alarm"]
        assert Path(row["error"].rpartition("traceback: ")[2]).is_file()
    assert [row for row in document["readings"] if not row.get("error")] == clean["readings"]
    assert "could not be evaluated" in page.read_text()
    assert exit_code(monkeypatch, "drift", *two_sides(tmp_path, 3.0)) == 5
    out = capsys.readouterr().out
    assert "\ndrift\n" in out and "raises could not be evaluated: bad_drift: KeyError" in out


BROKEN_GATES = """
    from sanakit.contracts import GateResult
    from sanakit.checks.base import GATES

    @GATES.register("component/raises", title="t")
    def raises(evidence):
        return 1 / 0

    @GATES.register("component/tells", title="t")
    def tells(evidence):
        return True

    @GATES.register("component/empty", title="t")
    def empty(evidence):
        return GateResult(gate="component/empty", code="SK0201", metric="m", value=None, ci_low=None, ci_high=None,
                          threshold=1.0, verdict="pass")
"""
GATE_NAMES = {
    "component/raises": "ZeroDivisionError",
    "component/tells": "returned bool",
    "component/empty": "value None",
}


def test_a_gate_that_raises_is_a_row_and_the_others_judge(plugin, tmp_path):
    clean = run_gates("component", vae_evidence())
    plugin("bad_gates", BROKEN_GATES, {"gates": {name: name.partition("/")[2] for name in GATE_NAMES}})
    plugin("gone_gates", "import nowhere_at_all", {"gates": {"component/gone": "gate"}})
    for policy in ("default", "strict"):
        results = {r.gate: r for r in run_gates("component", vae_evidence(), load_policy(policy))}
        for name, said in GATE_NAMES.items():
            row = results.pop(name)
            assert (row.code, row.verdict, row.metric) == ("SK0114", Verdict.INCONCLUSIVE, "could not be evaluated")
            assert row.error.startswith("bad_gates: ") and said in row.error and row.value is None
            assert GateResult.from_dict(json.loads(json.dumps(row.as_dict()))) == row
            assert name != "component/raises" or "(bad_gates.py, line " in row.error
        gone = results.pop("component/gone")
        assert gone.code == "SK0103" and "gone_gates" in gone.error and "nowhere_at_all" in gone.error
        assert [r.gate for r in results.values()] == [r.gate for r in clean]


def test_a_gate_of_our_own_that_raises_is_a_row_too(monkeypatch):
    evidence = vae_evidence() | {"declared_spec": None}
    rows = {r.gate: r for r in run_gates("component", evidence)}
    assert rows["component/geometry"].code == "SK0999" and "AttributeError" in rows["component/geometry"].error
    assert rows["component/scale-high"].verdict == Verdict.PASS


def component_run(world, folder, monkeypatch, *more):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(make_config(world)))
    return exit_code(monkeypatch, "validate", "--stage", "component", "--run-dir", folder, "--json", *more)


def test_in_a_run_a_broken_gate_is_written_shown_and_measured_again(plugin, small_world, tmp_path, monkeypatch, capsys):
    plugin("bad_gates", BROKEN_GATES, {"gates": {"component/raises": "raises"}})
    monkeypatch.chdir(tmp_path)
    run, junit = tmp_path / "run", tmp_path / "junit.xml"
    assert component_run(small_world, run, monkeypatch, "--junit", junit) == 5
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert "error[SK0114]: component/raises could not be evaluated: bad_gates: ZeroDivisionError" in said.err
    stage = document["stages"]["component"]
    row = next(g for g in stage["gates"] if g["gate"] == "component/raises")
    assert "bad_gates: ZeroDivisionError" in row["error"] and row["value"] is None and len(stage["gates"]) > 5
    failed = [g["gate"] for g in stage["gates"] if g["verdict"] == "fail"]
    assert stage["verdict"] == ("fail" if failed else "inconclusive")
    (file,) = run.glob("traceback-*.txt")
    assert str(file) in row["error"] and "1 / 0" in file.read_text()
    assert json.loads((run / "validation.json").read_text())["stages"]["component"]["gates"][-1] == row
    suite = ElementTree.parse(junit).getroot()[0]
    assert suite.get("errors") == "1" and suite.find("testcase/error") is not None
    assert "bad_gates: ZeroDivisionError" in markdown(document)
    assert "bad_gates: ZeroDivisionError" in write_report(run, tmp_path / "page.html").read_text()
    assert component_run(small_world, run, monkeypatch) == 5  # not "done before"
    assert len(list(run.glob("traceback-*.txt"))) == 2


BROKEN_VAE = """
    from sanakit.vaes.base import VAES
    from sanakit.vaes.pca import PCAVAE

    @VAES.register("theirs", title="t")
    class Theirs(PCAVAE):
        @classmethod
        def load(cls):
            return VAES.get("pca-f8c4").tiny().__class__.tiny.__func__(cls)

        def _encode(self, images):
            raise IndexError("channel 7")
"""


def test_a_component_that_raises_is_the_row_of_its_stage_and_later_stages_wait(
    plugin, small_world, tmp_path, monkeypatch, capsys
):
    plugin("bad_vae", BROKEN_VAE, {"vaes": {"theirs": "Theirs"}})
    monkeypatch.chdir(tmp_path)
    arguments = ["--candidate", "theirs", "--base", small_world["base"], "--data", small_world["data"]["source"]]
    run = tmp_path / "run"
    code = exit_code(monkeypatch, "swap-vae", *arguments, "--run-dir", run, "--json", "--force")
    document = json.loads(capsys.readouterr().out)
    assert code == 5 and document["verdict"] == "inconclusive" and list(document["stages"]) == ["component"]
    (row,) = document["stages"]["component"]["gates"]
    assert row["gate"] == "component/measured" and row["code"] == "SK0114"
    assert row["error"].startswith("bad_vae: IndexError: channel 7 (bad_vae.py, line ")
    assert len(list(run.glob("traceback-*.txt"))) == 1


def test_a_data_set_that_raises_names_its_distribution(plugin, small_world, tmp_path, monkeypatch, capsys):
    source = """
        from sanakit.data.table import DATASETS

        @DATASETS.register("their-data", title="t")
        def theirs():
            raise LookupError("no such bucket")
    """
    plugin("bad_data", source, {"datasets": {"their-data": "theirs"}})
    arguments = ["--vae", "pca-f8c4", "--base", small_world["base"], "--data", "their-data"]
    assert exit_code(monkeypatch, "validate", "--stage", "component", *arguments, "--json") == 5
    said = capsys.readouterr()
    assert said.out == "" and "error[SK0114]: bad_data: LookupError: no such bucket (bad_data.py, line " in said.err
    assert len(list((tmp_path / "cache" / "tracebacks").iterdir())) == 1


BROKEN_STRATEGIES = """
    from sanakit.strategies.base import STRATEGIES, Strategy

    @STRATEGIES.register("fine", title="t")
    class Fine(Strategy):
        scales = {"input": 1.0}

    @STRATEGIES.register("raises-groups", title="t")
    class RaisesGroups(Strategy):
        scales = {"input": 1.0}

        @classmethod
        def parameter_groups(cls, core):
            raise RuntimeError("no such layer")

    @STRATEGIES.register("misspelt", title="t")
    class Misspelt(Strategy):
        initialise = "aligned"
        scales = {}

    @STRATEGIES.register("unstated", title="t")
    class Unstated(Strategy):
        pass

    @STRATEGIES.register("no-class", title="t")
    def no_class():
        pass
"""


def test_a_strategy_that_cannot_race_is_a_row(plugin, tiny_system):
    points = {
        "fine": "Fine",
        "raises-groups": "RaisesGroups",
        "misspelt": "Misspelt",
        "unstated": "Unstated",
        "no-class": "no_class",
    }
    plugin("bad_strategies", BROKEN_STRATEGIES, {"strategies": points})
    before = {k: v.clone() for k, v in tiny_system.core.state_dict().items()}
    names, rows = sound_strategies(["finetune", *points, "unknown"], tiny_system.core)
    assert names == ["finetune", "fine", "unknown"]  # an unknown name is refused where it is used, with suggestions
    said = {row.gate.removeprefix("smoke/strategy "): row.error for row in rows}
    assert said.keys() == points.keys() - {"fine"}
    assert "RuntimeError: no such layer (bad_strategies.py, line " in said["raises-groups"]
    assert "initialise is 'aligned'" in said["misspelt"] and "scales" in said["unstated"]
    assert "no subclass of Strategy" in said["no-class"]
    assert all(text.startswith("bad_strategies: ") for text in said.values())
    assert all(p.requires_grad for p in tiny_system.core.parameters())
    assert all(torch.equal(before[k], v) for k, v in tiny_system.core.state_dict().items())


def test_smoke_races_the_others_where_a_strategy_is_broken(plugin, small_world, tmp_path):
    plugin("bad_strategies", BROKEN_STRATEGIES, {"strategies": {"raises-groups": "RaisesGroups"}})
    world = small_world | {"train": small_world["train"] | {"strategy": "auto"}}
    world["smoke"] = {"held_out": 16, "budget_steps": 8, "rates": [1.0], "strategies": ["naive", "raises-groups"]}
    world["vae"] = {"name": json.loads((Path(world["base"][5:]) / "card.json").read_text())["vae"]}
    swap = engine.prepare(make_config(world), tmp_path / "run", lambda *a: None)
    validation = engine.run_stages(swap, ["smoke"])
    assert [arm["name"] for arm in validation["strategy"]["candidates"]] == ["naive"]
    gates = {gate["gate"]: gate for gate in validation["stages"]["smoke"]["gates"]}
    assert "bad_strategies: RuntimeError" in gates["smoke/strategy raises-groups"]["error"]
    assert "smoke/base" in gates and "smoke/progress" in gates
    assert validation["stages"]["smoke"]["verdict"] != "pass"


def test_doctor_ls_and_describe_show_a_broken_plugin_as_a_row_and_end_with_0(plugin, monkeypatch, capsys):
    vae = "from sanakit.vaes.base import VAES\n@VAES.register('{name}', title='t')\nclass Theirs:\n    pass\n"
    plugin("bad_import", "import nowhere_at_all\n" + vae.format(name="broken"), {"vaes": {"broken": "Theirs"}})
    plugin("bad_exit", "raise SystemExit(3)", {"drift": {"leaves": "x"}})
    plugin("bad_name", vae.format(name="pca-f8c4"), {"vaes": {"pca-f8c4": "Theirs"}})
    plugin("bad_twin", vae.format(name="pca-f8c4"), {"vaes": {"pca-f8c4": "Theirs"}})
    plugin("bad_syntax", "def (:", {"gates": {"component/odd": "x"}})
    assert exit_code(monkeypatch, "doctor", "--json") == 0
    rows = {r["check"]: r for r in json.loads(capsys.readouterr().out) if r["check"].startswith("plugin")}
    assert {r["status"] for r in rows.values()} == {"warn"} and len(rows) == 4
    assert (
        rows["plugin broken"]["fix"] == "pip uninstall bad_import"
        and "nowhere_at_all" in rows["plugin broken"]["detail"]
    )
    assert (
        rows["plugin leaves"]["fix"] == "pip uninstall bad_exit" and "SystemExit: 3" in rows["plugin leaves"]["detail"]
    )
    twice = rows["plugin pca-f8c4"]
    assert (
        set(re.findall(r"pip uninstall (\w+)", twice["fix"])) == {"bad_name", "bad_twin"}
        and "builtin" not in twice["fix"]
    )
    assert all(name in twice["detail"] for name in ("builtin", "bad_name", "bad_twin"))
    assert rows["plugin component/odd"]["fix"] == "pip uninstall bad_syntax"
    assert exit_code(monkeypatch, "ls", "--json") == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed["broken"]["error"] is None  # listing imports nothing
    assert "used twice" in listed["pca-f8c4"]["error"] and "SyntaxError" in listed["component/odd"]["error"]
    for name in ("broken", "leaves", "pca-f8c4", "component/odd"):
        assert exit_code(monkeypatch, "describe", name, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["name"] == name and facts["error"]
        assert exit_code(monkeypatch, "describe", name) == 0 and "error: " in capsys.readouterr().out
    with pytest.raises(SanakitError, match=r"SK0102.*(\n.*)*pip uninstall bad_"):
        Registry("vaes").get("pca-f8c4")


def test_a_metric_that_raises_is_a_row_and_the_others_are_written(plugin, small_world, tmp_path, monkeypatch, capsys):
    source = example("ours-contrast").replace("    spread =", "    raise OSError('no file of ours')\n    spread =")
    plugin("theirs_metrics", source, {"metrics": {"ours-contrast": "contrast"}})
    arguments = ["--model", small_world["base"].removeprefix("path:"), "--data", small_world["data"]["source"]]
    arguments += ["--metrics", "ours-contrast,seed-diversity", "--count", 8, "--num-steps", 1]
    assert exit_code(monkeypatch, "evaluate", *arguments, "--json", "--out", tmp_path / "scores.json") == 5
    broken, sound = json.loads(capsys.readouterr().out)["scores"]
    assert (
        broken["value"] is None and broken["code"] == "SK0114" and "theirs_metrics: OSError: no file" in broken["error"]
    )
    assert sound["error"] == "" and sound["ci_low"] <= sound["value"] <= sound["ci_high"]
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == [broken, sound]
    assert exit_code(monkeypatch, "evaluate", *arguments) == 5
    assert "ours-contrast: could not be evaluated" in capsys.readouterr().out
