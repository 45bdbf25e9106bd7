"""The cache: what is ours is told from what is not, damage blocks nothing, and nothing is removed unasked."""

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from sanakit import cli, inventory
from sanakit.data import store
from sanakit.data.cache import embedding_job
from sanakit.doctor import _cache_health
from sanakit.errors import SanakitError
from sanakit.inventory import State, scan
from sanakit.text_encoders import TEXT_ENCODERS

FACTS = {"kind": "latents", "encoder": "x", "size": 32, "fit": "crop"}


def fill(root, facts=FACTS, count=6, first=0):
    rows = torch.arange(first, first + count)

    def compute(part):
        return {"x": rows[part.start : part.stop].float()[:, None]}

    return store.write(root, facts, rows, compute, row_bytes=8).folder


def unfinished(root, name="latents-" + "0" * 20):
    (root / name).mkdir(parents=True)
    (root / name / "00000.safetensors").write_bytes(b"cut")
    (root / name / f".00001.safetensors.{'a' * 32}").write_bytes(b"half")
    return root / name


def others(root):
    """Folders that lie in a user's cache or data folder and are not entries of the store."""
    files = (
        "my-photos/2024/a.jpg",
        "latents-2024/a.jpg",
        "latents-" + "f" * 20 + "/notes.txt",  # our name, somebody else's content
        "latents-" + "e" * 20 + "/2024/a.jpg",
        "embeddings-" + "g" * 20 + "/00000.safetensors",  # no hexadecimal name
        "native-" + "1" * 20 + "/card.json",
        "gemma-3-270m-gguf-1.0.0/config.json",
        ".gemma-3-270m-gguf-1.0.0-" + "2" * 32 + "/config.json",
        "openmoji-17-192.parquet",
        "latents-" + "0" * 20 + ".safetensors",  # for drift
    )
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("kept")
    (root / ("latents-" + "d" * 20)).symlink_to(root / "my-photos")
    return files


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments, answer=None):
        """What the shell sees of `sanakit ARGUMENTS`; answer: what is typed on the terminal, None without one."""
        monkeypatch.setattr(sys, "argv", ["sanakit", *map(str, arguments)])
        monkeypatch.setattr("sanakit.cli.cache._terminal", lambda: answer is not None)
        monkeypatch.setattr("sys.stdin.readline", lambda: answer, raising=False)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        said = capsys.readouterr()
        return stop.value.code or 0, said.out, said.err

    return run


def test_prune_touches_only_what_is_certainly_ours(tmp_path, call):
    kept = others(tmp_path)
    whole, gone = fill(tmp_path), unfinished(tmp_path)
    half = tmp_path / f".{'latents-' + '3' * 20}.safetensors.tmp"
    half.write_text("x")
    assert "stays: a process may be writing it" in call("cache", "prune", tmp_path)[1]
    os.utime(half, (0, 0))
    code, out, _ = call("cache", "prune", tmp_path, "--yes")
    assert code == 0 and out.count("removed ") == 2
    assert not gone.exists() and not half.exists() and whole.is_dir()
    assert all((tmp_path / name).read_text() == "kept" for name in kept)
    assert (tmp_path / ("latents-" + "d" * 20)).is_symlink()
    assert call("cache", "prune", tmp_path, "--yes")[:2] == (0, "nothing to remove\n")


def test_prune_lists_sizes_asks_and_refuses_without_a_terminal(tmp_path, call):
    folder = unfinished(tmp_path)
    code, out, err = call("cache", "prune", tmp_path)
    assert code == 2 and "SK0410" in err and "--yes" in err and f"{folder}  0.0 MB  unfinished, last written" in out
    code, out, err = call("cache", "prune", tmp_path, "--json")
    (row,) = json.loads(out)["entries"]
    assert code == 2 and "SK0410" in err and (row["bytes"], row["reason"], row["removed"]) == (7, "unfinished", False)
    for answer in ("\n", "n\n", ""):
        code, out, err = call("cache", "prune", tmp_path, answer=answer)
        assert (code, out.splitlines()[-1]) == (0, "nothing was removed") and "Remove 1 entries, 0.0 MB?" in err
    assert folder.is_dir()
    assert "removed" in call("cache", "prune", tmp_path, answer="y\n")[1] and not folder.exists()
    unfinished(tmp_path)
    assert json.loads(call("cache", "prune", tmp_path, "--json", "--yes")[1])["removed"] == [str(folder)]


def test_an_entry_with_a_foreign_file_and_one_that_is_being_filled_stay(tmp_path, call):
    entry = fill(tmp_path)
    (entry / "manifest.json").write_text("{")
    (entry / "notes.txt").write_text("mine")
    busy = unfinished(tmp_path)
    ready, done = multiprocessing.Event(), multiprocessing.Event()

    def work():
        with inventory.at_work(busy):
            ready.set()
            done.wait(30)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    assert ready.wait(30)
    code, out, _ = call("cache", "prune", tmp_path, "--damaged", "--yes")
    done.set()
    child.join()
    assert code == 0 and "removed" not in out
    assert "stays: it holds notes.txt, which is not ours" in out and "stays: a process is filling it" in out
    assert (entry / "notes.txt").read_text() == "mine" and busy.is_dir()
    assert call("cache", "prune", tmp_path, "--yes")[1].count("removed ") == 1  # the claim ended with the process


def test_what_appears_while_an_entry_is_removed_is_left_alone(tmp_path, call, monkeypatch):
    folder = unfinished(tmp_path)
    (item,) = scan(tmp_path)
    (folder / "new.txt").write_text("mine")
    with pytest.raises(OSError):
        inventory.remove(item)
    assert (folder / "new.txt").read_text() == "mine"
    (folder / "new.txt").unlink()
    monkeypatch.setattr("sanakit.cli.cache.remove", lambda item: tmp_path.rmdir())
    code, _, err = call("cache", "prune", tmp_path, "--yes")
    assert code == 3 and "SK0411" in err and str(folder) in err


def broken_manifests():
    shards = [{"name": "00000.safetensors", "rows": 1, "bytes": 1, "sha256": "0"}]
    whole = {"facts": FACTS, "rows": "0", "count": 1, "environment": {}, "shards": shards}
    outside = [shards[0] | {"name": "../../mine.safetensors"}]
    return {
        "cut": '{"facts"',
        "empty": "",
        "not UTF-8": b"\xff\xfe{}",
        "deep": "[" * 100_000,
        "a list": "[1]",
        "null": "null",
        "no shards": json.dumps({k: v for k, v in whole.items() if k != "shards"}),
        "shards of text": json.dumps(whole | {"shards": ["x"]}),
        "count of text": json.dumps(whole | {"count": "many"}),
        "a path outside": json.dumps(whole | {"shards": outside}),
        "no shard": json.dumps(whole | {"shards": [], "count": 0}),
        "fewer rows": json.dumps(whole | {"count": 99999}),
        "rows below zero": json.dumps(whole | {"count": -5, "shards": [shards[0] | {"rows": -5}]}),
        "another entry's": json.dumps(whole),
    }


@pytest.mark.parametrize("name", broken_manifests())
def test_one_damaged_manifest_blocks_neither_look_up_nor_ls_and_prune_cures_it(tmp_path, call, name):
    content = broken_manifests()[name]
    good, bad = fill(tmp_path), fill(tmp_path, FACTS | {"encoder": "y"})
    (bad / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert store.find(tmp_path, FACTS, torch.arange(6))[0].folder == good
    assert store.find(tmp_path, FACTS | {"encoder": "y"}, torch.arange(6)) is None
    rows = {Path(row["folder"]): row for row in json.loads(call("cache", "ls", tmp_path, "--json")[1])}
    assert rows[good]["state"] == "whole" and rows[good]["count"] == 6
    assert rows[bad]["state"] == "damaged" and "manifest.json" in rows[bad]["detail"] and rows[bad]["bytes"] > 0
    assert f"{bad}" in call("cache", "ls", tmp_path)[1] and "damaged" in call("cache", "ls", tmp_path)[1]
    code, out, _ = call("cache", "verify", tmp_path)
    assert code == 1 and str(bad) in out
    assert call("cache", "prune", tmp_path, "--yes")[1] == "nothing to remove\n"
    assert f"removed {bad}" in call("cache", "prune", tmp_path, "--damaged", "--yes")[1]
    assert good.is_dir() and not bad.exists() and call("cache", "verify", tmp_path)[0] == 0


def test_a_look_up_repairs_its_own_entry_and_never_takes_another_entrys_shards(tmp_path):
    mine, theirs = fill(tmp_path), fill(tmp_path, FACTS | {"encoder": "y"}, first=100)
    for file in ("manifest.json", "00000.safetensors"):
        shutil.copy(theirs / file, mine / file)
    assert store.find(tmp_path, FACTS, torch.arange(6)) is None
    assert fill(tmp_path) == mine
    entry, shards, where = store.find(tmp_path, FACTS, torch.arange(6))
    assert torch.equal(store.Rows(shards["x"], where)[:][:, 0], torch.arange(6).float()) and not entry.damage()


def test_a_damaged_shard_blocks_no_whole_entry_of_the_same_facts(tmp_path):
    small, large = fill(tmp_path, count=4), fill(tmp_path, count=8)
    (small / "00000.safetensors").write_bytes(b"x")
    assert store.find(tmp_path, FACTS, torch.arange(4))[0].folder == large
    shard = large / "00000.safetensors"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(SanakitError, match=rf"SK0404.*\n.*damaged.*\n.*cache prune {tmp_path} --damaged"):
        store.find(tmp_path, FACTS, torch.arange(4))


def test_what_must_be_in_the_cache_is_refused_with_the_damaged_entry_named(tmp_path):
    bad = fill(tmp_path)
    (bad / "manifest.json").write_text("{")
    with pytest.raises(SanakitError, match=rf"SK0404.*{bad.name}(.|\n)*prune {tmp_path} --damaged"):
        store.refuse_other(tmp_path, FACTS)
    fill(tmp_path, FACTS | {"encoder": "y"})
    with pytest.raises(SanakitError, match=rf"SK0404.*encoder is y, expected x; another entry is damaged.*{bad.name}"):
        store.refuse_other(tmp_path, FACTS)


def test_doctor_counts_entries_of_the_store_alone(tmp_path):
    others(tmp_path)
    assert _cache_health(tmp_path) == {"check": "cache health", "status": "ok", "detail": "0 entries, 0 MB", "fix": ""}
    folder = fill(tmp_path)
    unfinished(tmp_path)
    row = _cache_health(tmp_path)
    assert (row["status"], row["fix"]) == ("warn", "sanakit cache prune") and "1 entries" in row["detail"]
    assert "1 unfinished" in row["detail"]
    (folder / "00000.safetensors").write_bytes(b"x")
    row = _cache_health(tmp_path)
    assert row["status"] == "fail" and "00000.safetensors has 1 bytes" in row["detail"]
    assert row["fix"] == "sanakit cache prune --damaged"


def test_old_entries_go_by_option_and_the_file_for_drift_stays(tmp_path, call):
    entry = fill(tmp_path)
    beside = entry.with_suffix(".safetensors")
    beside.write_text("kept")
    for path in (*entry.iterdir(), entry):
        os.utime(path, (0, 0))
    assert [item.state for item in scan(tmp_path)] == [State.WHOLE]
    assert call("cache", "prune", tmp_path, "--yes")[1] == "nothing to remove\n"
    code, out, _ = call("cache", "prune", tmp_path, "--older-than", "30", "--yes")
    assert code == 0 and "days old" in out and not entry.exists() and beside.read_text() == "kept"


def test_rows_that_are_added_are_encoded_and_not_the_whole_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "hashes"))
    encoder = TEXT_ENCODERS.get("minilm").tiny()
    texts = [f"{a} {b}" for a in "abcdef" for b in "ghij"]
    encoded = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda prompts, **k: (encoded.append(len(prompts)), encode(prompts, **k))[1])
    first = embedding_job(encoder, texts).run(tmp_path)
    assert encoded == [24] and not first[2]
    more = ["new", *texts[:10], "another", *texts[10:]]
    entry, tensors, reused = embedding_job(encoder, more).run(tmp_path)
    assert encoded == [24, 4, 2] and not reused and entry.manifest["count"] == 2  # four for the spot check
    assert torch.equal(tensors["embeds"][:], encode(more).embeds.half()) and torch.equal(
        tensors["mask"][:], encode(more).mask
    )
    again = embedding_job(encoder, more[::-1]).run(tmp_path, must_exist=True)
    assert again[2] and torch.equal(again[1]["embeds"][:], tensors["embeds"][:].flip(0)) and encoded[3:] == [4]
    with pytest.raises(SanakitError, match="SK0404.*some of this run are not in it"):
        embedding_job(encoder, [*more, "third"]).run(tmp_path, must_exist=True)
    shards = [file for file in tmp_path.glob("embeddings-*/0*") if file.parent == entry.folder]
    blob = bytearray(shards[0].read_bytes())
    blob[-1] ^= 1
    shards[0].write_bytes(blob)
    with pytest.raises(SanakitError, match="SK0404.*is damaged"):
        embedding_job(encoder, more).run(tmp_path)


def test_a_shard_is_hashed_when_it_changes_and_whenever_it_is_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "known"))
    folder, hashed = fill(tmp_path), []
    shard = folder / "00000.safetensors"
    os.utime(shard, ns=(shard.stat().st_mtime_ns - 10**9,) * 2)
    file_hash = inventory.file_hash
    monkeypatch.setattr(inventory, "file_hash", lambda path: (hashed.append(path), file_hash(path))[1])
    for _ in range(3):
        store.find(tmp_path, FACTS, torch.arange(6))
    assert hashed == [shard]
    assert store.entries(tmp_path)[0].damage() == [] and len(hashed) == 2
    blob = bytearray(shard.read_bytes())
    blob[-1] ^= 1
    shard.write_bytes(blob)
    with pytest.raises(SanakitError, match="SK0404.*damaged"):
        store.find(tmp_path, FACTS, torch.arange(6))


def test_the_jobs_of_an_array_fill_one_entry_and_the_last_finishes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "hashes"))
    encoder, texts = TEXT_ENCODERS.get("minilm").tiny(), [f"{a} {b}" for a in "abcdef" for b in "ghij"]
    monkeypatch.setattr(store, "SHARD_BYTES", 5 * embedding_job(encoder, texts).row_bytes)  # 24 rows: 5 shards
    jobs = [embedding_job(encoder, texts) for _ in range(3)]
    assert [job.run_share(tmp_path, (number, 3)) for number, job in enumerate(jobs)] == [3, 1, 0]
    entry, tensors, reused = jobs[0].run(tmp_path)
    assert (
        reused
        and len(entry.manifest["shards"]) == 5
        and torch.equal(tensors["embeds"][:], encoder.encode(texts).embeds.half())
    )
    assert jobs[1].run_share(tmp_path, (1, 3)) == 0
    from sanakit.cli.encode_options import share_of

    assert share_of("3/8") == (2, 8) and share_of(None) is None
    for wrong in ("0/8", "9/8", "3", "a/b", "-1/3"):
        with pytest.raises(SanakitError, match="SK0104.*expected I/N"):
            share_of(wrong)


def test_rows_over_shards_read_as_the_tensor_that_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(20, 2, 3, 4, generator=generator)
    rows, view, none = torch.tensor([3, 0, 19, 3]), torch.tensor([1, 0, 0, 1]), torch.zeros(0, dtype=torch.long)
    keys = (slice(2, 5), rows, 5, (rows, view), (rows, 0), (slice(None), 0), (slice(1, 4), slice(0, 1)), (5, 1))
    for shards in ([whole], [whole[:7], whole[7:8], whole[8:]]):
        index = torch.randperm(20, generator=generator)
        read, expected = store.Rows(shards, index, lambda x: 2 * x), 2 * whole[index]
        for key in (*keys, (slice(0), 0), none, (none, none), (rows, slice(None), 2), (rows, view, 1)):
            assert torch.equal(read[key], expected[key]) and read[key].shape == expected[key].shape, key
