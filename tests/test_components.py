"""Contract tests over every registered VAE and text encoder; a new file is tested without a test being written."""

from copy import copy, deepcopy
from functools import cache, partial

import numpy as np
import pytest
import torch

from sanakit.api.load import load_vae as sk_vae
from sanakit.errors import SanakitError
from sanakit.loading import load_text_encoder, load_vae
from sanakit.placement import Placement
from sanakit.sampling import sample_images
from sanakit.testing import check_text_encoder, check_vae
from sanakit.testing.vae import noise_for
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.transformer import TransformerEncoder
from sanakit.vaes import VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE, load_diffusers_model

DIFFUSERS = [name for name in VAES.names() if issubclass(VAES.get(name), DiffusersVAE)]
TRANSFORMERS = [name for name in TEXT_ENCODERS.names() if issubclass(TEXT_ENCODERS.get(name), TransformerEncoder)]


@cache
def vae_twin(name):
    torch.manual_seed(0)
    return VAES.get(name).tiny()


@pytest.fixture(params=VAES.names())
def vae(request):
    """Shared by the tests of one name; a test that changes it works on a copy."""
    return vae_twin(request.param)


images_for = partial(noise_for, width=1)


def test_every_vae_keeps_the_contract(vae):
    check_vae(vae)
    images = images_for(vae)
    torch.testing.assert_close(
        vae.decode(vae.encode(images)), vae.decode_raw(vae.encode_raw(images)), atol=1e-3, rtol=1e-3
    )


def test_the_posterior_s_spread_is_the_model_s_own_in_the_order_of_the_latents():
    for name, to_model, to_raw in (
        ("kl-f8c4", lambda x: x, lambda x: x),
        ("flux.2-vae", lambda x: x, lambda x: torch.nn.functional.pixel_unshuffle(x, 2)),
        ("wan-2.1-vae", lambda x: x[:, :, None], lambda x: x[:, :, 0]),
    ):
        vae = vae_twin(name)
        images = images_for(vae)
        with torch.no_grad():
            posterior = vae.model.encode(to_model(images)).latent_dist
        mean, std = vae.encode_posterior(images)
        assert torch.equal(mean, to_raw(posterior.mean)) and torch.equal(std, to_raw(posterior.std)), name
    for name in ("dc-f16c32", "pca-f8c4", "cosmos-1.0-cv8x8x8"):
        assert vae_twin(name).encode_posterior(images_for(vae_twin(name)))[1] is None


@pytest.mark.parametrize("name", DIFFUSERS)
def test_bf16_latents_are_the_fp32_ones_but_for_rounding(name):
    vae = vae_twin(name)
    images, rounded = images_for(vae, count=1), deepcopy(vae)
    rounded.model.to(torch.bfloat16)
    try:
        exact, raw = vae.encode_raw(images), rounded.encode_raw(images)
    except NotImplementedError as error:
        pytest.skip(str(error))  # Cosmos pools in 3D, which torch has no bf16 for on a CPU
    assert raw.dtype == torch.float32 and rounded.latents_std.dtype == torch.float32
    assert (raw - exact).norm() < 0.3 * exact.norm()  # random linear attention amplifies rounding to a quarter


@pytest.mark.filterwarnings("ignore:SK0208")  # some families publish no scaling
@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_saved_vae_loads_by_its_class_with_the_same_latents(name, tmp_path):
    vae = vae_twin(name)
    vae.model.save_pretrained(tmp_path)
    loaded = load_vae(f"path:{tmp_path}")
    images = images_for(vae, count=1)
    assert loaded.spec == vae.spec
    torch.testing.assert_close(loaded.encode_raw(images), vae.encode_raw(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n, entry in VAES.entries().items() if entry.embedded])
def test_pretrained_reconstructs_better_than_a_flat_colour(name, openclipart_images):
    vae = load_vae(name)
    reconstructed = vae.decode(vae.encode(openclipart_images))
    error = (reconstructed - openclipart_images).square().mean()
    flat = (openclipart_images - openclipart_images.mean((2, 3), keepdim=True)).square().mean()
    assert error < flat / 4
    assert 0.6 < vae.encode(openclipart_images).std() < 1.6


@cache
def encoder_twin(name):
    torch.manual_seed(0)
    return TEXT_ENCODERS.get(name).tiny()


@pytest.fixture(params=TEXT_ENCODERS.names())
def encoder(request):
    """Shared by the tests of one name; a test that changes it works on a copy."""
    return encoder_twin(request.param)


def test_every_text_encoder_keeps_the_contract(encoder):
    check_text_encoder(encoder)
    if hasattr(encoder.tokenizer, "add_tokens"):
        changed = copy(encoder)
        changed.tokenizer = deepcopy(encoder.tokenizer)
        changed.tokenizer.add_tokens(["xyz"])
        assert changed.fingerprint() != encoder.fingerprint()


def plain(encoder, *prompts):
    return encoder.encode(list(prompts), instruction=False)


def test_bf16_embeddings_are_the_fp32_ones_but_for_rounding(encoder):
    rounded = deepcopy(encoder)  # a shallow copy shares the table of parts
    rounded.model.to(torch.bfloat16)
    exact, rounded_embeds = plain(encoder, "a b c").embeds, plain(rounded, "a b c").embeds
    assert rounded_embeds.dtype == torch.float32
    assert (rounded_embeds - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_saved_text_encoder_loads_by_its_class_with_the_same_embeddings(name, tmp_path):
    encoder = encoder_twin(name)
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = load_text_encoder(f"path:{tmp_path}")
    assert type(loaded.model) is type(encoder.model) and loaded.name == f"path:{tmp_path}"
    assert loaded.spec.embed_dim == encoder.spec.embed_dim
    assert loaded.spec.attend_padding == encoder.spec.attend_padding
    loaded.set_spec(encoder.spec)
    torch.testing.assert_close(plain(loaded, "a b C").embeds, plain(encoder, "a b C").embeds, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TEXT_ENCODERS.names())
def test_no_prompts_have_embeddings_of_the_declared_shape(name):
    encoder = encoder_twin(name)
    shape = (0, encoder.spec.max_tokens, encoder.spec.embed_dim)
    none = encoder.encode([])
    assert none.embeds.shape == shape and none.mask.shape == shape[:2] and none.mask.dtype == torch.bool
    if name in TRANSFORMERS:
        assert [one.embeds.shape for one in encoder.encode_layers([], ["last", 0])] == [shape, shape]


def test_equal_weights_under_another_configuration_are_another_component():
    """Whatever says the same of the computation: how it was loaded, where it is kept and how latents are normalised."""
    import diffusers

    def encoder_with(**changes):
        twin = encoder_twin("gemma-2-2b-it")
        config = type(twin.model.config)(**twin.model.config.to_dict() | changes)
        model = type(twin.model)(config)
        model.load_state_dict(twin.model.state_dict())
        return type(twin)(model, twin.tokenizer, twin.spec)

    def vae_with(**changes):
        torch.manual_seed(0)
        return sk_vae(
            diffusers.AutoencoderKL(
                **{"block_out_channels": (8,), "norm_num_groups": 4, "scaling_factor": 1.0} | changes
            )
        )

    encoder, other = encoder_with(), encoder_with(rms_norm_eps=0.1)
    assert encoder.fingerprint() == encoder_twin("gemma-2-2b-it").fingerprint() != other.fingerprint()
    assert (plain(other, "a b").embeds - plain(encoder, "a b").embeds).norm() > 0.1 * plain(
        encoder, "a b"
    ).embeds.norm()
    assert encoder_with(use_cache=False, architectures=["Other"]).fingerprint() == encoder.fingerprint()
    vae = vae_with()
    assert vae.fingerprint() == vae_with(scaling_factor=0.5).fingerprint() != vae_with(norm_num_groups=2).fingerprint()


def test_half_precision_keeps_what_no_checkpoint_holds(tmp_path):
    """As a model that is loaded in bfloat16 computes: rotary frequencies stay in single precision."""
    encoder = encoder_twin("qwen3-0.6b")
    encoder.model.save_pretrained(tmp_path)
    loaded = type(encoder.model).from_pretrained(tmp_path, dtype=torch.bfloat16)

    def types_of(model):
        return {name: tensor.dtype for name, tensor in [*model.named_parameters(), *model.named_buffers()]}

    with Placement(torch.device("cpu"), text_encoder="bf16").holding(encoder):
        types, embeds = types_of(encoder.model), plain(encoder, "a b c").embeds
    assert types == types_of(loaded)
    assert types["rotary_emb.inv_freq"] == torch.float32 and torch.bfloat16 in types.values()
    assert torch.equal(embeds, plain(type(encoder)(loaded, encoder.tokenizer, encoder.spec), "a b c").embeds)
    assert encoder.model.dtype == torch.float32


def test_path_components_load_by_class_and_refuse_what_they_are_not(tmp_path, openclipart_images):
    import diffusers

    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        latent_channels=4,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    model.save_pretrained(tmp_path / "vae")
    vae = load_vae(f"path:{tmp_path / 'vae'}", scaling_factor=0.25)
    assert vae.spec.label == "f2c4" and vae.stats.std == (4.0,)

    for text, code in (("{", "SK0106"), ("[]", "SK0106"), ('{"_class_name": "UNet2DModel"}', "SK0106")):
        (tmp_path / "vae" / "config.json").write_text(text)
        with pytest.raises(SanakitError, match=code):
            load_vae(f"path:{tmp_path / 'vae'}")
    with pytest.raises(SanakitError, match="SK0106"):
        load_vae("path:/nowhere")
    with pytest.raises(SanakitError, match="SK0106"):
        load_text_encoder("path:/nowhere")


def test_config_and_weights_that_disagree_are_refused(tmp_path):
    import diffusers

    small = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    small.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"num_encoder_blocks": [\n    1,\n    1\n  ]', '"num_encoder_blocks": [2, 1]')
    )
    with pytest.raises(SanakitError, match="SK0107"):
        load_diffusers_model(tmp_path)


def test_unknown_names_suggest():
    with pytest.raises(SanakitError, match=r"SK0101.*did you mean dc-f16c32"):
        load_vae("dc-f16c3")


BAD_IMAGES = {
    "uint8": torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
    "from 0 to 255, expected -1 to 1": torch.linspace(0, 255, 3 * 32 * 32).reshape(1, 3, 32, 32),
    "nan": torch.full((1, 3, 32, 32), torch.nan),
    "ndarray": np.zeros((1, 3, 32, 32), np.float32),
}


@pytest.mark.parametrize("said", BAD_IMAGES)
def test_images_of_another_type_or_range_are_refused_by_name(said):
    vae = vae_twin("pca-f8c4")
    for entry in (vae.encode, vae.encode_raw, vae.encode_posterior):
        with pytest.raises(SanakitError, match=f"SK0217.*{said}"):
            entry(BAD_IMAGES[said])
    vae.encode(torch.full((1, 3, 32, 32), 1 + 1e-6))  # rounding


def test_one_text_for_a_list_of_prompts_is_refused_by_name(tiny_system):
    encoder = encoder_twin("minilm")
    entries = [encoder.encode, encoder, encoder.whole_prompts, encoder.offsets]
    entries += [
        lambda prompts: encoder.encode_layers(prompts, ["last"]),
        partial(sample_images, tiny_system, num_steps=1),
    ]
    for entry in entries:
        with pytest.raises(SanakitError, match="SK0307.*one text, 'a red apple', expected a list"):
            entry("a red apple")
    with pytest.raises(SanakitError, match="SK0307.*prompt 1 is a NoneType"):
        encoder.encode(["a", None])
    with pytest.raises(SanakitError, match=r"SK0307.*prompt 0 holds bytes that are no UTF-8: 'a.udcff'"):
        encoder.encode(["a\udcff"])
    assert encoder.encode(("a", "b")).embeds.shape[0] == 2
