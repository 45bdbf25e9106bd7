"""Whatever is in a file that somebody else wrote: an error with a code, or a result; never a traceback,
never a hang."""

import io
import json
import struct
import tarfile
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sanakit.checks import load_policy
from sanakit.cli.view import print_leaderboard
from sanakit.config import load_config, make_config
from sanakit.data import load_images
from sanakit.drift.read import read_samples
from sanakit.errors import SanakitError
from sanakit.loading import load_vae
from sanakit.reporting import write_report
from sanakit.reporting.ci import markdown, write_junit
from sanakit.reporting.compare import differing, leaderboard, write_comparison

FUZZ = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe0def46b8"
    "0000000049454e44ae426082"
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MARKUP = "</td><script>alert(1)</script>{{ 7*7 }}{% raw %}\"'&\x00\x1b[31m|`[a](javascript:b)\n# x"


def survives(work):
    """The result, or None where it was refused by code; anything else fails the test."""
    with suppress(SanakitError):
        return work()
    return None


@FUZZ
@given(
    st.binary(max_size=200) | st.lists(json_values, max_size=3).map(lambda v: "\n".join(map(json.dumps, v)).encode())
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_manifests(tmp_path, suffix, data):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    survives(lambda: load_images(str(path)))


@FUZZ
@given(st.dictionaries(st.sampled_from(["image", "caption", "x"]), json_values, max_size=3))
def test_manifest_rows(tmp_path, row):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a"}) + "\n" + json.dumps(row))
    survives(lambda: load_images(str(tmp_path / "m.jsonl")))


@FUZZ
@given(st.binary(max_size=80))
def test_captions_are_text_whatever_their_bytes(tmp_path, data):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.txt").write_bytes(data)
    dataset = survives(lambda: load_images(str(tmp_path)))
    assert dataset is None or all(isinstance(caption, str) and caption for caption in dataset.captions[0])


@FUZZ
@given(st.text(max_size=200) | json_values.map(lambda v: yaml.safe_dump(v)))
def test_configs_and_policies(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    survives(lambda: load_config(path))
    survives(lambda: load_policy(str(path)))


@FUZZ
@given(st.text(max_size=40), st.text(max_size=40))
def test_overrides(key, value):
    survives(lambda: make_config({}, [f"{key}={value}"]))


@FUZZ
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.png", "a.txt", "a.json", "../../e.png", "/abs.png", "b.pyd", "a"]),
            st.binary(max_size=60),
        ),
        max_size=4,
    ),
    st.integers(0, 4000),
)
def test_shards_whole_and_cut(tmp_path, members, cut):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in [*members, ("z.png", PNG), ("z.txt", b"a dot")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "s.tar"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) - cut])
    survives(lambda: load_images(str(path), max_set_aside=1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"], "nothing is unpacked"


@FUZZ
@given(st.one_of(st.integers(0, 2**63 - 1), st.none()), json_values, st.binary(max_size=64))
def test_safetensors_headers(tmp_path, size, header, body):
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)
    survives(lambda: read_samples(path))


@pytest.fixture(scope="module")
def small_vae(tmp_path_factory):
    from sanakit.vaes import VAES

    folder = tmp_path_factory.mktemp("vae")
    VAES.get("pca-f8c4").tiny().save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@FUZZ
@given(st.data())
def test_component_folders(tmp_path, small_vae, data):
    for name, content in small_vae.items():
        (tmp_path / name).write_bytes(content)
    if data.draw(st.booleans()):
        config = json.loads(small_vae["config.json"])
        config[data.draw(st.sampled_from([*config, "x"]))] = data.draw(json_values)
        (tmp_path / "config.json").write_text(json.dumps(config))
    else:
        weights = bytearray(small_vae["model.safetensors"])
        weights[data.draw(st.integers(0, 200))] ^= data.draw(st.integers(1, 255))
        (tmp_path / "model.safetensors").write_bytes(weights)
    survives(lambda: load_vae(f"path:{tmp_path}"))


def run_folder(folder: Path, text: str) -> dict:
    gate = {
        "gate": text,
        "code": text,
        "metric": text,
        "value": float("nan"),
        "ci_low": None,
        "ci_high": None,
        "threshold": 1.0,
        "verdict": "fail",
        "hint": text,
    }
    validation = {
        "base": text,
        "candidate": text,
        "kind": "vae",
        "verdict": "fail",
        "next": text,
        "stages": {"component": {"verdict": "fail", "gates": [gate], "seconds": 1.0}},
        "strategy": {"recommended": None, "candidates": []},
    }
    (folder / "validation.json").write_text(json.dumps(validation))
    (folder / "ledger.jsonl").write_text(json.dumps({"name": text, "reason": text}) + "\n")
    return validation


def ranked(folder):
    rows = leaderboard([folder])
    write_comparison(rows, folder / "c.html")
    print_leaderboard(rows, None, differing(rows))


@FUZZ
@given(
    st.sampled_from(("validation", "component", "strategy", "plan", "figures", "metrics", "readings", "ledger")),
    json_values | st.lists(st.dictionaries(st.sampled_from(("stage", "step", "name", "rows", "gate")), json_values)),
)
def test_run_folders(tmp_path, name, value):
    run_folder(tmp_path, "x")
    lines = name in ("metrics", "readings", "ledger")
    path = tmp_path / f"{name}.{'jsonl' if lines else 'json'}"
    path.write_text(json.dumps(value) + "\n")
    survives(lambda: write_report(tmp_path, tmp_path / "r.html"))
    survives(lambda: ranked(tmp_path))
    path.unlink()


@FUZZ
@given(st.text(max_size=60) | st.just(MARKUP))
def test_text_from_data_is_harmless_in_every_report(tmp_path, text):
    validation = run_folder(tmp_path, text)
    html = write_report(tmp_path, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in html and "default-src 'none'" in html
    summary = markdown(validation)
    assert "<script" not in summary and summary.count("\n|") == summary.count("\n| ") + summary.count("\n|---")
    write_junit(validation, tmp_path / "j.xml")
    ElementTree.parse(tmp_path / "j.xml")
