"""sanakit.testing: what keeps a contract passes, and what breaks one is named with both sides; `sanakit new` writes
plugins that pass."""

import importlib
import subprocess
import sys
import tomllib
import venv

import numpy as np
import pytest
import torch
from test_gates import vae_evidence
from test_registry import install
from typer.testing import CliRunner

from sanakit.checks import Measurement, rule
from sanakit.checks.base import Gate
from sanakit.cli import new as _new_command  # noqa: F401  adds the command
from sanakit.cli.app import app
from sanakit.contracts import LatentStats, Reading
from sanakit.data.table import DATASETS, ImageDataset
from sanakit.drift import DRIFT
from sanakit.errors import SanakitError
from sanakit.evaluation.metrics.base import METRICS, Measured
from sanakit.registry import PACKAGES, Registry
from sanakit.scaffold import KINDS, write_plugin
from sanakit.strategies import STRATEGIES, Strategy
from sanakit.testing import (
    check_dataset,
    check_gate,
    check_metric,
    check_statistic,
    check_strategy,
    check_text_encoder,
    check_vae,
)
from sanakit.testing.contract import ChangedWeight
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES


def broken(check, component, told, **options):
    with pytest.raises(SanakitError, match=f"(?s)SK0115.*{told}.*fix: "):
        check(component, **options)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_keeps_the_contract(name):
    check_strategy(name)


@pytest.mark.parametrize("name", DRIFT.names())
def test_every_statistic_keeps_the_contract(name):
    check_statistic(name, draws=2, rows=64)


@pytest.mark.parametrize("name", [name for name, entry in METRICS.entries().items() if entry.embedded])
def test_every_metric_keeps_the_contract(name):
    check_metric(name)


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        (lambda drawn: drawn.images.float().mean(), r"values \(\), expected one a sample, \(2, 8\)"),
        (lambda drawn: torch.rand(2, 8), "two evaluations of the same images differ"),
        (lambda drawn: torch.full((2, 8), torch.nan), "expected one finite number"),
        (lambda drawn: drawn.images.zero_().float().mean((2, 3, 4)), "the images were changed"),
        (lambda drawn: Measured(), "no values and no statistic"),
    ],
)
def test_a_metric_that_breaks_the_contract_is_refused(measure, told):
    broken(check_metric, measure, told)


def test_the_embedded_data_keep_the_contract():
    check_dataset("openclipart")


PCA = VAES.get("pca-f8c4")


class Drawn(PCA):
    def _encode(self, images):
        return super()._encode(images) + torch.rand(1)


class Shared(PCA):
    def _encode(self, images):
        return super()._encode(images) - super()._encode(images).mean(0, keepdim=True)


class Overflowing(PCA):
    def _encode(self, images):
        return super()._encode(images) * torch.tensor(torch.inf)


class Thawed(PCA):
    def encode_posterior(self, images):
        self.model.train()
        return super().encode_posterior(images)


class Keyed(PCA):
    def fingerprint(self):
        return f"{super().fingerprint()} {self.stats}"


class Shifted(PCA):
    def denormalize(self, latents):
        return latents * self.latents_std


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Drawn, "two encodings of the same images differ"),
        (Shared, "depend on the other images of its batch: they differ by"),
        (Overflowing, "raw latents are not finite"),
        (Thawed, "training mode"),
        (Keyed, "the fingerprint depends on the normalisation"),
        (Shifted, "normalising by other statistics cannot be undone"),
        (dict, "no subclass of VAE"),
    ],
)
def test_a_vae_that_breaks_the_contract_is_refused(kind, told):
    broken(check_vae, kind, told)


def test_a_check_leaves_a_vae_as_it_was():
    vae = PCA.tiny()
    vae.set_stats(LatentStats(std=(2.0,)))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    check_vae(vae)
    assert vae.stats == LatentStats(std=(2.0,)) and all(torch.equal(before[k], v) for k, v in vae.state_dict().items())
    with ChangedWeight(torch.nn.Identity()) as changed:
        assert not changed


WordLlama = TEXT_ENCODERS.get("wordllama")


class Pooled(WordLlama):
    def _encode(self, prompts):
        embeds, mask, truncated = super()._encode(prompts)
        return embeds.sum(1, keepdim=True).expand_as(embeds), mask, truncated


class Uncounted(WordLlama):
    def _encode(self, prompts):
        return *super()._encode(prompts)[:2], 0


class PaddedLeft(WordLlama):
    def _encode(self, prompts):
        embeds, mask, truncated = super()._encode(prompts)
        return embeds.flip(1), mask.flip(1), truncated


class Unmasked(WordLlama):
    def _encode(self, prompts):
        embeds, mask, truncated = super()._encode(prompts)
        return embeds, mask.fill_(True), truncated


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Pooled, "'a b c' and 'c b a' differ by 0"),
        (Uncounted, "of two prompts 0 count as truncated, expected the one of 48 words"),
        (PaddedLeft, "tokens behind padding, expected kept tokens first"),
        (Unmasked, "'a b' has 24 tokens of 24 and 12 of 12"),
        (PCA, "no subclass of TextEncoder"),
    ],
)
def test_a_text_encoder_that_breaks_the_contract_is_refused(kind, told):
    broken(check_text_encoder, kind, told)


def gate_of(measure=lambda evidence: float(np.mean(evidence["psnr"])), name="component/ours", **options):
    stated = {"code": "SK0201", "metric": "PSNR (dB)", "at_least": (20.0, 22.0), "needs": ("psnr",)}
    gate = rule(**{key: value for key, value in (stated | options).items() if value is not None})(measure)
    gate.name = name
    return gate


GOOD, BAD = {"psnr": np.full(100, 24.0)}, {"psnr": np.full(100, 18.0)}


def changes(evidence):
    evidence["psnr"] = evidence["psnr"] + 1
    return float(evidence["psnr"].mean())


@pytest.mark.parametrize(
    ("gate", "told"),
    [
        (gate_of(name="ours"), "no stage is named 'ours'"),
        (gate_of(metric=""), "the result has no metric"),
        (gate_of(code="SK9999"), "the code 'SK9999' is not in the catalogue"),
        (gate_of(at_least=(22.0, 20.0)), "strict asks at least 20, which is less than default's 22"),
        (gate_of(needs=("psrn",)), r"needs 'psrn', which stage component does not measure \(did you mean psnr"),
        (gate_of(at_least=(30.0, 32.0)), "on the good evidence the verdict is fail.*24.*threshold 30"),
        (gate_of(at_least=(10.0, 12.0)), "on the bad evidence the verdict is pass, expected fail"),
        (gate_of(at_least=None, at_most=(20.0, 18.0)), "on the good evidence the verdict is fail"),
        (gate_of(changes), "the good evidence was changed"),
        (gate_of(lambda evidence: Measurement(value=24.0, ci=(25.0, 26.0))), "24 lies outside its interval 25 to 26"),
    ],
)
def test_a_gate_that_breaks_the_contract_is_refused(gate, told):
    check_gate(gate_of(), good=GOOD, bad=BAD)
    broken(check_gate, gate, told, good=GOOD, bad=BAD)


def test_a_gate_of_sanakit_keeps_the_contract():
    bad = vae_evidence(seam_ratio=2.0)
    check_gate("component/seams", good=vae_evidence(), bad=bad)
    assert isinstance(Registry("gates").get("component/seams"), Gate)


def statistic_of(**changes):
    def statistic(reference, current, alpha):
        p_value = 0.001 if abs(current[:, 0].mean() - reference[:, 0].mean()) > 1 else 0.5
        facts = {"name": "", "title": "t", "value": 1.0, "p_value": p_value, "threshold": alpha}
        return Reading(**facts | {"alarm": p_value <= alpha} | changes)

    return statistic


def alarming(reference, current, alpha):
    return Reading(name="", title="t", value=1.0, p_value=0.01, threshold=alpha, alarm=True)


def in_place(reference, current, alpha):
    reference -= reference.mean(0)
    return statistic_of()(reference, current, alpha)


def undecided(reference, current, alpha):
    return Reading(name="", title="t", value=float(np.random.random()), threshold=alpha)


@pytest.mark.parametrize(
    ("statistic", "told"),
    [
        (alarming, "5 of 5 clean pairs of latents alarm at alpha 0.05, expected at most 3"),
        (in_place, "it changes the rows"),
        (undecided, "two readings of the same sides differ"),
        (statistic_of(p_value=2.0), "p_value 2.0, expected 0 to 1"),
        (statistic_of(alarm=True), "p 0.5 at alpha 0.05 with alarm True"),
        (statistic_of(threshold=1.0), "threshold is 1.0, expected alpha 0.05"),
        (statistic_of(p_value=0.5, alarm=False), "a planted drift of latents gives value 1, p 0.5.*no alarm"),
        (lambda reference, current: None, "its signature is"),
        (lambda reference, current, alpha: 0.5, "returned float, expected Reading"),
    ],
)
def test_a_statistic_that_breaks_the_contract_is_refused(statistic, told):
    broken(check_statistic, statistic, told, draws=5, rows=40)


class OneGroup(Strategy):
    scales = {"input": 1.0}

    @classmethod
    def parameter_groups(cls, core):
        return [{"params": list(core.patch_embed.parameters()), "scale": 1.0, "name": "input"}]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"scales": {"inputs": 1.0}}, "scales is {'inputs': 1.0}"),
        ({"scales": {"input": 1.0}, "kinds": ()}, "kinds is empty"),
        ({"scales": {"input": 1.0}, "initialise": "aligned"}, "initialise is 'aligned'"),
        ({}, "it states no scales"),
    ],
)
def test_a_strategy_that_breaks_the_contract_is_refused(stated, told):
    broken(check_strategy, type("Ours", (Strategy,), stated), told)


def test_a_strategy_whose_groups_are_not_what_is_trained_is_refused():
    broken(check_strategy, OneGroup, "parameters ask for gradients, 2 are in the groups; expected the same ones")


def data_of(count=80, name="{}", captions=lambda number: ["a"], image=None):
    whole = DATASETS.get("openclipart")().subset(range(count))
    names = [name.format(number) for number in range(count)]
    texts = [captions(number) for number in range(count)]
    images = whole.images if image is None else [image] * count
    return ImageDataset(source="x", names=names, captions=texts, images=images)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"count": 20}, "20 images, expected 64 or more"),
        ({"name": "same"}, "79 names are used twice"),
        ({"captions": lambda number: "a cat"}, "the captions of 0 are 'a cat', expected a list"),
        ({"captions": lambda number: []}, "expected a list of one or more texts"),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_refused(options, told):
    check_dataset(data_of())
    broken(check_dataset, data_of(**options), told)
    broken(check_dataset, lambda: [], "a list, expected an ImageDataset")


def run_new(*arguments):
    return CliRunner().invoke(app, ["new", *map(str, arguments)])


def made(kind, tmp_path):
    """The folder of a new plugin, and its name."""
    name = "smoke/fresh-plugin" if kind == "gate" else "fresh-plugin"
    result = run_new(kind, name, "--out", tmp_path / "made")
    assert result.exit_code == 0 and "pip install -e" in result.stdout, result.output
    return tmp_path / "made", name


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_own_test_and_is_listed(kind, tmp_path, monkeypatch):
    folder, name = made(kind, tmp_path)
    files = ["README.md", "fresh_plugin.py", "pyproject.toml", "test_fresh_plugin.py"]
    assert sorted(path.name for path in folder.iterdir()) == files
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    ((group, points),) = project["entry-points"].items()
    site = tmp_path / "site"
    site.mkdir()
    source = (folder / "fresh_plugin.py").read_text()
    install(site, "fresh_plugin", source, f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(folder))
    registry = Registry(KINDS[kind].listing)
    entry = registry.entries()[name]
    assert (entry.origin, entry.error) == ("fresh_plugin", None) and entry.title and registry.group == group
    try:
        importlib.import_module("test_fresh_plugin").test_the_contract()
        assert registry.get(name) is getattr(sys.modules["fresh_plugin"], KINDS[kind].attribute)
    finally:
        for module in ("fresh_plugin", "test_fresh_plugin"):
            sys.modules.pop(module, None)
        for known in (VAES, TEXT_ENCODERS, DRIFT, STRATEGIES, DATASETS, Registry("gates")):
            known._objects.pop(name, None)
        from sanakit.checks import GATES

        GATES._objects.pop(name, None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("vea", "ours"), "SK0104.*no kind 'vea' .did you mean vae"),
        (("vae", "Ours VAE"), "SK0116.*the name is 'Ours VAE', expected small letters"),
        (("vae", "../ours"), "SK0116.*'../ours', expected no slash"),
        (("gate", "later/ours"), "SK0116.*expected component/, smoke/ or full/"),
        (("vae", "torch"), "SK0116.*'torch' is a module of Python or of an installed package"),
        (("strategy", "class"), "SK0116.*'class' is a module of Python"),
        (("vae", "pca-f8c4"), "SK0116.*vaes has 'pca-f8c4' of builtin already"),
        (("gate", "seams"), "SK0116.*gates has 'component/seams' of builtin already"),
        (("vae", "x" * 61), "SK0116.*at most 60"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_is_written(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SanakitError, match=told):
        write_plugin(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_refused(tmp_path):
    with pytest.raises(SanakitError, match="SK0116.*exists already"):
        write_plugin("vae", "fresh-plugin", tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_kind_of_plugin_can_be_written():
    assert {record.listing for record in KINDS.values()} == PACKAGES.keys() - {"adapters"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_installed_and_passes_pytest(kind, tmp_path):
    """As its README says, in an environment of its own that sees this one's packages."""
    folder, name = made(kind, tmp_path)
    environment = tmp_path / "env"
    venv.create(environment, system_site_packages=True, with_pip=False)
    python = environment / "bin" / "python"
    here = [str(path) for path in sys.path if path.endswith("site-packages")]
    (next((environment / "lib").glob("python*")) / "site-packages" / "outer.pth").write_text("\n".join(here))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "-q", str(folder)]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode and "hatchling" in installed.stderr:
        pytest.skip("the build backend hatchling cannot be fetched here")
    assert installed.returncode == 0, installed.stderr
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", folder], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr
    listed = subprocess.run(
        [python, "-m", "sanakit", "ls", KINDS[kind].listing], capture_output=True, text=True, check=False
    )
    assert name in listed.stdout
