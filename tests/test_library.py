"""sanakit as a library: a cheap import, public names, and loaders that take names and objects."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sanakit as sk
from sanakit import loading
from sanakit.contracts import LatentStats
from sanakit.data import ImageDataset

ROOT = Path(sk.__file__).parent
HEAVY = {"torch", "diffusers", "transformers", "numpy", "pandas", "sklearn", "scipy"}


def python(*arguments):
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_import_is_cheap_and_brings_nothing_heavy():
    code = (
        "import sys, time; t = time.process_time(); import sanakit as sk; sk.SanakitError; names = sk.list_vaes();"
        "print(time.process_time() - t, len(names), *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    _, count, *modules = python("-c", code).split()
    assert not set(modules) & HEAVY and int(count) > 20
    seconds = python("-c", "import time; t = time.process_time(); import sanakit; print(time.process_time() - t)")
    assert float(seconds) < 0.1


def test_python_m_runs_the_command_line():
    assert "swap-vae" in python("-m", "sanakit", "--help")


def test_every_public_name_is_stated_once_for_people_and_once_for_type_checkers():
    assert sorted([*sk.MODULES, "__version__"]) == sorted(sk.__all__)
    assert set(sk.__all__) <= set(dir(sk))
    (block,) = [node for node in ast.parse((ROOT / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    stated = {alias.name: node.module for node in block.body for alias in node.names}
    assert stated == sk.MODULES
    for name, module in sk.MODULES.items():
        public = getattr(sk, name)
        assert public is (sys.modules["sanakit.swap"] if name == "swap" else getattr(sys.modules[module], name))
    with pytest.raises(AttributeError, match="no attribute 'load_vea'"):
        sk.load_vea  # noqa: B018


def test_listings_agree_with_the_registries():
    assert sk.list_bases() == sorted(path.name for path in loading.CORES.iterdir())
    assert "dc-f16c16" in sk.list_vaes(embedded=True) and "dc-f16c16" not in sk.list_vaes(embedded=False)
    assert {"minilm", "wordllama"} <= set(sk.list_text_encoders())
    assert "embedded" in sk.list_datasets() and "finetune" in sk.list_strategies()


def small_autoencoder(**config):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    blocks |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**blocks, **config)


def test_a_live_autoencoder_is_the_vae_of_its_folder(tmp_path):
    model = small_autoencoder(scaling_factor=0.5, shift_factor=0.25)
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    live, read = sk.load_vae(model), sk.load_vae(tmp_path)
    assert live.name == "AutoencoderKL" and live.spec.label == "f2c4"
    assert live.stats == read.stats == LatentStats(mean=(0.25,), std=(2.0,))
    assert torch.equal(live.encode(images), read.encode(images)) and live.fingerprint() == read.fingerprint()
    assert sk.load_vae(live) is live
    scaled = sk.load_vae(live, scaling_factor=4)
    assert scaled.stats == LatentStats(mean=(0.25,), std=(0.25,)) and live.stats.std == (2.0,)
    torch.testing.assert_close(scaled.encode(images), live.encode(images) * 8)
    half = sk.load_vae(model.to(torch.bfloat16))
    latents = half.encode(images)
    assert latents.dtype == torch.float32 and (latents - read.encode(images)).abs().max() < 0.1


def test_a_librarys_default_scaling_is_not_taken_for_a_statement():
    with pytest.warns(UserWarning, match="SK0208.*this AutoencoderKL states no scaling"):
        assert sk.load_vae(small_autoencoder()).stats == LatentStats()
    assert sk.load_vae(small_autoencoder(), scaling_factor=2).stats.std == (0.5,)
    stats = LatentStats(mean=(0.0, 1.0, 2.0, 3.0), std=(1.0,))
    assert sk.load_vae(small_autoencoder(), stats=stats).stats == stats


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda: sk.load_vae(torch.nn.Linear(2, 2)), "SK0106.*a Linear is no autoencoder"),
        (lambda: sk.load_vae(["dc-f16c16"]), "SK0106.*a list is no VAE"),
        (lambda: sk.load_vae("dc-f16c61"), "SK0101.*did you mean"),
        (lambda: sk.load_vae("pca-f8c4", scaling_factor=1, stats=LatentStats()), "SK0104.*twice"),
        (lambda: sk.load_text_encoder("wordllama", tokenizer=object()), "SK0104.*its own tokenizer"),
        (lambda: sk.load_text_encoder(3), "SK0106.*a int is no text encoder"),
        (lambda: sk.load_base(torch.nn.Linear(2, 2)), "SK0603.*a Linear is no base"),
        (lambda: sk.load_images({"image": []}), "SK0401.*a dict is no data set"),
        (lambda: sk.load_images("nowhere/at/all"), "SK0101.*is no file or folder"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_both_sides(call, code):
    with pytest.raises(sk.SanakitError, match=code):
        call()


def test_a_live_transformer_is_the_text_encoder_of_its_folder(tmp_path):
    from sanakit.text_encoders import TEXT_ENCODERS

    tiny = TEXT_ENCODERS.get("qwen3-0.6b").tiny()
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    live, read = sk.load_text_encoder(tiny.model, tokenizer=tiny.tokenizer), sk.load_text_encoder(tmp_path)
    prompts = ["a red apple", "", "two"]
    assert live.spec == read.spec and live.name == "Qwen3Model"
    assert torch.allclose(live.encode(prompts).embeds, read.encode(prompts).embeds, atol=1e-6)
    short = sk.load_text_encoder(live, max_tokens=8, layer=-2)
    assert (short.spec.max_tokens, live.spec.max_tokens) == (8, 64) and short.encode(prompts).embeds.shape[1] == 8
    with pytest.raises(sk.SanakitError, match=r"SK0306.*max_token=8.*did you mean max_tokens"):
        sk.load_text_encoder(live, max_token=8)
    with pytest.raises(sk.SanakitError, match=r"SK0126.*without a tokenizer"):
        sk.load_text_encoder(tiny.model)
    with pytest.raises(sk.SanakitError, match=r"SK0307.*one text"):
        live.encode("a red apple")


@pytest.mark.parametrize(
    ("query", "reading"),
    [
        ("instruction=sana", {"instruction": "sana"}),
        ("instruction=draw: ", {"instruction": "draw: "}),
        ("lower_case=true", {"lower_case": True}),
        ("max_tokens=8", {"max_tokens": np.int64(8)}),
        ("layer=-2&select=first-last", {"layer": -2, "select": "first-last"}),
        ("layer=1", {"layer": "1"}),
        ("layer=mean&attend_padding=true", {"layer": "mean", "attend_padding": True}),
    ],
)
def test_a_keyword_reads_as_the_same_key_behind_a_name(query, reading):
    """And the null embedding that the earlier reading kept is not that of the new one."""
    from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds
    from sanakit.text_encoders.query import changed_spec

    tiny = TEXT_ENCODERS.get("minilm").tiny()
    null = tiny.null()
    tiny.kept_null = PromptEmbeds(null.embeds + 1, null.mask)
    read = sk.load_text_encoder(tiny, **reading)
    assert read.spec == changed_spec(tiny, query) != tiny.spec
    assert torch.equal(read.null().embeds, read.encode([""], instruction=False).embeds)
    assert torch.equal(sk.load_text_encoder(tiny, layer="last").null().embeds, null.embeds + 1), "the same reading"


def test_a_head_is_left_out_and_a_callers_tokenizer_stays_as_it_is():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from sanakit.text_encoders import TEXT_ENCODERS

    tiny = TEXT_ENCODERS.get("qwen3-0.6b").tiny()
    config = {key: value for key, value in tiny.model.config.to_dict().items() if key != "architectures"}
    headed, tokenizer = Qwen3ForCausalLM(Qwen3Config(**config)), tiny.tokenizer
    tokenizer.pad_token = None
    encoder = sk.load_text_encoder(headed, tokenizer=tokenizer)
    assert encoder.model is headed.model and tokenizer.pad_token is None and encoder.tokenizer.pad_token is not None
    with pytest.raises(sk.SanakitError, match=r"SK0106.*holds no"):
        sk.load_text_encoder(headed.model.layers[0].self_attn, tokenizer=tokenizer)


def rows(count=30):
    noise = np.random.default_rng(0).integers(256, size=(count, 24, 32, 3), dtype=np.uint8)
    return [(Image.fromarray(pixels), f"image {number}") for number, pixels in enumerate(noise)]


class Torch(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, number):
        image, caption = rows()[number]
        return {"image": torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, "caption": [caption]}


def test_images_in_memory_are_those_of_files():
    import datasets

    pairs = rows()
    hugging_face = datasets.Dataset.from_dict(
        {"image": [image for image, _ in pairs], "text": [caption for _, caption in pairs]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )
    expected = np.stack([np.array(image.crop((4, 0, 28, 24))) for image, _ in pairs])
    for source in (pairs, hugging_face, Torch()):
        images = sk.load_images(source)
        assert isinstance(images, ImageDataset) and sk.load_images(images) is images
        assert images.captions == [[f"image {number}"] for number in range(30)]
        assert np.array_equal(images.pixels(24), expected)
        assert images.names[7].endswith("/7") and images.source.endswith("of 30 rows")


def test_rows_that_cannot_be_read_are_set_aside_with_the_reason():
    images = sk.load_images([*rows(40), ("no such file.png", "a caption")])
    assert len(images) == 40 and images.ledger[0]["name"] == "list/40" and "No such file" in images.ledger[0]["reason"]
    with pytest.raises(sk.SanakitError, match=r"SK0402.*30 of 40 images set aside.*from -1 to 1, expected uint8"):
        sk.load_images([*rows(10), *((np.linspace(-1, 1, 48).reshape(4, 4, 3), "x") for _ in range(30))])
    with pytest.raises(sk.SanakitError, match=r"SK0401.*expected image and one of"):
        sk.load_images([{"image": rows()[0][0], "label": 3}])


def test_a_live_pipeline_is_the_base_of_its_folder(tiny_system, tmp_path):
    from sanakit.interop.export import export_pipeline

    facts = {"image_size": 32, "flow_shift": 1.5}
    parts = {"vae": tiny_system.vae, "text_encoder": tiny_system.text_encoder, "core": tiny_system.core}
    assert export_pipeline(tmp_path / "out", **parts, **facts)  # reasons why it is not stock
    from sanakit.interop.pipeline import SanakitPipeline

    pipeline = SanakitPipeline.from_pretrained(tmp_path / "out")
    live, read = sk.load_base(pipeline), sk.load_base(tmp_path / "out")
    assert live.core is pipeline.transformer and (live.image_size, live.flow_shift) == (32, 1.5)
    assert read.name == f"path:{tmp_path / 'out'}" and live.name == "" and sk.load_base(live) is live
    noisy, prompt = torch.randn(2, *live.latent_shape), live.text_encoder.encode(["a", "b"])
    sigmas = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        assert torch.equal(live.velocity(noisy, sigmas, prompt), read.velocity(noisy, sigmas, prompt))
        pipeline.transformer.to(torch.bfloat16)
        half = sk.load_base(pipeline)
        assert half.core.dtype == torch.float32 and pipeline.transformer.dtype == torch.bfloat16
        torch.testing.assert_close(
            half.velocity(noisy, sigmas, prompt), read.velocity(noisy, sigmas, prompt), atol=0.05, rtol=0.05
        )
