"""Text encoders that bitsandbytes has quantised: read as the numbers that they stand for, or refused with reason."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from sanakit.errors import SanakitError
from sanakit.loading import load_text_encoder
from sanakit.swap.plan import describe_plan
from sanakit.text_encoders.tiny import byte_tokenizer
from sanakit.weights import quantised

pytest.importorskip("bitsandbytes")

LLAMA = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "pad_token_id": 0,
}
PROMPTS = ["a red apple", "blue and green flag, emoji", "seven rivers"]
BITS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
}
LAYER = "layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with its head in full precision, and what bitsandbytes makes of it in 8 and 4 bits."""
    root = tmp_path_factory.mktemp("quantised")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    model.save_pretrained(root / "full")
    for name, options in BITS.items():
        settings = transformers.BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=torch.float32)
        small = transformers.LlamaForCausalLM.from_pretrained(
            root / "full", quantization_config=settings, device_map={"": "cpu"}
        )
        small.save_pretrained(root / name)
    for folder in root.iterdir():
        byte_tokenizer("<bos>").save_pretrained(folder)
    return root


@pytest.mark.parametrize(("name", "error"), [("int8", 0.02), ("nf4", 0.15)])
def test_quantised_weights_become_the_numbers_that_they_stand_for(saved, name, error):
    full, small = (load_text_encoder(f"path:{saved / part}") for part in ("full", name))
    assert small.quantised == f"bitsandbytes {name}" and full.quantised == ""
    weights = [encoder.model.get_submodule(LAYER).weight for encoder in (full, small)]
    assert type(small.model.get_submodule(LAYER)) is torch.nn.Linear and weights[1].is_floating_point()
    share = float((weights[1] - weights[0]).norm() / weights[0].norm())
    assert 0.001 < share < error
    one, two = full.encode(PROMPTS), small.encode(PROMPTS)
    assert torch.equal(one.mask, two.mask)
    assert 0 < float((two.embeds - one.embeds).norm() / one.embeds.norm()) < 3 * error


def test_the_key_of_caches_knows_that_the_weights_were_quantised(saved):
    encoder = load_text_encoder(f"path:{saved / 'nf4'}")
    before = encoder.fingerprint()
    assert before != load_text_encoder(f"path:{saved / 'full'}").fingerprint()
    del encoder.model.quantised
    assert encoder.fingerprint() != before  # the same numbers, not known to be of 4 bits


def test_the_plan_says_that_the_candidate_is_quantised(saved, tiny_system):
    encoder = load_text_encoder(f"path:{saved / 'int8'}")
    notes = describe_plan(tiny_system, encoder, tiny_system.core)["notes"]
    assert any("are bitsandbytes int8: the numbers that they stand for are computed with" in note for note in notes)


def test_without_bitsandbytes_the_package_is_named(saved, monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SanakitError, match="SK0901.*bitsandbytes nf4 weights: they need the package bitsandbytes"):
        load_text_encoder(f"path:{saved / 'nf4'}")


def test_what_this_machine_cannot_read_is_refused(saved, monkeypatch):
    def fail(model, *args, **options):
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(transformers.PreTrainedModel, "dequantize", fail)
    with pytest.raises(SanakitError, match="SK0120.*cannot be read here: no kernel for this device"):
        load_text_encoder(f"path:{saved / 'nf4'}")


def test_weights_in_the_order_of_the_cpu_and_weights_of_full_precision_are_refused(saved, tmp_path):
    shapes = {f"{LAYER}.weight": (2048, 1), f"{LAYER}.weight.absmax": (1, 64)}
    with pytest.raises(SanakitError, match=r"SK0120.*order of the CPU's kernels.*absmax is \(1, 64\)"):
        quantised.check_quantised(Path("folder"), "bitsandbytes nf4", shapes)
    config = json.loads((saved / "full" / "config.json").read_text())
    for file in (saved / "full").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SanakitError, match="SK0120.*config.json says bitsandbytes int8, no tensor"):
        load_text_encoder(f"path:{tmp_path}")
