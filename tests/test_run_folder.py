"""A run folder and what may go wrong around it: another configuration, another process, no disk, no memory, secrets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanakit import run as run_module
from sanakit.cli import main
from sanakit.config import make_config
from sanakit.data.store import save_tensors
from sanakit.drift.snapshot import write_snapshot
from sanakit.errors import ExitCode, SanakitError, lacks_memory
from sanakit.files import try_writing, without_secrets, write_aside
from sanakit.records import read_lines
from sanakit.reporting.ci import write_junit, write_markdown
from sanakit.reporting.page import write_html
from sanakit.run import RunFolder, stage_key
from sanakit.swap.memory_advice import advise
from sanakit.swap.resume import drop_later
from sanakit.swap.settings import flat_config
from sanakit.tracebacks import memory_advice, note_work


def test_a_config_that_was_changed_by_hand_is_told_field_by_field(tmp_path):
    config = make_config({"train": {"seed": 3}, "data": {"image_size": 96}})
    RunFolder.open(config, tmp_path / "run")
    assert RunFolder.open(config, tmp_path / "run").config == config
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("image_size: 96", "image_size: 64").replace("seed: 3", "seed: 4"))
    with pytest.raises(SanakitError, match="SK0105") as refused:
        RunFolder.open(config, tmp_path / "run")
    assert "data.image_size is 64 there, 96 asked" in str(refused.value)
    assert "train.seed is 4 there, 3 asked" in str(refused.value)
    file.write_text("train: {batchsize: 3}\n")
    with pytest.raises(SanakitError, match="SK0105.*config.yaml is no configuration of this version"):
        RunFolder.open(config, tmp_path / "run")


def test_what_auto_chose_is_written_down_and_holds_for_the_folder(tmp_path):
    config = make_config({})
    decided = make_config({"data": {"latents": "live", "embeddings": "ahead"}})

    def decide(asked):
        return decided if asked.data.latents == "auto" else asked

    run = RunFolder.open(config, tmp_path / "run", resolve=decide)
    assert run.config.data.latents == "live" and "latents: live" in (tmp_path / "run" / "config.yaml").read_text()
    again = RunFolder.open(config, tmp_path / "run")
    assert again.config == decided and again.key == run.key == RunFolder(tmp_path, config).key
    assert stage_key(again.config, "full") == stage_key(config, "full")
    other = RunFolder.open(make_config({"data": {"latents": "ahead"}}), tmp_path / "run")
    assert other.config.data.latents == "ahead" and other.key == run.key  # it changes no result
    assert "latents: ahead" in (tmp_path / "run" / "config.yaml").read_text()


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    run = RunFolder.open(make_config({}), tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from sanakit.run import RunFolder; from sanakit.config import make_config\n"
        "with RunFolder(Path(sys.argv[1]), make_config({})).locked():\n print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(SanakitError, match=rf"SK0131.*in use by process {other.pid} of .* on .* since 20"),
            run.locked(),
        ):
            pass
        other.kill()
        other.wait()
    with run.locked():  # a process that was killed holds nothing
        assert json.loads((run.path / run_module.LOCK).read_text())["process"]
    assert not (run.path / run_module.LOCK).exists()


def test_memory_that_is_full_is_named_with_the_work_and_what_would_make_it_fit():
    config = make_config({"train": {"batch_size": 32, "accumulate": 2}})

    def raised(error, label="training finetune", cause=None):
        note_work(label, 12, 400)
        with pytest.raises(SanakitError) as found, memory_advice(lambda own: advise(config, own)):
            raise error from cause
        return found.value

    cuda = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    told = raised(cuda)
    assert told.code == "SK0119" and told.exit_code == ExitCode.ENVIRONMENT
    assert "while training finetune (12 of 400): CUDA out of memory. Tried to allocate 2.00 GiB" in str(told)
    assert "--set train.micro_batch=8 (16 images a pass now" in told.fix
    assert "--set data.latents=live --set data.embeddings=live" in raised(MemoryError(), "encoding with a VAE").fix
    wrapped = raised(SanakitError("SK0107", "weights do not fit"), cause=cuda)
    assert wrapped.code == "SK0119" and "disagree" not in str(wrapped)
    plain = SanakitError("SK0107", "weights do not fit")
    with pytest.raises(SanakitError, match="SK0107"), memory_advice(lambda own: None):
        raise plain
    with pytest.raises(ZeroDivisionError), memory_advice(lambda own: None):
        raise ZeroDivisionError
    host = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12"
    assert lacks_memory(RuntimeError(host)) and lacks_memory(OSError(12, "Cannot allocate memory"))
    assert lacks_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")) and not lacks_memory(RuntimeError("x"))


def test_a_folder_is_tried_for_writing_and_a_failed_write_leaves_nothing(tmp_path):
    try_writing(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(SanakitError, match="SK0903.*file/run cannot be written.*no folder"):
        try_writing(tmp_path / "file" / "run")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("x")
    with pytest.raises(SanakitError, match="SK0104.*taken is a folder, expected a file to write"):
        write_aside(tmp_path / "taken", "text")
    with pytest.raises(UnicodeEncodeError):
        write_aside(tmp_path / "file", "half a character: \ud800")
    write_aside(tmp_path / "file", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken"] and (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--model", "tiny-sana", "--prompt", "a cat", "--out"],
        ["evaluate", "--model", "tiny-sana", "--out"],
        ["drift", "a.safetensors", "b.safetensors", "--html"],
        ["drift", "a.safetensors", "b.safetensors", "--snapshot"],
        ["report", "run", "--out"],
        ["compare", "run", "--html"],
        ["validate", "--stage", "component", "--run-dir", "run", "--junit"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_file_that_a_command_writes_at_its_end_is_tried_before_anything_is_loaded(
    words, tmp_path, monkeypatch, capsys
):
    def too_late(*arguments, **options):
        raise AssertionError("loaded first")

    monkeypatch.setattr("sanakit.swap.stages.prepare", too_late)  # first: what it imports takes load_base as it is
    monkeypatch.setattr("sanakit.loading.load_base", too_late)
    monkeypatch.setattr("sanakit.drift.files.compare_files", too_late)
    monkeypatch.setattr("sanakit.reporting.write_report", too_late)
    monkeypatch.setattr("sanakit.reporting.compare.leaderboard", too_late)
    monkeypatch.chdir(tmp_path)
    RunFolder.open(make_config({}), tmp_path / "run")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    cases = [(tmp_path / "file" / "x", 3, "SK0903"), (tmp_path / "fifo", 2, "is no regular file, expected a file")]
    cases += [(Path("/proc/x/y.html"), 3, "SK0903")] if Path("/proc/self").exists() else []
    cases += [] if "--snapshot" in words else [(tmp_path, 2, "is a folder, expected a file")]
    for out, code, told in cases:
        monkeypatch.setattr(sys, "argv", ["sanakit", *words, str(out)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code and told in capsys.readouterr().err


def write_files():
    """Whatever writes a file that a user has named."""
    validation = {"verdict": "pass", "base": "b", "candidate": "c", "stages": {}, "next": ""}
    return {
        "page": lambda path: write_html("text", path),
        "junit": lambda path: write_junit(validation, path),
        "markdown": lambda path: write_markdown(validation, path),
        "snapshot": lambda path: write_snapshot({}, path),
    }


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither links for everybody nor FIFOs")
@pytest.mark.parametrize("kind", write_files())
def test_a_named_file_is_written_whole_through_links_and_over_files_alone(kind, tmp_path):
    write, target = write_files()[kind], tmp_path / "there" / "target"
    (tmp_path / "link").symlink_to(tmp_path / "second")
    (tmp_path / "second").symlink_to("there/target")
    write(tmp_path / "link")
    target.write_text("old")
    target.chmod(0o600)
    write(tmp_path / "link")
    assert target.read_bytes() != b"old" and target.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "round").symlink_to("round")
    for name in ("fifo", "round") + (() if kind == "snapshot" else ("there",)):
        with pytest.raises(SanakitError, match=f"SK0104.*{name} is .*expected a file to write"):
            write(tmp_path / name)
    with pytest.raises(SanakitError, match="SK0903.*cannot be written"):
        write(target / "below")
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "round").is_symlink()
    assert {p.name for p in tmp_path.rglob("*")} == {"link", "second", "there", "target", "fifo", "round"}


DAMAGED = {
    "validation.json": ["[]", "{", '{"stages": 5}', '{"stages": {"component": 5}}', '{"stages": {"smoke": {}}}'],
    "component.json": ["[]", '{"rows": [{"unit": "dB"}]}', '{"rows": 5}', '{"rows": [1]}', b"\xff"],
    "strategy.json": ['{"candidates": {"a": 1}}', "[" * 100_000],
    "figures.json": ["{}", "[1]"],
    "readings.jsonl": ["[1]\n", b'{"stage": "smoke"}\n\xff', '{"sta\n{"stage": "smoke"}\n'],
    "steps.jsonl": ['{"loss": 1}\n', '{"step": "1"}\n'],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in DAMAGED.items() for text in texts])
def test_a_file_that_a_run_does_not_write_so_is_named(name, content, tmp_path):
    run = RunFolder(tmp_path, make_config({}))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    read = {
        "validation.json": run.read_validation,
        "figures.json": lambda: run.read_json("figures.json", []),
        "readings.jsonl": lambda: run.keep_rows("readings.jsonl", lambda row: row.get("stage") != "smoke"),
        "steps.jsonl": lambda: drop_later(run, 3),
    }.get(name, lambda: run.read_json(name, {}))
    with pytest.raises(SanakitError, match=f"SK0109.*{name} does not read as what a run writes"):
        read()


def test_half_a_last_line_goes_before_a_row_is_added(tmp_path):
    run = RunFolder(tmp_path, make_config({}))
    rows = [{"stage": "smoke", "step": step} for step in range(4)]
    run.append("steps.jsonl", rows)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"stage": "smo')
    drop_later(run, 2)
    run.append("steps.jsonl", rows[3:])
    assert read_lines(tmp_path / "steps.jsonl") == rows


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_of_a_run_are_flushed_and_as_private_as_the_umask_says(tmp_path, monkeypatch):
    flushed, flush = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flushed.append(handle), flush(handle))[1])
    before = os.umask(0o077)
    try:
        run = RunFolder.open(make_config({"vae": {"name": "dc-f16c16"}}), tmp_path / "run")
        run.append("metrics.jsonl", [{"step": 1}])
        save_tensors({"x": torch.zeros(2)}, run.path / "x.safetensors")
        with run.locked():
            modes = {path.name: path.stat().st_mode & 0o777 for path in run.path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("config.yaml", "metrics.jsonl", "x.safetensors", ".lock"), 0o600)
    assert len(flushed) == 1  # config.yaml, before it takes its name


SIGNED = "https://name:word@host.org:8080/a/{0..1}.tar?X-Amz-Signature=secret#part"


def test_addresses_are_stored_without_credentials_and_query(tmp_path):
    assert without_secrets(SIGNED) == "https://host.org:8080/a/{0..1}.tar"
    assert without_secrets("s3://bucket/a?b/c.tar") == "s3://bucket/a" and without_secrets("/a?b/c.tar") == "/a?b/c.tar"
    config = make_config({"data": {"source": SIGNED}})
    run = RunFolder.open(config, tmp_path / "run")
    renewed = make_config({"data": {"source": SIGNED.replace("secret", "renewed")}})
    assert RunFolder.open(renewed, tmp_path / "run").key == run.key
    assert run.config.data.source == SIGNED  # this process reads with it
    written = (tmp_path / "run" / "config.yaml").read_text() + json.dumps(flat_config(config))
    assert "secret" not in written and "word" not in written and "host.org" in written


def test_an_index_of_a_signed_address_holds_no_secret_and_is_found_under_a_new_one(tmp_path, monkeypatch):
    import io
    import tarfile

    import fsspec
    from PIL import Image

    from sanakit.data import index, load_images

    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "cache"))
    image, shard = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(image, "PNG")
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, content in (("0.png", image.getvalue()), ("0.txt", b"red")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    remote = fsspec.filesystem("memory")
    for number, word in enumerate(("secret", "renewed")):
        remote.pipe(f"/signed/0.tar?key={word}", shard.getvalue())
        own, first = (remote.store[f"/signed/0.tar?key={w}"] for w in (word, "secret"))
        own.modified, own.created = first.modified, first.created
        read, read_part = [], index.read_part
        monkeypatch.setattr(index, "read_part", lambda *a, r=read, f=read_part: (r.append(a), f(*a))[1])
        found = load_images(f"memory://signed/0.tar?key={word}")
        assert found.images[0] == image.getvalue() and found.names == ["0.tar/0"] and len(read) == 1 - number
        assert found.source == "memory://signed/0.tar"
    with pytest.raises(SanakitError, match="SK0401") as refused:
        load_images("memory://signed/9.tar?key=secret")
    assert "secret" not in str(refused.value)
    stored = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert stored and not any(b"secret" in path.read_bytes() or "secret" in path.name for path in stored)


def test_a_checkpoint_with_a_torn_manifest_is_set_aside_and_said(tmp_path, capsys):
    from sanakit.hashing import hash_record
    from sanakit.swap.resume import set_torn_aside
    from sanakit.training.checkpoint import latest

    for step in (1, 2, 3):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        record = {"step": step}
        text = json.dumps({"record": record, "sha256": hash_record(record)})
        (folder / "manifest.json").write_text({1: text, 2: text.replace('"step": 2', '"step": 9'), 3: text[:20]}[step])
    (tmp_path / "LATEST").write_text("step-00000003")
    set_torn_aside(tmp_path)
    assert latest(tmp_path) == tmp_path / "step-00000001"
    assert sorted(p.name for p in tmp_path.glob("torn-*")) == ["torn-step-00000002.1", "torn-step-00000003.1"]
    said = capsys.readouterr().err
    assert "step-00000003 has a torn manifest (JSONDecodeError" in said and "its hash is not its own" in said
