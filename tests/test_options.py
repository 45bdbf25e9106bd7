"""Options and keys that say nothing, or more than arithmetic holds: refused with what was found, before anything runs.

The first tests go over every command and every key, so that a new one is bounded too.
"""

import inspect
import typing
from pathlib import Path

import pytest
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from sanakit.api.options import as_count, as_seed
from sanakit.cli import cache, data, drift, evaluate, export, info, new, results, swap, train, translate  # noqa: F401
from sanakit.cli.app import TEXTS, app
from sanakit.cli.encode_options import share_of
from sanakit.config import Config, dump_config, known_keys, load_config, make_config
from sanakit.config_fields import merged_values
from sanakit.contracts import TextSpec
from sanakit.data import load_images
from sanakit.errors import SanakitError
from sanakit.folders import local_path
from sanakit.limits import LARGEST_SEED
from sanakit.needs.fit import parse_size
from sanakit.run import RunFolder

HUGE = 10**23
COMMANDS = {(command.name or command.callback.__name__,): command.callback for command in app.registered_commands}
COMMANDS |= {("cache", command.name): command.callback for command in cache.cache.registered_commands}
PARAMETERS = [
    (words, name, hint)
    for words, callback in COMMANDS.items()
    for name, hint in typing.get_type_hints(callback, include_extras=True).items()
    if typing.get_origin(hint) is typing.Annotated
]


def plain_types(hint):
    """The types and literal values in an annotation."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return plain_types(arguments[0])
    return {one for argument in arguments for one in plain_types(argument)} if arguments else {hint}


def with_type(*types):
    chosen = [parameter for parameter in PARAMETERS if not plain_types(parameter[2]).isdisjoint(types)]
    return [pytest.param(*parameter, id=" ".join([*parameter[0], parameter[1]])) for parameter in chosen]


def annotation(key):
    section, _, name = key.partition(".")
    field = Config.model_fields[section]
    return (field.annotation.model_fields[name] if name else field).rebuild_annotation()


def refused(work, *words):
    with pytest.raises(SanakitError) as error:
        work()
    assert error.value.code == "SK0104" and all(word in error.value.found for word in words), error.value.found


def call(*arguments):
    CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.mark.parametrize(("words", "name", "hint"), with_type(int))
def test_every_whole_number_has_an_upper_bound(words, name, hint):
    assert hint.__metadata__[0].max is not None


@pytest.mark.parametrize(("words", "name", "hint"), with_type(str, Path))
def test_no_command_takes_an_empty_text_for_a_name_or_a_path(words, name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in TEXTS:
        return
    arguments = []
    for other, parameter in inspect.signature(COMMANDS[words]).parameters.items():
        wanted = other == name or (parameter.default is inspect.Parameter.empty and other != "ctx")
        kind = typing.get_type_hints(COMMANDS[words], include_extras=True)[other]
        if wanted:
            stated = kind.__metadata__[0]
            arguments += [] if isinstance(stated, ArgumentInfo) else [(*stated.param_decls, stated.default)[0]]
            arguments.append("" if other == name else "x")
    result = CliRunner().invoke(app, [*words, *arguments])
    assert result.exit_code == 2 or result.exception.code == "SK0104"
    own = name in ("budget_steps", "progress", "fail_on")  # they say what they expect
    assert own or "is empty" in result.exception.found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", known_keys())
def test_every_number_of_the_configuration_is_finite_bounded_and_no_boolean(key):
    types = plain_types(annotation(key))
    wrap = {"train.rates": "{{input: {}}}", "monitors.bands": "{{adapters: {}}}", "smoke.rates": "[{}]"}.get(key, "{}")
    if types.isdisjoint((int, float)):
        return
    bad = [".nan", ".inf", "-.inf", *(["true"] if bool not in types else []), *([HUGE, "1e23"] if int in types else [])]
    for value in bad:
        refused(lambda text=wrap.format(value): make_config({}, [f"{key}={text}"]), key)


@pytest.mark.parametrize("key", known_keys())
def test_no_name_of_the_configuration_is_empty(key):
    if str not in plain_types(annotation(key)):
        return
    wrap = "['{}']" if key in ("smoke.strategies", "evaluate.metrics") else "'{}'"
    for value in ("", " ", "path:"):
        refused(lambda text=wrap.format(value): make_config({}, [f"{key}={text}"]), key, "expected a name")
    refused(lambda: make_config({}, [f"{key}="]), key, "has no value")


def test_rates_of_the_race_are_bounded_like_a_learning_rate():
    assert make_config({}, ["smoke.rates=[0.5, 2]"]).smoke.rates == (0.5, 2.0)
    for rate in (-1, 0):
        refused(lambda rate=rate: make_config({}, [f"smoke.rates=[{rate}]"]), "greater than 0")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1: 2", "1"),
        ("null: 2", "None"),
        ("train: {1: 2}", "train.1"),
        ("train: {seed: 1, seed: 2}", "'seed' is there twice"),
        ("train: {seed: 1}\ntrain: {seed: 2}", "'train' is there twice"),
        ("[]", "list"),
        ("false", "bool"),
    ],
)
def test_a_file_whose_keys_are_no_text_or_stand_there_twice_is_refused(tmp_path, text, word):
    (tmp_path / "c.yaml").write_text(text)
    refused(lambda: load_config(tmp_path / "c.yaml"), word)


def test_an_empty_file_is_the_default_configuration(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert load_config(tmp_path / "c.yaml") == Config()


def test_what_the_library_is_given_is_bounded_too():
    assert as_seed(LARGEST_SEED) == LARGEST_SEED
    for work in (lambda: as_seed(LARGEST_SEED + 1), lambda: as_count("count", HUGE)):
        refused(work, "at most")
    for work in (lambda: load_images(""), lambda: local_path(""), lambda: local_path(" ")):
        refused(work, "is empty")
    with pytest.raises(ValueError, match="at most"):
        TextSpec(embed_dim=8, max_tokens=HUGE)


@pytest.mark.parametrize("text", ["infGB", "1e400GB", "nan", "-1GB", "24", "0.5MB", "1e30GB", "GB", "²GB"])
def test_a_memory_that_is_no_memory_is_refused(text):
    refused(lambda: parse_size(text), text, *(["did you mean 24GB?"] if text == "24" else []))


@pytest.mark.parametrize("text", ["²/³", "1", "0/3", "4/3", f"1/{'9' * 5000}"])
def test_a_share_is_two_numbers(text):
    refused(lambda: share_of(text), "expected I/N")
    assert share_of("3/8") == (2, 8)


VAE, TEXT = ("--vae", "dc-f16c16"), ("--text-encoder", "wordllama")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "needs --vae"),
        ((*TEXT, "--base", "tiny-sana"), "--base without --vae"),
        ((*TEXT, "--mirror", "--fit", "pad"), "--mirror and --fit without --vae"),
        ((*TEXT, "--vae-dtype", "auto"), "--vae-dtype without --vae"),
        ((*TEXT, "--image-size", 32), "--image-size without --vae"),
        ((*VAE, "--text-encoder-dtype", "fp16"), "--text-encoder-dtype without --text-encoder"),
        ((*VAE, "--max-aspect", 2), "--max-aspect without --aspect-buckets"),
        ((*VAE, "--batch-size", 32, "--patch-size", 1), "--batch-size and --patch-size without --aspect-buckets"),
    ],
)
def test_encode_refuses_what_would_change_nothing(tmp_path, arguments, told):
    out = tmp_path / "out"
    refused(lambda: call("encode", "--out", out, *arguments), told)
    assert not out.exists()


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_no_option_takes_what_is_no_finite_number(tmp_path, number):
    command = ["sample", "--model", "tiny-sana", "--prompt", "", "--out", str(tmp_path / "o.png")]
    result = CliRunner().invoke(app, [*command, "--guidance-scale", number])
    assert result.exit_code == 2 or f"--guidance-scale is {number}" in result.exception.found  # 2: NaN is in no range


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--device", "nope"), "'nope' is no device"),
        (("--progress", "nope"), "--progress is 'nope'"),
        (("--seed", 5, "--set", "train.seed=true"), "train.seed"),
        (("--report-to", "tensorboard,nope"), "train.report_to.1"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(arguments, told):
    refused(lambda: call("train", "--preset", "pretrain", "--dry-run", *arguments), told)


@pytest.mark.parametrize("option", ["--seconds-per-step", "--seconds-per-image"])
def test_a_zero_is_given(monkeypatch, option):
    asked = []
    monkeypatch.setattr(train, "print_needs", lambda *_, **options: asked.append(options))
    call("train", "--preset", "pretrain", "--dry-run", option, 0)
    assert asked[0][option[2:].replace("-", "_")] == 0


@pytest.fixture
def configured(monkeypatch):
    """Runs a command up to its stages and gives the configuration that they would read."""
    configs = []
    monkeypatch.setattr(swap, "run", lambda config, *_, **__: configs.append(config))
    monkeypatch.setattr(train, "run", lambda config, *_, **__: configs.append(config))

    def configure(*arguments):
        call(*arguments)
        return configs.pop()

    return configure


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--preset", "pretrain"),
        ("swap-vae", "--candidate", "dc-f16c16"),
        ("swap-text-encoder", "--candidate", "wordllama"),
        ("validate", "--stage", "component", "--vae", "dc-f16c16"),
    ],
)
def test_set_wins_over_an_option_in_every_command(configured, command):
    assert configured(*command, "--seed", 5).train.seed == 5
    assert configured(*command, "--seed", 5, "--set", "train.seed=6").train.seed == 6


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (("--base", "path:elsewhere"), "base"),
        (("--data", "openclipart"), "data.source"),
        (("--seed", 0), "train.seed"),
        (("--vae", "dc-f16c16"), "vae.name"),
        (("--text-encoder", "wordllama"), "text_encoder.name"),
    ],
)
def test_validate_refuses_another_question_than_its_run_folders(configured, tmp_path, options, key):
    asked = make_config({"vae": {"name": "pca-f16c16"}, "train": {"seed": 3}})
    (tmp_path / "config.yaml").write_text(dump_config(asked))
    command = ("validate", "--stage", "component", "--run-dir", tmp_path)
    assert configured(*command) == asked
    assert configured(*command, "--vae", "pca-f16c16", "--seed", 3, "--base", "tiny-sana") == asked
    with pytest.raises(SanakitError, match=rf"SK0105.*\b{key} is "):
        RunFolder.open(configured(*command, *options), tmp_path, ["component"])


def test_values_of_options_replace_those_of_a_file_key_by_key():
    there = {"train": {"seed": 1, "warmup": 2}, "vae": None, "data": 1}
    merged = merged_values(there, {"train": {"seed": 3}, "base": "x", "vae": {"name": "y"}, "data": {"source": "z"}})
    assert merged == {"train": {"seed": 3, "warmup": 2}, "vae": {"name": "y"}, "data": 1, "base": "x"}


def test_without_a_base_later_stages_are_refused_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("sanakit.swap.context.load_images", lambda *_, **__: pytest.fail("the data were read"))
    run_dir = tmp_path / "run"
    refused(lambda: call("swap-vae", "--candidate", "dc-f16c16", "--base", "none", "--run-dir", run_dir), "smoke need")
    assert not run_dir.exists()
