"""Component folders as they lie about in the world: what loads, and how each kind of damage is named."""

import json
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sanakit.contracts import LatentStats
from sanakit.core.dit import load_core, new_core
from sanakit.errors import CODES, SanakitError
from sanakit.files import cache_dir
from sanakit.loading import load_text_encoder, load_vae
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.static_table import StaticTable
from sanakit.text_encoders.tiny import byte_tokenizer
from sanakit.text_encoders.tokenizers import load_tokenizer
from sanakit.vaes import VAES
from sanakit.weights.find import find_weights, read_header

WEIGHTS = {"vae": "diffusion_pytorch_model.safetensors", "text": "model.safetensors"}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
LLAMA = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
CORE = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 1,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_cross_attention_heads": 1,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 16,
    "caption_channels": 16,
    "sample_size": 16,
    "patch_size": 1,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A VAE, a text encoder with its tokenizer, and a core as their libraries save them."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    VAES.get("kl-f8c4").tiny().model.save_pretrained(root / "vae")
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(root / "text")
    byte_tokenizer("<bos>").save_pretrained(root / "text")
    new_core(CORE, seed=0).save_pretrained(root / "core")
    return root


@pytest.fixture
def folders(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "saved")
    return tmp_path / "saved"


def load(folders, kind):
    return load_vae(f"path:{folders / kind}") if kind == "vae" else load_text_encoder(f"path:{folders / kind}")


def weights_of(folders, kind):
    return folders / kind / WEIGHTS[kind]


def same(first, second):
    one, two = first.model.state_dict(), second.model.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def renamed(path, rename):
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def in_shards(path, names, index):
    """The weights of one file in two, listed by an index."""
    state = load_file(path)
    parts = [dict(list(state.items())[i::2]) for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, path.parent / name, metadata={"format": "pt"})
    if index:
        weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (path.parent / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    path.unlink()


# --- variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vae", "text"])
@pytest.mark.parametrize("layout", ["one file", "new", "old", "other", "plain index too"])
def test_a_folder_that_holds_a_variant_only_is_loaded(saved, folders, kind, layout):
    """The official BF16 repositories of Sana hold `model.bf16-00001-of-00002.safetensors` and
    `model.safetensors.index.bf16.json`."""
    path = weights_of(folders, kind)
    stem = path.stem
    layouts = {
        "new": ((f"{stem}.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)), f"{stem}.safetensors.index.bf16.json"),
        "old": ((f"{stem}-0000{i}-of-00002.bf16.safetensors" for i in (1, 2)), f"{stem}.safetensors.index.bf16.json"),
        "other": ((f"{stem}.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)), f"{stem}.bf16.safetensors.index.json"),
    }
    layouts["plain index too"] = ((f"{stem}.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)), layouts["new"][1])
    if layout == "one file":
        path.rename(path.with_name(f"{stem}.bf16.safetensors"))
    else:
        in_shards(path, list(layouts[layout][0]), layouts[layout][1])
    if layout == "plain index too":
        listed = {"metadata": {}, "weight_map": {"a": f"{stem}-00001-of-00009.safetensors"}}
        (path.parent / f"{stem}.safetensors.index.json").write_text(json.dumps(listed))
    loaded = load(folders, kind)
    assert same(loaded, load(saved, kind))
    assert "sanakit-" not in str(getattr(loaded.model.config, "_name_or_path", "")), "no temporary folder stays behind"


def test_the_plain_weights_go_before_a_variant_and_bf16_before_fp16(folders):
    path = weights_of(folders, "vae")
    for variant in ("fp16", "bf16", "non_ema"):
        shutil.copy(path, path.with_name(f"{path.stem}.{variant}.safetensors"))
    assert find_weights(path.parent, path.stem).variant == ""
    path.unlink()
    assert find_weights(path.parent, path.stem).variant == "bf16"


def test_a_whole_pipeline_of_variants_is_a_base(folders):
    """As `Sana_1600M_1024px_BF16_diffusers` lies in the hub's cache: every part a variant,
    its tokenizer beside the encoder."""
    from sanakit.loading import load_base

    pipe = whole_pipeline(folders)
    with pytest.raises(SanakitError, match=f"(?s)SK0106.*one part of a pipeline.*Use path:{pipe}"):
        load_base(f"path:{pipe}/transformer")
    for part in ("vae", "transformer"):
        path = pipe / part / WEIGHTS["vae"]
        path.rename(path.with_name(f"{path.stem}.bf16.safetensors"))
    text = pipe / "text_encoder" / WEIGHTS["text"]
    names = [f"model.bf16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    in_shards(text, names, "model.safetensors.index.bf16.json")
    cached = folders / "models--owner--repo"
    shutil.move(pipe, cached / "snapshots" / "abc")
    system = load_base(f"path:{cached}").system()
    assert (system.image_size, system.flow_shift) == (512, 3.0)
    assert system.text_encoder.encode(["a"]).embeds.shape == (1, 300, 16)


def whole_pipeline(folders):
    """A stock Sana pipeline of tiny parts."""
    pipe = folders / "pipe"
    VAES.get("dc-ae-f32c32-sana-1.0").tiny().model.save_pretrained(pipe / "vae")
    new_core(CORE | {"in_channels": 32, "out_channels": 32}, seed=0).save_pretrained(pipe / "transformer")
    shutil.copytree(folders / "text", pipe / "text_encoder", ignore=shutil.ignore_patterns("tokenizer*"))
    shutil.copytree(folders / "text", pipe / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (pipe / "scheduler").mkdir()
    stated = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    (pipe / "scheduler" / "scheduler_config.json").write_text(json.dumps(stated))
    (pipe / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    return pipe


# --- pointers, shards, prefixes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [("vae", WEIGHTS["vae"]), ("text", WEIGHTS["text"]), ("text", "tokenizer.json"), ("vae", "config.json")],
)
def test_a_git_lfs_pointer_is_named(folders, kind, name):
    (folders / kind / name).write_text(POINTER)
    with pytest.raises(
        SanakitError, match=f"(?s)SK0121.*{name} is a Git LFS pointer of {len(POINTER)} bytes.*lfs pull"
    ):
        load(folders, kind)


def test_a_pointer_in_the_place_of_a_native_checkpoint_is_named(tmp_path):
    from sanakit.formats.native import read_native

    (tmp_path / "sana.pth").write_text(POINTER)
    with pytest.raises(SanakitError, match="SK0121"):
        read_native(tmp_path / "sana.pth")
    torch.save({"x_embedder.proj.weight": torch.zeros(100, 100)}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SanakitError, match=rf"SK0122.*{len(whole) // 2:,} bytes"):
        read_native(tmp_path / "cut.pth")
    torch.save({"module._orig_mod.x_embedder.proj.weight": torch.zeros(1)}, tmp_path / "wrapped.pth")
    assert list(read_native(tmp_path / "wrapped.pth")) == ["x_embedder.proj.weight"]


@pytest.mark.parametrize("kind", ["vae", "text"])
def test_a_shard_that_is_missing_is_named_with_and_without_an_index(folders, kind):
    path = weights_of(folders, kind)
    names = [f"{path.stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    in_shards(path, names, f"{path.stem}.safetensors.index.json")
    (path.parent / names[1]).unlink()
    for _ in range(2):
        with pytest.raises(SanakitError, match=f"SK0122.*1 of 2 weight files are there, no {names[1]}"):
            load(folders, kind)
        (path.parent / f"{path.stem}.safetensors.index.json").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["vae", "text"])
def test_shards_without_their_index_are_loaded(saved, folders, kind):
    path = weights_of(folders, kind)
    in_shards(path, [f"{path.stem}-0000{i}-of-00002.safetensors" for i in (1, 2)], "")
    assert same(load(folders, kind), load(saved, kind))


def test_a_file_that_goes_on_behind_its_last_tensor_is_named_with_its_bytes(folders):
    path = weights_of(folders, "vae")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    with pytest.raises(SanakitError, match=f"SK0122.*{len(whole) + 100:,} bytes, its header describes {len(whole):,}"):
        load(folders, "vae")


@pytest.mark.parametrize("kind", ["vae", "text"])
@pytest.mark.parametrize("left", [-100, 50, 3])
def test_a_file_that_is_cut_is_named_with_its_bytes(folders, kind, left):
    path = weights_of(folders, kind)
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    expected = f"{len(whole) - 100:,} bytes, its header describes {len(whole):,}" if left < 0 else f"{left} bytes"
    with pytest.raises(SanakitError, match=f"SK0122.*{expected}"):
        load(folders, kind)


@pytest.mark.parametrize(
    ("kind", "rename"),
    [
        ("vae", lambda name: f"_orig_mod.{name}"),
        ("vae", lambda name: f"module.{name}"),
        ("vae", lambda name: f"module._orig_mod.{name}"),
        ("vae", lambda name: f"vae.{name}"),
        ("vae", lambda name: name.replace("encoder.", "encoder._orig_mod.", 1)),
        ("text", lambda name: f"_orig_mod.{name}"),
        ("text", lambda name: f"module.{name}"),
        ("text", lambda name: f"text_encoder.{name}"),
        ("text", lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module.")),
    ],
)
def test_a_prefix_that_a_wrapper_left_is_taken_off(saved, folders, kind, rename):
    renamed(weights_of(folders, kind), rename)
    assert same(load(folders, kind), load(saved, kind))


def test_a_core_behind_a_prefix_or_as_a_variant_is_loaded(saved, folders):
    path = folders / "core" / WEIGHTS["vae"]
    renamed(path, lambda name: f"transformer._orig_mod.{name}")
    path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    loaded, expected = (load_core(root / "core").state_dict() for root in (folders, saved))
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_two_models_in_one_file_are_named(folders):
    path = weights_of(folders, "vae")
    state = load_file(path)
    save_file({f"{prefix}.{name}": t.clone() for name, t in state.items() for prefix in ("vae", "ema")}, path)
    with pytest.raises(SanakitError, match=r"SK0123.*each of ema\., vae\."):
        load(folders, "vae")


def test_a_download_that_did_not_finish_is_not_replaced_by_a_variant(folders):
    path = weights_of(folders, "vae")
    shutil.copy(path, path.with_name(f"{path.stem}.fp16.safetensors"))
    names = [f"{path.stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    in_shards(path, names, f"{path.stem}.safetensors.index.json")
    (path.parent / names[0]).unlink()
    with pytest.raises(SanakitError, match=f"SK0122.*1 of 2 weight files are there, no {names[0]}"):
        load(folders, "vae")


@pytest.mark.parametrize("kind", ["vae", "text"])
def test_tensors_that_do_not_fit_are_counted_and_never_dumped(folders, kind, capfd):
    path = weights_of(folders, kind)
    total = len(read_header(path))
    renamed(path, lambda name: f"a_{name.replace('.', '_')}")
    with pytest.raises(
        SanakitError, match=r"SK0107.*\d+ tensors of the config are not in the weights, first"
    ) as refused:
        load(folders, kind)
    assert total > 10 and len(str(refused.value)) < 1000
    output = capfd.readouterr()
    assert "a_" not in output.out + output.err and len(output.out + output.err) < 1000


def test_a_shape_that_differs_is_said_with_both_sides(folders):
    edit(folders / "vae" / "config.json", block_out_channels=[8, 8, 8, 16])
    with pytest.raises(SanakitError, match=r"SK0107.*\[16") as refused:
        load(folders, "vae")
    assert len(str(refused.value)) < 1000


def test_weights_under_another_name_are_read_where_there_is_one_set_only(saved, folders):
    path = weights_of(folders, "vae")
    path.rename(path.with_name("model.safetensors"))
    assert same(load(folders, "vae"), load(saved, "vae"))
    shutil.copy(path.with_name("model.safetensors"), path.with_name("ema.safetensors"))
    with pytest.raises(SanakitError, match=r"SK0123.*ema\.safetensors, model\.safetensors"):
        load(folders, "vae")


# --- quantised weights, adapters, tokenizers -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vae", "text"])
@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq, 4 bits"),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": {}}}, "torchao"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4 bits"),
    ],
)
def test_quantised_weights_are_refused(folders, kind, stated, said):
    edit(folders / kind / "config.json", **stated)
    with pytest.raises(SanakitError, match=f"SK0120.*{said}") as refused:
        load(folders, kind)
    assert refused.value.exit_code == 2


def test_quantised_weights_without_a_word_in_the_config_are_refused(folders):
    (folders / "text" / "quantize_config.json").write_text('{"bits": 4}')
    with pytest.raises(SanakitError, match=r"SK0120.*quantize_config\.json says no method named, 4 bits"):
        load(folders, "text")
    (folders / "text" / "quantize_config.json").unlink()
    renamed(weights_of(folders, "text"), lambda name: name.replace("q_proj.weight", "q_proj.qweight"))
    with pytest.raises(SanakitError, match=r"SK0120.*q_proj\.qweight"):
        load(folders, "text")


@pytest.mark.parametrize(("dtype", "said"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8")])
def test_a_matrix_in_8_bits_is_refused_as_its_scale_would_not_be_applied(folders, dtype, said):
    path = weights_of(folders, "text")
    state, name = load_file(path), "model.layers.0.self_attn.q_proj.weight"
    save_file(state | {name: (100 * state[name]).to(dtype)}, path, metadata={"format": "pt"})
    with pytest.raises(SanakitError, match=rf"SK0120.*q_proj\.weight is of type {said}"):
        load(folders, "text")


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
@pytest.mark.parametrize("family", ["bert", "t5", "qwen2", "gemma2"])
def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path, family, left):
    """transformers makes one of special tokens alone, and every prompt would be read alike."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    for name in left:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SanakitError, match="(?s)SK0126.*no vocabulary.*no word.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["vae", "text"])
@pytest.mark.parametrize("alone", [True, False])
def test_an_adapter_is_named_before_anything_is_trained_on_it(folders, kind, alone):
    config = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 4}
    (folders / kind / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {"base_model.model.q_proj.lora_A.weight": torch.zeros(4, 16)}, folders / kind / "adapter_model.safetensors"
    )
    if alone:
        weights_of(folders, kind).unlink()
    said = "without the model.*trained on owner/base" if alone else "beside the weights"
    with pytest.raises(SanakitError, match=f"(?s)SK0125.*{said}.*merge_and_unload"):
        load(folders, kind)


@pytest.mark.parametrize("kind", ["vae", "text"])
def test_an_adapter_alone_without_a_config_is_named_too(folders, kind):
    for name in ("config.json", WEIGHTS[kind]):
        (folders / kind / name).unlink()
    save_file({"unet.lora_A.weight": torch.zeros(4, 16)}, folders / kind / "pytorch_lora_weights.safetensors")
    with pytest.raises(SanakitError, match="SK0125.*pytorch_lora_weights"):
        load(folders, kind)


def test_an_adapter_among_the_weights_is_named(folders):
    path = weights_of(folders, "text")
    renamed(path, lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"))
    with pytest.raises(SanakitError, match=r"SK0125.*among the weights.*q_proj\.base_layer\.weight"):
        load(folders, "text")


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(folders, special):
    tokenizer = byte_tokenizer("<bos>")
    tokenizer.add_tokens(["<concept>", "<style>"], special_tokens=special)
    tokenizer.save_pretrained(folders / "text")
    with pytest.raises(SanakitError, match=r"SK0126.*262 tokens, the embedding 260 rows; 2 tokens.*'<concept>'"):
        load(folders, "text")


def test_a_placeholder_for_images_without_a_row_is_refused_in_a_prompt_only(folders):
    """The tokenizer of Gemma 3's text models has `<image_soft_token>`, one more than their embeddings have rows."""
    tokenizer = byte_tokenizer("<bos>")
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    tokenizer.save_pretrained(folders / "text")
    edit(folders / "text" / "tokenizer_config.json", image_token="<image_soft_token>")
    encoder = load(folders, "text")
    assert encoder.encode(["a cat"]).mask.sum() == 6
    with pytest.raises(SanakitError, match="SK0126.*a prompt holds '<image_soft_token>'.*260 rows"):
        encoder.encode(["a cat", "a <image_soft_token> dog"])


def test_a_static_table_has_a_row_for_every_token():
    twin = TEXT_ENCODERS.get("wordllama").tiny()
    with pytest.raises(SanakitError, match="SK0126.*27 tokens, the embedding 20 rows"):
        StaticTable(torch.nn.Embedding(20, 8), twin.tokenizer, twin.spec)


@pytest.mark.parametrize("name", [n for n in TEXT_ENCODERS.names() if n not in ("mpnet-packaged", "gemma-3-270m-gguf")])
def test_every_twin_has_a_row_for_every_token(name):
    encoder = TEXT_ENCODERS.get(name).tiny()
    assert encoder.encode(["a red apple"]).mask.any()


# --- where a component lies ------------------------------------------------------------------------------------------


def test_a_pipeline_folder_names_the_part_to_use(folders):
    pipe = whole_pipeline(folders)
    with pytest.raises(SanakitError, match=f"(?s)SK0124.*expected a VAE.*Use path:{pipe}/vae"):
        load_vae(f"path:{pipe}")
    with pytest.raises(SanakitError, match=f"(?s)SK0124.*expected a text encoder.*Use path:{pipe}/text_encoder"):
        load_text_encoder(f"path:{pipe}/?max_tokens=20")
    (pipe / "model_index.json").unlink()
    with pytest.raises(SanakitError, match="(?s)SK0124.*a folder of components.*/vae"):
        load_vae(f"path:{pipe}")


def test_a_pipeline_on_the_hub_is_refused_before_its_weights_are_fetched(folders, monkeypatch):
    pipe, asked = whole_pipeline(folders), []

    def fetch(repository, *, revision, allow_patterns):
        asked.append(allow_patterns)
        return str(pipe)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(SanakitError, match="(?s)SK0124.*Use hub:owner/repo:vae"):
        load_vae("hub:owner/repo")
    with pytest.raises(SanakitError, match="(?s)SK0124.*Use hub:owner/repo@main:text_encoder"):
        load_text_encoder("hub:owner/repo@main")
    assert not [pattern for patterns in asked for pattern in patterns if "safetensors" in pattern]
    assert load_vae("hub:owner/repo:vae").spec.label == "f32c32"


def test_a_file_is_told_from_a_folder(folders):
    path = weights_of(folders, "vae")
    for loader in (load_vae, load_text_encoder):
        with pytest.raises(SanakitError, match=f"(?s)SK0106.*is a file, expected a folder.*path:{path.parent}"):
            loader(f"path:{path}")


@pytest.mark.parametrize("main", [True, False])
def test_a_folder_of_the_hubs_cache_is_read_at_its_snapshot(saved, tmp_path, main):
    cached = tmp_path / "models--owner--repo"
    shutil.copytree(saved / "vae", cached / "snapshots" / "abc" / "vae")
    shutil.copytree(saved / "text", cached / "snapshots" / "abc" / "text")
    (cached / "refs").mkdir()
    if main:
        (cached / "snapshots" / "older").mkdir()
        (cached / "refs" / "main").write_text("abc")
    assert load_vae(f"path:{cached}/vae").spec.label == "f8c4"
    assert load_text_encoder(f"path:{cached}/text").spec.embed_dim == 16
    assert load_vae(f"path:{cached}/snapshots/abc/vae").spec.label == "f8c4"
    shutil.copytree(saved / "vae", cached / "snapshots" / "abc", dirs_exist_ok=True)
    assert load_vae(f"path:{cached}").spec.label == load_vae(f"path:{cached}/snapshots").spec.label == "f8c4"
    for name in (*WEIGHTS.values(), "config.json"):
        (cached / "snapshots" / "abc" / name).unlink(missing_ok=True)
    with pytest.raises(SanakitError, match=f"(?s)SK0124.*Use path:{cached}/snapshots/abc/vae") as refused:
        load_vae(f"path:{cached}/snapshots")
    assert load_vae(refused.value.fix.removeprefix("Use ").removesuffix(".")).spec.label == "f8c4"


def test_a_cache_folder_with_several_snapshots_and_no_main_names_them(tmp_path):
    for revision in ("abc", "def"):
        (tmp_path / "models--owner--repo" / "snapshots" / revision).mkdir(parents=True)
    with pytest.raises(SanakitError, match="(?s)SK0106.*2 snapshots: abc, def.*snapshots/REVISION"):
        load_vae(f"path:{tmp_path}/models--owner--repo")


@pytest.mark.parametrize("how", ["dot", "relative", "above", "link to encoder", "links in pipeline"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_tokenizer_beside_the_encoder_is_found_by_every_spelling(folders, monkeypatch, how, stated):
    """stated: the tokenizer of a Sana pipeline, which is read by Sana's policy; otherwise of another pipeline."""
    pipe = whole_pipeline(folders)
    if not stated:
        (pipe / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    expected = load_text_encoder(f"path:{pipe}/text_encoder")
    name = "text_encoder"
    if how == "dot":
        monkeypatch.chdir(pipe / "text_encoder")
        name = "."
    elif how == "relative":
        monkeypatch.chdir(pipe)
    elif how == "above":
        monkeypatch.chdir(pipe / "vae")
        name = "../vae/../text_encoder/."
    elif how == "link to encoder":
        (folders / "mine").symlink_to(pipe / "text_encoder")
        name = str(folders / "mine")
    else:
        shutil.move(pipe / "text_encoder", folders / "weights-elsewhere")
        (pipe / "text_encoder").symlink_to(folders / "weights-elsewhere")
        name = str(pipe / "text_encoder")
    encoder = load_text_encoder(f"path:{name}")
    assert encoder.spec == expected.spec and (encoder.spec.max_tokens == 300) == stated
    assert encoder.fingerprint() == expected.fingerprint()


def test_another_folder_in_a_sana_pipeline_is_not_taken_for_its_text_encoder(folders):
    pipe = whole_pipeline(folders)
    with pytest.raises(SanakitError, match="SK0106.*AutoencoderDC"):
        load_text_encoder(f"path:{pipe}/vae")


def test_a_cache_named_by_the_home_folder_or_not_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SANAKIT_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "cache" and (tmp_path / "cache").is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        SanakitError, match=r"(?s)SK0128.*file/cache \(SANAKIT_CACHE\).*export SANAKIT_CACHE=DIR"
    ) as refused:
        cache_dir()
    assert refused.value.exit_code == 3
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "locked"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SanakitError, match="SK0128.*locked"):
        cache_dir()


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    from sanakit.cli import main

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SANAKIT_CACHE", str(tmp_path / "file"))
    command = ["sanakit", "swap-vae", "--candidate", "pca-f8c4", "--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr("sanakit.loading.load_base", lambda name: pytest.fail("the base was loaded first"))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 3 and "error[SK0128]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- names and captions that UTF-8 cannot hold -----------------------------------------------------------------------


def test_a_latin_1_file_name_is_made_safe_and_a_broken_caption_is_set_aside(tmp_path, openclipart_images):
    from PIL import Image

    from sanakit.data import load_images

    image = Image.fromarray(((openclipart_images[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy())
    for stem in (b"caf\xe9", b"plain"):
        image.save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + stem + b".png")))
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + stem + b".txt")).write_text("a red apple")
    dataset = load_images(str(tmp_path))
    assert dataset.names == [r"caf\udce9.png", "plain.png"] and len(dataset.fingerprint) == 64
    for number in range(31):
        (tmp_path / f"{number:02}.png").write_bytes((tmp_path / "plain.png").read_bytes())
    captions = ["fine"] * 30 + ["broken \ud800 caption"]
    rows = [{"image": f"{number:02}.png", "caption": text} for number, text in enumerate(captions)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    dataset = load_images(str(tmp_path / "rows.jsonl"))
    assert len(dataset) == 30 and len(dataset.fingerprint) == 64
    assert dataset.ledger == [{"name": "30.png", "reason": r"a caption is not valid Unicode: 'broken \\ud800 caption'"}]


@pytest.mark.parametrize("option", ["--out", "SANAKIT_CACHE", "--vae", "--run-dir"])
def test_a_path_that_is_not_utf8_is_refused_where_safetensors_files_would_lie(tmp_path, monkeypatch, capsys, option):
    """Found after all images were encoded otherwise: safetensors cannot open a file there."""
    from sanakit.cli import main

    latin = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(latin).mkdir()
    out, vae = str(tmp_path / "out"), "pca-f8c4"
    command = ["sanakit", "encode", "--vae", vae, "--out", out]
    code = {"--out": "SK0104", "--run-dir": "SK0104", "SANAKIT_CACHE": "SK0128", "--vae": "SK0106"}[option]
    if option == "SANAKIT_CACHE":
        monkeypatch.setenv("SANAKIT_CACHE", latin)
    elif option == "--run-dir":
        command = ["sanakit", "swap-vae", "--candidate", vae, "--run-dir", latin]
    else:
        command = ["sanakit", "encode", "--vae", f"path:{latin}" if option == "--vae" else vae]
        command += ["--out", latin if option == "--out" else out, "--data", "openclipart"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == CODES[code].exit_code
    assert re.search(rf"error\[{code}\].*caf.*is not UTF-8", capsys.readouterr().err)


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_the_statement_that_was_taken_is_said_where_a_config_makes_two(folders):
    config = folders / "vae" / "config.json"
    edit(config, latents_mean=[0.5] * 4, latents_std=[2.0] * 4, scaling_factor=0.25, shift_factor=None)
    with pytest.warns(
        UserWarning, match=r"SK0129.*mean std 2.*1/0\.25 = 4.*mean and std were taken, scaling_factor not"
    ):
        vae = load(folders, "vae")
    assert vae.stats == LatentStats(mean=(0.5,) * 4, std=(2.0,) * 4)
    assert len(vae.notes) == 1 and "mean and std were taken" in vae.notes[0]
    with pytest.warns(UserWarning, match="SK0129"):
        assert VAES.get("sd-vae-ft-mse").from_folder(folders / "vae").notes == vae.notes
    edit(config, latents_std=None)
    with pytest.warns(UserWarning, match="SK0129.*latents_mean without latents_std: it is not used, scaling_factor is"):
        assert load(folders, "vae").stats == LatentStats.from_scaling(0.25)


def test_a_factor_of_one_beside_mean_and_std_says_nothing(folders):
    edit(folders / "vae" / "config.json", latents_mean=[0.5] * 4, latents_std=[2.0] * 4, scaling_factor=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert load(folders, "vae").notes == ()


def test_an_exported_vae_states_its_normalisation_once(folders, tmp_path):
    from sanakit.interop.export import save_vae

    vae = load(folders, "vae")
    vae.set_stats(LatentStats(mean=(0.1, 0.2, 0.3, 0.4), std=(1.0, 2.0, 3.0, 4.0)))
    save_vae(vae, tmp_path / "out", stock=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert load_vae(f"path:{tmp_path / 'out'}").stats == vae.stats


@pytest.mark.parametrize("stats", [LatentStats.from_scaling(0.5), LatentStats()])
def test_an_override_survives_the_export_of_a_vae_that_stated_both(folders, tmp_path, stats):
    from sanakit.interop.export import save_vae

    edit(folders / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=[2.0] * 4, scaling_factor=0.25)
    with pytest.warns(UserWarning, match="SK0129"):
        vae = load(folders, "vae")
    vae.set_stats(stats)
    save_vae(vae, tmp_path / "out", stock=False)  # reads back, and would refuse another normalisation
    latents = torch.randn(1, 4, 2, 2)
    assert torch.equal(load_vae(f"path:{tmp_path / 'out'}").denormalize(latents), vae.denormalize(latents))


def test_the_note_is_part_of_the_plan(tiny_system):
    from sanakit.swap.plan import describe_plan, swap_core

    candidate = VAES.get("kl-f8c4").tiny()
    candidate.name, candidate.notes = "path:mine", ("states latents_mean and latents_std, ...",)
    core = swap_core(tiny_system, candidate, 0)
    assert (
        "the config of path:mine states latents_mean and latents_std, ..."
        in (describe_plan(tiny_system, candidate, core)["notes"])
    )


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (
            {"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]},
            "1 of 4 channels is not above 0, first channel 1: 0",
        ),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, -2.0, 1.0]}, "first channel 2: -2"),
        ({"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.1, -0.2, 0.1, 0.1]}, "seem exchanged"),
        ({"latents_mean": [1.0, 2.0, 3.0], "latents_std": [1.0] * 4}, "mean has 3 values, expected 1 or 4"),
        ({"latents_mean": ["a"] * 4, "latents_std": [1.0] * 4}, "latents_mean is .*expected a number"),
        ({"scaling_factor": 0.0}, "scaling_factor is 0, expected a finite number above 0"),
        ({"scaling_factor": -0.18215}, "scaling_factor is -0.18215"),
        ({"scaling_factor": "0.18"}, "scaling_factor is '0.18', expected a number"),
        ({"scaling_factor": 0.18, "shift_factor": [0.1, "b"]}, "shift_factor is"),
        ({"scaling_factor": [0.18, 0.2]}, "scaling_factor is .0.18, 0.2., expected one number"),
    ],
)
def test_a_normalisation_that_cannot_be_applied_is_refused(folders, stated, said):
    edit(folders / "vae" / "config.json", **stated)
    with pytest.raises(SanakitError, match=f"(?s)(SK0127|SK0202).*{said}"):
        load(folders, "vae")


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_an_override_that_cannot_be_applied_is_refused(factor):
    with pytest.raises(SanakitError, match=f"SK0127.*scaling_factor is {factor:g}"):
        load_vae("kl-f8c4", scaling_factor=factor)


def test_a_plugin_with_a_std_of_zero_is_refused():
    vae = VAES.get("pca-f8c4").tiny()
    with pytest.raises(SanakitError, match="SK0127"):
        vae.set_stats(LatentStats(std=(1.0, 0.0, 1.0, 1.0)))
    with pytest.raises(SanakitError, match="SK0127.*nan"):
        vae.set_stats(LatentStats(mean=(0.0, float("nan"), 0.0, 0.0), std=(1.0,) * 4))


def test_every_code_of_loading_has_a_fix_of_its_own():
    fixes = [CODES[f"SK01{number}"].fix for number in range(20, 30)]
    assert len(set(fixes)) == 10
