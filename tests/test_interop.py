"""Pipelines in and out: what is written reads back to the same image, stock only where diffusers renders the same."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline
from safetensors.torch import load_file

import sanakit
from sanakit.assembly import LatentDiffusion
from sanakit.contracts import LatentStats
from sanakit.core.dit import load_core, new_core, save_core
from sanakit.errors import SanakitError
from sanakit.interop.export import export_pipeline, save_vae
from sanakit.interop.lora import LAYERS_FILE, RECIPE, save_lora
from sanakit.interop.pipeline import SanakitPipeline
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.needs.outline import outline_vae
from sanakit.sampling import SCHEDULERS, new_scheduler, sample_euler, sample_images, sample_scheduled
from sanakit.strategies.base import STRATEGIES, add_lora
from sanakit.swap.plan import build
from sanakit.text_encoders import TEXT_ENCODERS, PromptEmbeds
from sanakit.vaes import VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE, diffusers_spec

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
    torch.nn.init.normal_(core.proj_out.weight, std=0.2)  # it starts at zero, which would make every image the same
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


@pytest.mark.skipif(not diffusers.__version__.startswith("0.42."), reason="docs/interop.md speaks of diffusers 0.42")
def test_the_reason_why_there_are_no_modular_blocks_is_true():
    folder = Path(diffusers.__file__).parent / "modular_pipelines"
    assert (folder / "flux").is_dir() and not list(folder.glob("sana*"))
    assert "experimental" in (folder / "components_manager.py").read_text(encoding="utf-8")
    assert "Modular Diffusers" in (Path(__file__).parent.parent / "docs" / "interop.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dpm++", "unipc"])
def test_a_scheduler_draws_what_stock_draws_with_it(stock, name):
    """Every multistep scheduler of the table: one seed, one image in SanaPipeline, in ours and in `sample`."""
    system, folder = stock
    pipe = SanaPipeline.from_pretrained(folder)
    pipe.scheduler = new_scheduler(name, 2.5)
    call = dict(num_inference_steps=4, guidance_scale=3.0, height=512, width=512, output_type="np")
    theirs = pipe(PROMPT, generator=torch.Generator().manual_seed(7), **call).images[0]
    ours = pixels(system, num_steps=4, seed=7, scheduler=name)
    assert ours.std() > 0.01 and abs(theirs - ours).max() < 1e-4
    assert abs(theirs - pixels(system, num_steps=4, seed=7)).max() > 1e-3  # Euler
    own = SanakitPipeline.from_pretrained(folder, scheduler=name)
    image = own(PROMPT, num_inference_steps=4, generator=torch.Generator().manual_seed(7), output_type="np").images[0]
    assert abs(image - theirs).max() < 1e-4
    with pytest.raises(SanakitError, match=r"SK0104.*no scheduler 'dpm'.*did you mean dpm\+\+.*known: euler"):
        pixels(system, scheduler="dpm")


def test_a_pipeline_keeps_its_flow_shift_whatever_its_scheduler_calls_it(stock, tmp_path):
    pipe = SanakitPipeline.from_pretrained(stock[1], scheduler="dpm++")
    assert pipe.scheduler.config.flow_shift == 2.5 and pipe.scheduler.config.solver_order == 2
    pipe.save_pretrained(tmp_path / "out")
    assert load_base(f"path:{tmp_path / 'out'}").card["flow_shift"] == 2.5


def test_a_multistep_scheduler_is_nearer_to_the_limit_than_euler_at_equal_steps(tiny_system):
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    prompt = tiny_system.text_encoder.encode(["a b"])
    limit = sample_euler(tiny_system, prompt, num_steps=200)
    off = {
        name: float((sample_scheduled(tiny_system, prompt, scheduler=name, num_steps=12) - limit).norm() / limit.norm())
        for name in SCHEDULERS
    }
    assert max(off["dpm++"], off["unipc"]) < off["euler"], off


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


def test_no_exported_file_says_where_its_parts_were_read(stock, tmp_path):
    _, folder = stock
    write(load_base(f"path:{folder}").system(), tmp_path / "out")
    texts = {path.parent.name: path.read_text() for path in (tmp_path / "out").rglob("config.json")}
    assert {"transformer", "vae", "text_encoder"} <= texts.keys()
    assert not [name for name, text in texts.items() if str(folder) in text or "_name_or_path" in text]


def test_a_live_stock_pipeline_is_the_base_of_its_folder(stock):
    system, folder = stock
    pipe = SanaPipeline.from_pretrained(folder)
    live = sanakit.load_base(pipe)
    assert live.core is pipe.transformer and (live.image_size, live.flow_shift) == (512, 2.5)
    assert live.vae.stats.std[0] == pytest.approx(1 / 0.41407)
    assert live.text_encoder.spec == system.text_encoder.spec
    assert torch.equal(live.text_encoder.encode([PROMPT]).embeds, system.text_encoder.encode([PROMPT]).embeds)
    pipe.vae = VAES.get("kl-f8c4").tiny().model
    with pytest.raises(SanakitError, match=r"SK0603.*a SanaPipeline with a AutoencoderKL"):
        sanakit.load_base(pipe)


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
    assert index["_class_name"] == "sanakit.interop.pipeline.SanakitPipeline"
    with pytest.raises(AttributeError, match="no attribute sanakit.interop.pipeline.SanakitPipeline"):
        diffusers.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    with pytest.raises(ValueError, match="^sanakit.interop.pipeline.SanakitPipeline.from_pretrained is not one of"):
        SanaPipeline.from_pretrained(tmp_path / "pipe")  # before it loads anything
    index["_class_name"] = "SanakitPipeline"  # as it was written before
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    pipe = SanakitPipeline.from_pretrained(tmp_path / "pipe")
    pipe.set_progress_bar_config(disable=True)
    image = pipe(PROMPT, num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="np").images[0]
    expected = pixels(system, num_steps=2, seed=3)
    assert expected.std() > 0.01
    assert abs(image - expected).max() < 1e-4
    back = load_base(f"path:{tmp_path / 'pipe'}").system()
    assert abs(pixels(back, num_steps=2, seed=3) - expected).max() < 1e-4


@pytest.mark.filterwarnings("ignore:SK0208")  # some families publish no scaling
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
    assert outline_vae(f"path:{tmp_path / 'vae'}").spec == vae.spec, "dry runs read its folder, too"


@pytest.mark.parametrize("name", TEXT_ENCODERS.names())
def test_every_text_encoder_reads_back_or_is_refused(name, tmp_path):
    encoder = TEXT_ENCODERS.get(name).tiny()
    system = system_of(VAES.get("pca-f8c4").tiny(), encoder, image_size=64)
    try:
        write(system, tmp_path / "pipe")
    except SanakitError as error:
        assert error.code == "SK0604" and not TEXT_ENCODERS.entries()[name].embedded
        return
    back, exported = (
        load_text_encoder(f"path:{tmp_path / 'pipe' / 'text_encoder'}").encode([PROMPT]),
        encoder.encode([PROMPT]),
    )
    assert torch.equal(back.mask, exported.mask)
    torch.testing.assert_close(back.embeds, exported.embeds)


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


def test_more_images_of_more_prompts_keep_their_masks(tmp_path):
    """SanaPipeline repeats embeddings and masks in different orders; ours gives the image of each prompt alone."""
    system = changed("family")
    pipe = SanakitPipeline(
        system.text_encoder, system.vae, system.core, FlowMatchEulerDiscreteScheduler(shift=2.5), 512
    )
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = ["a", "a b c d e f"], torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    options = dict(num_inference_steps=1, output_type="latent")
    images = pipe(prompts, num_images_per_prompt=2, latents=noise, **options).images
    for i in range(4):
        alone = pipe(prompts[i // 2], latents=noise[i : i + 1], **options).images
        torch.testing.assert_close(images[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    other = pipe(prompts[0], latents=noise[2:3], **options).images
    assert (other - images[2:3]).abs().max() > 1e-3


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
    elif how == "foreign policy":
        index |= {"_class_name": "SanakitPipeline"}
        kind = "sanakit.text_encoders.transformer:TransformerEncoder"
        encoder = {"class": kind, "spec": {"embed_dim": 16, "max_tokens": 300, "colour": "red"}}
        index["sanakit"] = {"image_size": 512, "licence": "", "text_encoder": encoder}
    elif how == "no index":
        return (folder / "model_index.json").unlink()
    elif how == "no vae":
        return shutil.rmtree(folder / "vae")
    elif how == "other vae":
        config = json.loads((folder / "vae" / "config.json").read_text()) | {"_class_name": "AutoencoderKL"}
        return (folder / "vae" / "config.json").write_text(json.dumps(config))
    elif how == "damaged":
        return (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
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
        ("foreign policy", "SK0603", "colour"),
        ("no index", "SK0106", "card.json"),
        ("no vae", "SK0603", "no subfolder vae"),
        ("other vae", "SK0603", "AutoencoderKL"),
        ("pickled", "SK0111", "safetensors"),
        ("damaged", "SK0122", "transformer"),
    ],
)
def test_a_folder_that_is_no_pipeline_is_refused(stock, tmp_path, how, code, message):
    shutil.copytree(stock[1], tmp_path / "pipe")
    damage(tmp_path / "pipe", how)
    with pytest.raises(SanakitError, match=f"{code}.*{message}"):
        load_base(f"path:{tmp_path / 'pipe'}").system()


def test_low_rank_adapters_go_out_as_diffusers_reads_them(stock, tmp_path):
    """Base core, interface layers put in, adapter loaded by SanaPipeline: the same velocity as the folded core."""
    system, _ = stock
    base = deepcopy(system.core)
    trained = deepcopy(system.core)
    add_lora(trained, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if ".lora_B" in name or name.startswith("patch_embed"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    save_lora(trained, tmp_path / "lora", base=base)
    trained.fuse_lora()
    trained.unload_lora()
    reasons = write(
        LatentDiffusion(vae=system.vae, text_encoder=system.text_encoder, core=trained, image_size=512, flow_shift=2.5),
        tmp_path / "pipe",
        lora=tmp_path / "lora",
    )
    assert reasons == []

    base.load_state_dict(load_file(tmp_path / "pipe" / "lora" / "interface_layers.safetensors"), strict=False)
    pipe = SanaPipeline(None, None, system.vae.model, base, FlowMatchEulerDiscreteScheduler())
    call = dict(
        hidden_states=torch.randn(1, 8, 4, 4, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 16, generator=generator),
        timestep=torch.tensor([500.0]),
    )
    folded = load_core(tmp_path / "pipe" / "transformer")
    with torch.no_grad():
        expected, before = folded(**call).sample, pipe.transformer(**call).sample
        pipe.load_lora_weights(tmp_path / "pipe" / "lora")
        after = pipe.transformer(**call).sample
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 1e-2


@pytest.mark.parametrize("start", ["align", "align-blocks"])
def test_the_recipe_of_the_card_gives_the_folded_core(tiny_system, tiny_data, tmp_path, start):
    """What an export writes and what its README says to do with it, whatever the start has rewritten."""
    torch.nn.init.normal_(tiny_system.core.proj_out.weight, std=0.2)
    torch.nn.init.ones_(tiny_system.core.caption_norm.weight)
    vae = deepcopy(tiny_system.vae)
    vae.spec = replace(vae.spec, latent_channels=6)
    wider = replace(tiny_data, latents=tiny_data.latents[:, :, [0, 2, 1, 3, 0, 1]] + 0.3 * torch.randn(64, 2, 6, 4, 4))
    core = build(tiny_system, vae, STRATEGIES.get(start), wider, tiny_data, seed=0, draws=64)[0].core
    started = core.state_dict()
    add_lora(core, 4)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3)
    save_lora(core, tmp_path / "DIR" / "lora", base=tiny_system.core)
    core.fuse_lora()
    core.unload_lora()
    save_core(core, tmp_path / "DIR" / "transformer")
    save_core(tiny_system.core, tmp_path / "BASE")
    kept = load_file(tmp_path / "DIR" / "lora" / LAYERS_FILE)
    assert kept.keys() <= started.keys()
    assert any(".attn1.to_out.0." in name for name in kept) == (start == "align-blocks")

    names = {}
    exec(RECIPE.replace('"DIR', f'"{tmp_path}/DIR').replace('("BASE")', f'("{tmp_path}/BASE")', 1), names)
    call = dict(
        hidden_states=torch.randn(2, 6, 4, 4),
        encoder_hidden_states=torch.randn(2, 3, 16),
        timestep=torch.tensor([500.0, 300.0]),
    )
    with torch.no_grad():
        rebuilt, folded = (one.eval()(**call).sample for one in (names["core"], core))
    torch.testing.assert_close(rebuilt, folded, atol=1e-4, rtol=1e-4)


PLUGIN = """
import torch
from sanakit.contracts import LatentSpec, LatentStats, TextSpec
from sanakit.text_encoders import TEXT_ENCODERS, TextEncoder
from sanakit.vaes import VAE, VAES


@VAES.register("theirs-f4c48", title="Pixels, stacked", licence="MIT")
class Stacked(VAE):
    @classmethod
    def tiny(cls):
        spec = LatentSpec(latent_channels=48, spatial_compression_ratio=4)
        return cls(torch.nn.Identity(), spec, LatentStats.from_scaling(2.0, 0.1))

    load = tiny

    def _encode(self, images):
        return torch.nn.functional.pixel_unshuffle(images, 4)

    def _decode(self, raw_latents):
        return torch.nn.functional.pixel_shuffle(raw_latents, 4)


@TEXT_ENCODERS.register("theirs-bytes", title="Bytes, one-hot", licence="MIT")
class Bytes(TextEncoder):
    @classmethod
    def tiny(cls):
        return cls(torch.nn.Embedding.from_pretrained(torch.eye(256)), TextSpec(embed_dim=256, max_tokens=8))

    load = tiny

    def _encode(self, prompts):
        rows = [list(prompt.encode())[:8] or [0] for prompt in prompts]
        ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
        mask = torch.tensor([[i < len(row) for i in range(8)] for row in rows])
        return self.model(ids), mask, sum(len(prompt.encode()) > 8 for prompt in prompts)
"""


def test_a_package_adds_a_vae_and_a_text_encoder_by_entry_points_alone(tmp_path, monkeypatch):
    (tmp_path / "their_parts.py").write_text(PLUGIN)
    info = tmp_path / "their_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sanakit.vaes]\ntheirs-f4c48 = their_parts:Stacked\n\n"
        "[sanakit.text_encoders]\ntheirs-bytes = their_parts:Bytes\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for registry in (VAES, TEXT_ENCODERS):
        monkeypatch.setattr(registry, "_listing", None)
        monkeypatch.setattr(registry, "_objects", dict(registry._objects))
    assert VAES.entries()["theirs-f4c48"].origin == TEXT_ENCODERS.entries()["theirs-bytes"].origin == "their-parts"
    vae, encoder = load_vae("theirs-f4c48"), load_text_encoder("theirs-bytes?max_tokens=8&instruction=xy")
    assert encoder.spec.instruction == "xy" and len(encoder.fingerprint()) == 64
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(vae.decode(vae.encode(images)), images)
    system = system_of(vae, encoder, image_size=32)
    assert sample_images(system, ["a"], num_steps=1).shape == (1, 3, 32, 32)
