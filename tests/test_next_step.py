"""What is advised: the decisive gate comes first, and every command, option and key that advice names exists."""

import ast
import itertools
import json
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import sanakit
from sanakit.checks import GATES
from sanakit.checks.causes import FOLLOWS, decisive
from sanakit.cli import (  # noqa: F401  they add their commands
    cache,
    data,
    drift,
    evaluate,
    export,
    info,
    new,
    results,
    swap,
    train,
    translate,
)  # fmt: skip
from sanakit.cli.app import app
from sanakit.config import Config, known_keys, make_config
from sanakit.contracts import GateResult, Verdict
from sanakit.decision import ANSWERS
from sanakit.errors import CODES
from sanakit.reporting.ci import samples_option

ROOT = Path(__file__).parent.parent


def rows(*failed, **values):
    """Rows of failed gates in the order of their registry, which is the order of a validation."""
    known = GATES.names()
    ordered = sorted(failed, key=lambda g: (("component", "smoke", "full").index(g.split("/")[0]), known.index(g)))
    return [{"gate": g, "code": g, "verdict": "fail", "value": values.get(g.split("/")[1], 1.0)} for g in ordered]


@pytest.mark.parametrize(
    ("failed", "first"),
    [
        (["component/scale-high", "component/shift"], "component/shift"),
        (["component/scale-high", "component/shift", "component/finite-latents"], "component/finite-latents"),
        (["component/reconstruction", "component/orientation"], "component/orientation"),
        (["component/scale-low", "component/collapse", "component/dead-channels"], "component/dead-channels"),
        # the instruction alone fills the tokens: every prompt is cut
        (["component/padding-side", "component/prompts-differ", "component/truncation"], "component/truncation"),
        (["component/padding", "component/repeatable-embeddings"], "component/repeatable-embeddings"),
        (["smoke/samples", "smoke/progress", "smoke/prompt-effect"], "smoke/progress"),
        (["full/samples", "full/progress", "full/quality"], "full/progress"),
        (["full/samples", "full/quality", "full/latent-drift"], "full/latent-drift"),
        # forced on: a wrong scale explains what fails later, a base that is not whole does not follow from it
        (["component/scale-high", "smoke/progress", "full/quality"], "component/scale-high"),
        (["component/prompts-differ", "smoke/prompt-effect"], "component/prompts-differ"),
        (["component/seams", "smoke/base"], "smoke/base"),
        (["smoke/base", "smoke/samples", "smoke/progress"], "smoke/base"),
        (["component/scale-high", "smoke/flow-shift", "full/progress"], "smoke/flow-shift"),
    ],
)
def test_the_cause_is_named_in_the_stage_that_decided(failed, first):
    assert decisive(rows(*failed))["gate"] == first


def test_a_few_cut_prompts_explain_nothing_and_nothing_failed_is_nothing():
    few = rows("component/prompts-differ", "component/truncation", truncation=0.06)
    assert decisive(few)["gate"] == "component/prompts-differ"
    assert (
        decisive(rows("component/truncation", "smoke/prompt-effect", truncation=0.06))["gate"] == "smoke/prompt-effect"
    )
    assert decisive([row | {"verdict": "inconclusive"} for row in few]) is None
    theirs = [{"gate": "theirs/x", "code": "SK0114", "verdict": "fail", "value": None}]
    assert decisive(theirs) == theirs[0]


def test_the_order_of_causes_names_gates_that_exist_and_has_no_circle():
    known = set(GATES.names())
    assert {name for gate, causes in FOLLOWS.items() for name in (gate, *causes)} <= known

    def above(gate, seen=()):
        assert gate not in seen, seen
        for cause in FOLLOWS.get(gate, ()):
            above(cause, (*seen, gate))

    for gate in FOLLOWS:
        above(gate)


FAULTS = json.loads((ROOT / "experiments" / "results" / "fault_catalogue.json").read_text())["faults"]


@pytest.mark.parametrize("fault", [f for f in FAULTS if f["gate"] in GATES.names()], ids=lambda f: f["fault"])
def test_every_planted_fault_is_what_next_names(fault):
    failed = [part.split(" ")[0] for part in fault["said"].split("; ") if part.split(" ")[0] in GATES.names()]
    assert decisive(rows(*dict.fromkeys(failed)))["gate"] == fault["gate"]


def test_next_explains_the_decisive_gate(tmp_path):
    from sanakit.swap.decided import command_after

    def result(gate, code, verdict=Verdict.FAIL):
        return GateResult(
            gate=gate, code=code, metric="m", value=2.0, ci_low=None, ci_high=None, threshold=1.0, verdict=verdict
        ).as_dict()

    class Stub:
        bare = False
        config = make_config({})
        run = SimpleNamespace(path="runs/x")

    gates = [result("component/scale-high", "SK0203"), result("component/shift", "SK0209")]
    validation = {"stages": {"component": {"verdict": "fail", "gates": gates}}}
    assert command_after(Stub, validation) == "sanakit explain SK0209"
    broken = GateResult.could_not_be_evaluated("component/theirs", "SK0114", "theirs: KeyError").as_dict()
    validation = {"stages": {"component": {"verdict": "inconclusive", "gates": [broken]}}}
    assert command_after(Stub, validation) == "sanakit explain SK0114"


# what advice names: every fix of the catalogue, and every `fix=` and `hint=` in the code, {...} standing for a value


def text_of(node):
    """The literal text of a string expression; None where it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [text_of(node.left), text_of(node.right)]
        return None if None in parts else "".join(parts)
    return None


def advice():
    """Texts by where they stand: every fix and hint, and whatever else, docstrings apart, names a command or a key."""
    texts = {f"{code} {entry.title}": entry.fix for code, entry in CODES.items()}
    for path in sorted(Path(sanakit.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        told = {keyword.value for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords
                if keyword.arg in ("fix", "hint")}  # fmt: skip
        told |= {branch for node in told if isinstance(node, ast.IfExp) for branch in (node.body, node.orelse)}
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = None if node in docstrings else text_of(node)
            if text and path.name != "errors.py" and (node in told or "--set " in text or "`sanakit " in text):
                texts[f"{path.name}:{node.lineno}:{node.col_offset} {text[:40]}"] = text
    return texts


ADVICE = advice()
COMMAND = typer.main.get_command(app)
SECTIONS = [name for name, field in Config.model_fields.items() if name != "base"]
KEY = re.compile(rf"(?<![\w/-])((?:{'|'.join(SECTIONS)})\.[a-z][a-z_]*)\b")
PLACEHOLDER = re.compile(r"^[A-Z][A-Z0-9_]*$|^\.\.\.$")


def commands(text):
    """`sanakit ...` in backticks; in plain text `sanakit COMMAND` and the options, placeholders and values after it."""
    yield from re.findall(r"`(sanakit [^`]+)`", text)
    for clause in re.findall(r"\bsanakit [a-z][a-z-]+(?: [^;:,()]*)?", re.sub(r"`[^`]*`", " ", text)):
        words = clause.rstrip(". ").split(" ")
        kept = words[:2]
        for before, word in itertools.pairwise(words[1:]):
            value = before.startswith("--") or before in ("cache", "ls")
            if not (word.startswith("--") or PLACEHOLDER.match(word) or (value and re.match(r"^[\w.=]+$", word))):
                break
            kept.append(word)
        if kept[1] in COMMAND.commands or len(kept) > 2:  # else sanakit is the subject of a sentence
            yield " ".join(kept)


def parse(words):
    """The command of the real command line, its arguments parsed; placeholders become values of the right type."""
    command, names = COMMAND, words[1:]
    while hasattr(command, "commands") and names:
        assert names[0] in command.commands, f"no command {names[0]!r} in {' '.join(words)!r}"
        command, names = command.commands[names[0]], names[1:]
    options = {option: p for p in command.params for option in (*p.opts, *p.secondary_opts) if option.startswith("-")}
    arguments = []
    for word in names:
        if word.startswith("-"):
            assert word.partition("=")[0] in options, f"no option {word!r} in {' '.join(words)!r}"
        arguments.append({"SHARE": "0.5"}.get(word, "8") if PLACEHOLDER.match(word) else word)
    try:
        with command.make_context(" ".join(words[:2]), arguments) as context:
            return command, context
    except Exception as error:  # what is named without its arguments is a mention, not a call
        if "missing" not in type(error).__name__.lower() and "NoArgs" not in type(error).__name__:
            raise AssertionError(f"{' '.join(words)!r}: {getattr(error, 'message', error)}") from error
        return command, None


@pytest.mark.parametrize("name", ADVICE)
def test_advice_names_commands_options_and_keys_that_exist(name):
    text = ADVICE[name]
    for line in commands(text):
        parse(shlex.split(line))
    every = {option for command in leaves(COMMAND) for p in command.params for option in (*p.opts, *p.secondary_opts)}
    for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", re.sub(r"(pip|torchrun|nvidia-smi|hf) [^;.]*", "", text)):
        assert option in every, f"{option} is an option of no command: {text}"
    for key in KEY.findall(text):
        section, _, field = key.partition(".")
        known = type(getattr(Config(), section)).model_fields
        assert field in known, f"{key} is no key of the configuration: {text}"
    for key, value in re.findall(r"--set ([A-Za-z_.]+)=(\[[^\]]*\]|[^`\s;,)]+)", text):
        if PLACEHOLDER.match(key):
            continue
        assert key.partition(".")[0] in SECTIONS, text
        if not PLACEHOLDER.match(key.partition(".")[2]) and not PLACEHOLDER.match(value.rstrip(".") or "..."):
            make_config({}, [f"{key}={value}"])
    for page in re.findall(r"\bdocs/[\w-]+\.md", text):
        assert (ROOT / page).is_file(), page
    for code in re.findall(r"SK\d{4}", text):
        assert code in CODES, code


def leaves(command):
    return (
        [leaf for c in command.commands.values() for leaf in leaves(c)] if hasattr(command, "commands") else [command]
    )


def test_the_check_itself_sees_what_does_not_exist():
    assert list(commands("Run sanakit encode --out DIR again, or `sanakit cache prune --damaged`.")) == [
        "sanakit cache prune --damaged",
        "sanakit encode --out DIR",
    ]
    for bad in ("sanakit prune", "sanakit encode --max-set-asides 1", "sanakit cache prune --older-than soon"):
        with pytest.raises(AssertionError):
            parse(shlex.split(bad))
    assert len(ADVICE) > 120 and KEY.findall("set vae.dtype or data.max_set_aside=X") == [
        "vae.dtype",
        "data.max_set_aside",
    ]


NAMED = {line for text in ADVICE.values() for line in commands(text)}
HARMLESS = {line for line in NAMED if line.split()[1] in ("ls", "explain") and line != "sanakit explain"}


@pytest.mark.parametrize("line", [*sorted(HARMLESS), "sanakit train --preset pretrain --dry-run"])
def test_advice_that_only_prints_runs(line):
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


def test_the_five_cases_of_the_report_are_commands_and_keys_that_exist():
    cases = runpy.run_path(str(ROOT / "experiments" / "report_cases.py"))["CASES"]
    assert {case.answer for case in cases.values()} == set(ANSWERS) and len(cases) == 5
    for name, case in cases.items():
        for words in case.commands:
            command, context = parse(["sanakit", *words])
            assert command.name == words[0] and make_config({}, context.params["set_"]), words
        assert words[words.index("--run-dir") + 1].endswith(name)


def test_more_samples_are_asked_for_by_keys_that_exist():
    options = {samples_option(gate) for gate in GATES.names()} - {""}
    for name in ("component/meaning", "smoke/control", "smoke/samples", "full/samples"):
        assert samples_option(name) == "", name  # their number of words or images is fixed
    assert options and options <= set(known_keys())


def test_the_advised_key_raises_the_samples_of_a_gate(small_world, any_target, tmp_path):
    from sanakit.swap import stages as engine

    folder = Path(small_world["data"]["source"])
    for i in range(80, 400):
        pixels = np.random.default_rng(i).integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image number {i}")
    counted = []
    for number in (16, 24):
        values = small_world | {"vae": {"name": "pca-f8c4"}, "component": {"num_images": number}}
        values |= {"smoke": {"held_out": number}, "train": small_world["train"] | {"max_steps": 2}}
        run = engine.prepare(make_config(values), tmp_path / str(number), lambda *_: None, stages=["component", "full"])
        stages = engine.run_stages(run, ["component", "full"], force=True)["stages"].values()
        counted.append({gate["gate"]: gate["samples"] for stage in stages for gate in stage["gates"]})
    few, more = counted
    told = [name for name in few if few[name]]
    assert {name.partition("/")[0] for name in told if samples_option(name)} == {"component", "full"}
    for name in told:
        assert (more[name] > few[name]) == bool(samples_option(name)), name


def test_too_many_set_aside_names_the_option_of_either_command():
    fix = CODES["SK0402"].fix
    assert "--set data.max_set_aside=" in fix and "sanakit encode --max-set-aside" in fix
