"""Exit codes: what is no verdict never resembles one, and standard output stays one document."""

import builtins
import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from sample_run import verdict_alone

from sanakit import cli
from sanakit.cli import info
from sanakit.cli.ending import exit_code_of
from sanakit.cli.options import known_answer
from sanakit.errors import CODES, ExitCode, SanakitError
from sanakit.tracebacks import describe, guarded, kept_in, unexpected, write_traceback


class Panic(BaseException):
    """As the Rust extensions of tokenizers and safetensors raise it: no Exception."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments, raised=None, prints=""):
        """What the shell sees of `sanakit ARGUMENTS`, where listing prints something and raises."""

        def stop():
            builtins.print(prints, end="")
            if raised is not None:
                raise raised
            return {}

        monkeypatch.setattr(info, "registries", stop)
        monkeypatch.setattr(info, "base_cards", dict)
        monkeypatch.setattr(sys, "argv", ["sanakit", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return run


@pytest.mark.parametrize(
    "raised",
    [
        KeyError("attn"),
        ValueError("two\nlines"),
        FileNotFoundError(errno.ENOENT, "a file of ours"),
        EOFError("cut short"),
        typer.Abort(),
        AssertionError(),
        RecursionError("deep"),
        Panic("index out of bounds"),
        SystemExit(1),
        SystemExit("a library gives up"),
        ModuleNotFoundError("No module named 'sanakit.nothing'", name="sanakit.nothing"),
    ],
    ids=lambda e: f"{type(e).__name__}-{e}".strip("-"),
)
def test_an_unexpected_error_is_5_one_line_and_a_traceback_in_a_file(call, raised, tmp_path):
    for arguments in (["ls"], ["ls", "--json"]):
        code, out, err = call(*arguments, raised=raised)
        assert code == ExitCode.ERROR == 5 and out == "" and "Traceback" not in err
        first, *rest = err.splitlines()
        assert first.startswith(f"error[SK0999]: {type(raised).__name__}") and rest[-1].endswith("explain SK0999")
        assert "(sanakit/cli/info.py, line " in first
        file = Path(first.rpartition("traceback: ")[2])
        assert file.parent == tmp_path / "cache" / "tracebacks"
        text = file.read_text()
        assert "Traceback (most recent call last)" in text and "command: sanakit ls" in text and "torch" in text


@pytest.mark.parametrize(
    ("raised", "code", "name"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs"), 3, "SK0903"),
        (PermissionError(errno.EACCES, "Permission denied"), 3, "SK0903"),
        (MemoryError(), 3, "SK0119"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 3, "SK0119"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 3, "SK0119"),
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), 3, "SK0901"),
        (SanakitError("SK0401", "x"), 2, "SK0401"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(143), 143, ""),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None,
)
def test_what_the_environment_or_the_user_does_keeps_its_own_code(call, raised, code, name, tmp_path):
    exit_code, out, err = call("ls", raised=raised)
    assert exit_code == code and out == "" and err.startswith(f"error[{name}]" if name else "")
    assert not list((tmp_path / "cache").rglob("*.txt"))


def test_with_json_what_libraries_print_goes_to_standard_error(call):
    code, out, err = call("ls", "--json", prints="a banner\n")
    assert (code, json.loads(out), err) == (0, [], "a banner\n")
    assert call("ls", "--json", prints="half", raised=KeyError("x"))[1] == ""
    assert call("ls", prints="shown\n")[1] == "shown\n"


def test_json_has_neither_nan_nor_infinity(capsys):
    from sanakit.cli.output import print_json

    print_json({"value": float("nan"), "span": (1.0, float("inf")), "rows": [{"p": float("-inf")}], "path": Path("a")})

    def refuse(name):
        return pytest.fail(name)

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document == {"value": None, "span": [1.0, None], "rows": [{"p": None}], "path": "a"}


@pytest.mark.parametrize(
    ("answer", "fail_on", "code"),
    [
        ("do-not", None, 0),
        ("do-not", "do-not", 1),
        ("not-yet", "do-not", 0),
        ("not-yet", "not-yet", 1),
        ("do-not", "not-yet", 1),
        ("swap-with-loss", "not-yet", 0),
        ("swap", "not-yet", 0),
    ],
)
def test_the_exit_code_is_the_verdicts_and_fail_on_follows_the_decision(answer, fail_on, code):
    validation = {"verdict": "pass", "stages": {}, "decision": {"answer": answer}}
    assert exit_code_of(validation, fail_on) == code
    with pytest.raises(SanakitError, match="SK0104.*--fail-on is 'never', expected do-not or not-yet"):
        known_answer("never")


def test_in_a_run_the_traceback_lies_in_the_run_folder(tmp_path, monkeypatch, capsys, small_world):
    from sanakit.config import dump_config, make_config
    from sanakit.swap import stages

    def broken(name):
        raise KeyError("attn")

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = make_config(small_world)
    (run_dir / "config.yaml").write_text(dump_config(config))
    monkeypatch.setattr("sanakit.loading.load_core", broken)
    monkeypatch.setitem(stages.RUNNERS, "smoke", lambda swap: swap.base_system)
    arguments = ["validate", "--stage", "smoke", "--run-dir", str(run_dir), "--json"]
    monkeypatch.setattr(sys, "argv", ["sanakit", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 5 and said.out == ""
    (file,) = run_dir.glob("traceback-*.txt")
    line = next(line for line in said.err.splitlines() if line.startswith("error[SK0999]: KeyError: 'attn'"))
    assert line.endswith(f"traceback: {file}") and "KeyError: 'attn'" in file.read_text()


def test_where_no_folder_can_be_written_the_line_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    assert write_traceback(KeyError("x")).parent == tmp_path / "temporary"
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file" / "below"))
    assert write_traceback(KeyError("x")) is None


def test_a_traceback_is_written_once_and_a_refusal_is_none(tmp_path):
    with pytest.raises(KeyError) as raised, kept_in(tmp_path), kept_in(tmp_path / "missing"):
        raise KeyError("x")
    assert len(list(tmp_path.iterdir())) <= 1 and write_traceback(raised.value) == raised.value.traceback_file
    with pytest.raises(SanakitError), kept_in(tmp_path / "none"):
        raise SanakitError("SK0401", "x")
    assert not (tmp_path / "none").exists() and not unexpected(SanakitError("SK0401", "x"))
    with pytest.raises(SystemExit):
        guarded(lambda: sys.exit(143))
    assert isinstance(guarded(lambda: sys.exit(2))[1], SystemExit)


@pytest.fixture
def shell(tmp_path):
    """What `sanakit ARGUMENTS REDIRECTION` ends with, and what it says on standard error; a run is in the folder."""
    (tmp_path / "run").mkdir()
    verdict_alone(tmp_path / "run")

    def run(line, *, unread=False):
        reader, writer = os.pipe()
        os.close(reader)
        command = f"{shlex.quote(sys.executable)} -m sanakit {line}"
        out = writer if unread else subprocess.DEVNULL
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, stdout=out, stderr=subprocess.PIPE, timeout=60)
        os.close(writer)
        return done.returncode, done.stderr.decode()

    return run


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither bash nor SIGPIPE")
@pytest.mark.parametrize("line", ["ls", "ls --json", "compare run", "--help", "cache --help", "nope 2>&1"])
def test_a_reader_that_has_seen_enough_is_no_failed_gate(shell, line, tmp_path):
    assert shell(line, unread=True) == (141, "") and not (tmp_path / "cache" / "tracebacks").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither bash nor SIGPIPE")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ls >&-", 0),
        ("ls --json >&-", 0),
        ("compare run <&- >&- 2>&-", 0),
        ("explain SK9999 >&-", 2),
        ("explain SK9999 2>&-", 2),
    ],
)
def test_a_stream_that_the_shell_has_closed_leads_nowhere(shell, line, code, tmp_path):
    ended, said = shell(line)
    assert ended == code and said.startswith("error[SK0108]" if "SK9999 >" in line else "")
    assert not (tmp_path / "cache" / "tracebacks").exists()


def test_what_a_command_prints_in_a_run_may_meet_a_closed_pipe(tmp_path):
    def print_unread():
        try:
            raise BrokenPipeError
        except BrokenPipeError:
            raise SystemExit(1)  # noqa: B904  as rich does

    with pytest.raises(SystemExit), kept_in(tmp_path):
        print_unread()
    assert not list(tmp_path.iterdir())
    with pytest.raises(BrokenPipeError), kept_in(tmp_path):
        raise BrokenPipeError  # of something that is not our output
    assert len(list(tmp_path.iterdir())) == 1


def test_a_package_is_named_by_its_file():
    def raised_in(name, code):
        scope = {"__name__": name} | ({"__path__": []} if name == "sanakit.cli" else {})
        return guarded(lambda: exec(code, scope))[1]

    assert "(sanakit/cli/__init__.py, line 1)" in describe(raised_in("sanakit.cli", "1 / 0"))
    assert "(sanakit/cli/app.py, line 2)" in describe(raised_in("sanakit.cli.app", "\n1 / 0"))


def test_every_exit_code_is_documented():
    page = (Path(__file__).parent.parent / "docs" / "concepts.md").read_text()
    codes = {value for name, value in vars(ExitCode).items() if name.isupper()}
    assert codes == {0, 1, 2, 3, 4, 5} and all(f"| {code} |" in page for code in codes)
    assert {entry.exit_code for entry in CODES.values()} <= codes
    assert CODES["SK0999"].exit_code == CODES["SK0114"].exit_code == CODES["SK0103"].exit_code == 5
