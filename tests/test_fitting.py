"""What `auto` stands for in the training section, and a run that moves to another device with it."""

import json

import pytest
import torch
import yaml

from sanakit.config import make_config
from sanakit.errors import SanakitError
from sanakit.placement import Placement, choose
from sanakit.run import RunFolder, config_key
from sanakit.strategies import STRATEGIES
from sanakit.swap.fitting import SHARE, fitting, resolved
from sanakit.swap.settings import options_of, parts_of

CPU = Placement(torch.device("cpu"))


def needs(checkpointing, images):
    """Ten for the weights, a hundred an image, a fifth of that with checkpointing."""
    return 10 + images * (20 if checkpointing else 100)


def no_estimate(config):
    raise AssertionError("nothing is estimated on the CPU")


def test_on_the_cpu_nothing_changes():
    config = resolved(make_config({}), CPU, no_estimate)
    train = config.train
    assert (train.precision, train.gradient_checkpointing, train.micro_batch) == ("fp32", False, 32)
    options = options_of(config, STRATEGIES.get("finetune"))
    assert (options.precision, options.gradient_checkpointing, options.accumulate) == ("fp32", False, 1)
    split = resolved(make_config({}, ["train.accumulate=4"]), CPU, no_estimate)
    assert split.train.micro_batch == 8 and options_of(split, STRATEGIES.get("lora")).accumulate == 4


@pytest.mark.parametrize(
    ("room", "expected"),
    [(3300, (False, 32)), (1700, (False, 16)), (900, (False, 8)), (700, (True, 32)), (100, (True, 4)), (1, (True, 1))],
)
def test_checkpointing_and_micro_batch_by_what_is_free(room, expected):
    assert fitting(needs, room, 32) == expected


def test_what_is_stated_stays():
    assert fitting(needs, 900, 32, checkpointing=True) == (True, 32)
    assert fitting(needs, 900, 32, checkpointing=False, micro_batch=2) == (False, 2)
    assert fitting(needs, 900, 32, micro_batch=16) == (True, 16)
    assert fitting(needs, 1, 32, checkpointing=False) == (False, 1)


@pytest.mark.parametrize(("micro", "images", "parts"), [(32, 32, 1), (8, 32, 4), (5, 32, 8), (64, 32, 1), (1, 6, 6)])
def test_a_rank_cuts_its_images_into_equal_parts(micro, images, parts):
    assert parts_of(make_config({}, [f"train.micro_batch={micro}"]).train, images) == parts


def test_an_accelerator_is_asked_for_its_memory(fake_device):
    asked = []

    def peak(config):
        asked.append(config.train.precision)
        return needs

    with fake_device.present(memory=fake_device.read()["allocated"] + int(700 / SHARE)):
        config = resolved(make_config({}), choose("auto"), peak)
    assert (config.train.precision, config.train.gradient_checkpointing, config.train.micro_batch) == ("bf16", True, 32)
    assert asked == ["bf16"]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["train.target=vae"], (False, 1)),
        (["train.target=vae-decoder", "train.micro_batch=4"], (False, 4)),
        (["text_encoder.learning_rate=1e-4"], (True, 1)),
        (["text_encoder.learning_rate=1e-4", "train.gradient_checkpointing=false"], (False, 1)),
    ],
)
def test_the_core_says_nothing_of_another_part_that_is_trained(sets, expected, fake_device):
    """One image at a time, and no estimate of the core."""
    with fake_device.present(memory=fake_device.read()["allocated"] + 10**9):
        train = resolved(make_config({}, sets), choose("auto"), no_estimate).train
    assert (train.gradient_checkpointing, train.micro_batch) == expected


def test_a_run_moves_with_its_precision_and_is_cut_anew(tmp_path):
    """What results depend on stays as the first device chose it; how a step is cut to fit is chosen anew."""

    def device(precision, micro_batch):
        def resolve(config):
            train = config.train
            chosen = {"precision": precision} if train.precision == "auto" else {}
            chosen |= {"micro_batch": micro_batch} if train.micro_batch == "auto" else {}
            chosen |= {"gradient_checkpointing": False} if train.gradient_checkpointing == "auto" else {}
            return config.model_copy(update={"train": train.model_copy(update=chosen)})

        return resolve

    asked = make_config({})
    first = RunFolder.open(asked, tmp_path / "run", resolve=device("bf16", 4))
    assert first.automatic == ("train.precision", "train.micro_batch", "train.gradient_checkpointing")
    first.write_json("provenance.json", {"automatic": list(first.automatic)})
    second = RunFolder.open(asked, tmp_path / "run", resolve=device("fp32", 32))
    stated = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    again = RunFolder.open(make_config(stated), tmp_path / "run", resolve=device("fp32", 16))
    assert [run.config.train.precision for run in (first, second, again)] == ["bf16"] * 3
    assert [run.config.train.micro_batch for run in (first, second, again)] == [4, 32, 16]
    assert first.key == second.key == again.key == config_key(first.config)
    first.write_json("validation.json", {"stages": {"smoke": {"verdict": "pass", "gates": []}}})
    with pytest.raises(SanakitError, match=r"SK0105.*train.precision is 'bf16' there, 'fp32' asked"):
        RunFolder.open(make_config({}, ["train.precision=fp32"]), tmp_path / "run", resolve=device("fp32", 32))


def test_the_same_question_finds_its_run_on_another_device(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = make_config({"vae": {"name": "pca-f8c4"}})

    def bf16(config):
        return config.model_copy(update={"train": config.train.model_copy(update={"precision": "bf16"})})

    first = RunFolder.open(asked, None, bf16)
    assert RunFolder.open(asked, None).path == first.path
    other = make_config({"vae": {"name": "pca-f8c4"}}, ["train.precision=fp32"])
    assert RunFolder.open(other, None).path != first.path


def test_dtypes_of_frozen_parts_are_keys():
    config = make_config({}, ["base.dtype=fp32", "vae.dtype=bf16", "text_encoder.dtype=fp16"])
    assert (config.base_dtype, config.vae.dtype, config.text_encoder.dtype) == ("fp32", "bf16", "fp16")
    with pytest.raises(SanakitError, match="SK0104.*base_dtype"):
        make_config({}, ["base.dtype=int8"])
    assert "base_dtype" in json.dumps(config.model_dump())
