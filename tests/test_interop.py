"""Pipelines in and out: what is written reads back to the same picture, stock only where diffusers renders the same."""

import json
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline
from safetensors.torch import load_file

from sanakit.assembly import LatentDiffusion
from sanakit.contracts import LatentStats
from sanakit.core.dit import new_core
from sanakit.errors import SanakitError
from sanakit.interop.export import export_pipeline, save_vae
from sanakit.interop.pipeline import SanakitPipeline
from sanakit.sampling import sample_images
from sanakit.swap.plan import load_base
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds, load_text_encoder
from sanakit.vaes import VAES, load_vae
from sanakit.vaes.base import DiffusersVAE, diffusers_spec

PROMPT = "a red apple"


def gemma():
    """Gemma-2's tiny twin; its tokenizer pads left unless it is told otherwise, as Gemma's does."""
    torch.manual_seed(0)
    return TEXT_ENCODERS.get("gemma-2-2b-it").tiny()


def dc_ae():
    """A DC-AE of Sana's ratio 32 and scaling factor."""
    torch.manual_seed(0)
    model = AutoencoderDC(
        latent_channels=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    )
    return DiffusersVAE(model, diffusers_spec(model), LatentStats.from_scaling(0.41407))


def system_of(vae, encoder, *, image_size, flow_shift=2.5):
    channels = vae.spec.latent_channels
    core = new_core(
        {
            "in_channels": channels,
            "out_channels": channels,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": encoder.spec.embed_dim,
            "sample_size": image_size // vae.spec.spatial_compression_ratio,
        },
        seed=0,
    )
    torch.nn.init.normal_(core.proj_out.weight, std=0.2)  # it starts at zero, which would make every picture the same
    torch.nn.init.ones_(core.caption_norm.weight)
    return LatentDiffusion(
        vae=vae, text_encoder=encoder, core=core.eval(), image_size=image_size, flow_shift=flow_shift
    )


def write(system, out, **more):
    return export_pipeline(
        out,
        core=system.core,
        vae=system.vae,
        text_encoder=system.text_encoder,
        image_size=system.image_size,
        flow_shift=system.flow_shift,
        **more,
    )


def pixels(system, prompt=PROMPT, **options):
    return sample_images(system, [prompt], **options)[0].add(1).div(2).permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    system = system_of(dc_ae(), gemma(), image_size=512)
    folder = tmp_path_factory.mktemp("stock") / "pipe"
    assert write(system, folder) == []
    return system, folder


def test_a_stock_folder_renders_the_same_in_diffusers(stock):
    system, folder = stock
    pipe = SanaPipeline.from_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "SanaPipeline"
    sigmas = torch.linspace(1, 0, 3)[:-1].tolist()
    call = dict(sigmas=sigmas, num_inference_steps=2, guidance_scale=3.0, height=512, width=512, output_type="np")
    theirs = pipe(PROMPT, generator=torch.Generator().manual_seed(7), **call).images[0]
    ours = pixels(system, num_steps=2, seed=7)
    assert ours.std() > 0.01
    assert abs(theirs - ours).max() < 1e-4
    for other in (pixels(system, num_steps=2, seed=8), pixels(system, "blue", num_steps=2, seed=7)):
        assert abs(theirs - other).max() > 1e-3


def test_a_stock_folder_is_a_base(stock):
    system, folder = stock
    base = load_base(f"path:{folder}")
    assert base.card["image_size"] == 512 and base.card["flow_shift"] == 2.5
    back = base.system()
    assert abs(pixels(back, num_steps=2) - pixels(system, num_steps=2)).max() < 1e-5
    assert back.text_encoder.fingerprint() == system.text_encoder.fingerprint()
    assert back.vae.stats.std[0] == pytest.approx(1 / 0.41407)
    text = load_text_encoder(f"path:{folder / 'text_encoder'}")
    assert torch.equal(text.encode([PROMPT]).embeds, system.text_encoder.encode([PROMPT]).embeds)


def test_diffusers_own_pipeline_folder_is_a_base(stock, tmp_path):
    """Written by SanaPipeline.save_pretrained with its published scheduler, not by our export."""
    system, _ = stock
    scheduler = diffusers.DPMSolverMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    parts = (system.text_encoder.tokenizer, system.text_encoder.model, system.vae.model, system.core, scheduler)
    SanaPipeline(*parts).save_pretrained(tmp_path / "theirs")
    back = load_base(f"path:{tmp_path / 'theirs'}").system()
    assert back.flow_shift == 3.0
    back.flow_shift = system.flow_shift
    assert abs(pixels(back, num_steps=1) - pixels(system, num_steps=1)).max() < 1e-5


def changed(name):
    vae, encoder, size = dc_ae(), gemma(), 512
    if name == "shift":
        vae, size = VAES.get("kl-f8c4").tiny(), 64
        vae.set_stats(LatentStats.from_scaling(1.5305, 0.0609))
    elif name == "size":
        size = 256
    elif name == "family":
        encoder = TEXT_ENCODERS.get("minilm").tiny()
    elif name == "null":
        null = encoder.null()
        encoder.kept_null = PromptEmbeds(null.embeds + null.mask[..., None], null.mask)
    elif name == "instruction":
        encoder.set_spec(replace(encoder.spec, instruction="draw: "))
    elif name == "AutoencoderKL":
        vae = VAES.get("kl-f8c4").tiny()
    elif name == "PCA":
        vae, size = VAES.get("pca-f8c4").tiny(), 64
    elif name == "static table":
        encoder = TEXT_ENCODERS.get("wordllama").tiny()
    return system_of(vae, encoder, image_size=size)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shift", "shift"),
        ("size", "256 px"),
        ("family", "BertModel"),
        ("null", "another way"),
        ("instruction", "another way"),
        ("AutoencoderKL", "AutoencoderKL"),
        ("PCA", "mean and std"),
        ("static table", "Embedding"),
    ],
)
def test_what_stock_would_render_wrong_names_our_class(name, reason, tmp_path):
    system = changed(name)
    reasons = write(system, tmp_path / "pipe")
    assert any(reason in text for text in reasons), reasons
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["_class_name"] == "SanakitPipeline"
    with pytest.raises(AttributeError, match="SanakitPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    pipe = SanakitPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    found = pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="np").images[0]
    expected = pixels(system, num_steps=2, seed=3)
    assert expected.std() > 0.01
    assert abs(found - expected).max() < 1e-4
    back = load_base(f"path:{tmp_path / 'pipe'}").system()
    assert abs(pixels(back, num_steps=2, seed=3) - expected).max() < 1e-4


@pytest.mark.parametrize("name", VAES.names())
def test_every_vae_reads_back_or_is_refused(name, tmp_path):
    """`save_vae` compares by itself; what it writes must also load as a component with the same normalisation."""
    vae = VAES.get(name).tiny()
    try:
        save_vae(vae, tmp_path / "vae", stock=False)
    except SanakitError as error:
        assert error.code == "SK0604" and not VAES.entries()[name].embedded
        return
    back = load_vae(f"path:{tmp_path / 'vae'}")
    assert back.spec == vae.spec and back.fingerprint() == vae.fingerprint()
    torch.testing.assert_close(back.latents_std, vae.latents_std)


@pytest.mark.parametrize("name", TEXT_ENCODERS.names())
def test_every_text_encoder_reads_back_or_is_refused(name, tmp_path):
    encoder = TEXT_ENCODERS.get(name).tiny()
    system = system_of(VAES.get("pca-f8c4").tiny(), encoder, image_size=64)
    try:
        write(system, tmp_path / "pipe")
    except SanakitError as error:
        assert error.code == "SK0604" and not TEXT_ENCODERS.entries()[name].embedded
        return
    back, own = (
        load_text_encoder(f"path:{tmp_path / 'pipe' / 'text_encoder'}").encode([PROMPT]),
        encoder.encode([PROMPT]),
    )
    assert torch.equal(back.mask, own.mask)
    torch.testing.assert_close(back.embeds, own.embeds)


class Flipped(DiffusersVAE):
    """What it does lies in code that no folder holds."""

    def _decode(self, raw_latents):
        return -super()._decode(raw_latents)


def test_what_would_read_back_otherwise_is_refused(tmp_path):
    plain = VAES.get("kl-f8c4").tiny()
    system = system_of(Flipped(plain.model, plain.spec, plain.stats), gemma(), image_size=64)
    with pytest.raises(SanakitError, match="SK0604.*reads back otherwise"):
        write(system, tmp_path / "pipe")
    assert not list(tmp_path.iterdir())


def test_more_pictures_of_more_prompts_keep_their_masks(tmp_path):
    """SanaPipeline repeats embeddings and masks in different orders; ours gives the picture of each prompt alone."""
    system = changed("family")
    pipe = SanakitPipeline(
        system.text_encoder, system.vae, system.core, FlowMatchEulerDiscreteScheduler(shift=2.5), 512
    )
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = ["a", "a b c d e f"], torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    options = dict(num_inference_steps=1, output_type="latent")
    found = pipe(prompts, num_images_per_prompt=2, latents=noise, **options).images
    for i in range(4):
        alone = pipe(prompts[i // 2], latents=noise[i : i + 1], **options).images
        torch.testing.assert_close(found[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    other = pipe(prompts[0], latents=noise[2:3], **options).images
    assert (other - found[2:3]).abs().max() > 1e-3


def test_sizes_that_do_not_divide_are_refused():
    system = changed("PCA")
    pipe = SanakitPipeline(system.text_encoder, system.vae, system.core, FlowMatchEulerDiscreteScheduler(), 64)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(PROMPT, num_inference_steps=1, height=24, width=40, output_type="np").images.shape == (1, 24, 40, 3)
    with pytest.raises(SanakitError, match="SK0110.*24 x 30"):
        pipe(PROMPT, height=24, width=30)


def test_a_kept_null_embedding_goes_through(tmp_path):
    system = changed("null")
    write(system, tmp_path / "pipe")
    back = load_base(f"path:{tmp_path / 'pipe'}").system()
    torch.testing.assert_close(back.null.embeds, system.text_encoder.kept_null.embeds)
    swapped = LatentDiffusion(
        vae=back.vae, text_encoder=TEXT_ENCODERS.get("minilm").tiny(), core=back.core, image_size=512
    )
    assert not torch.equal(swapped.null.embeds, system.text_encoder.kept_null.embeds[:, :16])


def damage(folder, how):
    index = json.loads((folder / "model_index.json").read_text())
    if how == "other pipeline":
        index["_class_name"] = "PixArtSigmaPipeline"
    elif how == "no section":
        index["_class_name"] = "SanakitPipeline"
    elif how == "foreign class":
        index |= {"_class_name": "SanakitPipeline"}
        encoder = {"class": "os:system", "spec": {"embed_dim": 16, "max_tokens": 300}}
        index["sanakit"] = {"image_size": 512, "licence": "", "text_encoder": encoder}
    elif how == "no index":
        return (folder / "model_index.json").unlink()
    elif how == "no vae":
        return shutil.rmtree(folder / "vae")
    elif how == "other vae":
        config = json.loads((folder / "vae" / "config.json").read_text()) | {"_class_name": "AutoencoderKL"}
        return (folder / "vae" / "config.json").write_text(json.dumps(config))
    elif how == "pickled":
        file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        return file.unlink()
    return (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("other pipeline", "SK0603", "PixArtSigmaPipeline"),
        ("no section", "SK0603", "section"),
        ("foreign class", "SK0603", "os:system"),
        ("no index", "SK0106", "card.json"),
        ("no vae", "SK0603", "no subfolder vae"),
        ("other vae", "SK0603", "AutoencoderKL"),
        ("pickled", "SK0107", "safetensors"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_refused(stock, tmp_path, how, code, message):
    shutil.copytree(stock[1], tmp_path / "pipe")
    damage(tmp_path / "pipe", how)
    with pytest.raises(SanakitError, match=f"{code}.*{message}"):
        load_base(f"path:{tmp_path / 'pipe'}").system()
