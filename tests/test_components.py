"""Contract tests over every registered VAE and text encoder; a new file is tested without a test being written."""

import pytest
import torch

from sanakit.contracts import LatentStats
from sanakit.errors import SanakitError
from sanakit.text_encoders import TEXT_ENCODERS, load_text_encoder
from sanakit.vaes import VAES, load_vae
from sanakit.vaes.base import load_diffusers_model


@pytest.fixture(params=VAES.names())
def vae(request):
    return VAES.get(request.param).tiny()


def images_for(vae, height=1, width=1, count=2):
    ratio = vae.spec.spatial_compression_ratio
    return torch.rand(count, 3, 2 * ratio * height, 2 * ratio * width) * 2 - 1


def test_shapes_are_the_declared_ones_and_encoding_is_deterministic(vae):
    images = images_for(vae, height=1, width=2)
    raw = vae.encode_raw(images)
    assert tuple(raw.shape[1:]) == vae.spec.shape(*images.shape[-2:])
    assert vae.decode_raw(raw).shape == images.shape
    assert torch.equal(raw, vae.encode_raw(images))


def test_normalise_and_denormalise_are_inverse(vae):
    vae.set_stats(LatentStats(mean=tuple(range(vae.spec.latent_channels)), std=(3.0,)))
    raw = vae.encode_raw(images_for(vae))
    torch.testing.assert_close(vae.denormalize(vae.normalize(raw)), raw, atol=1e-4, rtol=1e-4)


def test_frozen_without_gradients(vae):
    assert not any(p.requires_grad for p in vae.parameters())
    assert not vae.encode(images_for(vae)).requires_grad


def test_fingerprint_follows_the_weights_but_not_the_normalisation(vae):
    before = vae.fingerprint()
    vae.set_stats(LatentStats.from_scaling(0.5))
    assert vae.fingerprint() == before
    next(iter(vae.model.state_dict().values())).add_(1)
    assert vae.fingerprint() != before


def test_sizes_that_do_not_divide_are_refused(vae):
    with pytest.raises(SanakitError, match="SK0202"):
        vae.encode_raw(torch.zeros(1, 3, 2 * vae.spec.spatial_compression_ratio + 1, 64))


def test_wrong_number_of_statistics_is_refused(vae):
    with pytest.raises(SanakitError, match="SK0202"):
        vae.set_stats(LatentStats(mean=(0.0, 0.0, 0.0)))


@pytest.mark.parametrize("name", VAES.names())
def test_pretrained_reconstructs_better_than_a_flat_colour(name, openclipart_images):
    vae = load_vae(name)
    reconstructed = vae.decode(vae.encode(openclipart_images))
    error = (reconstructed - openclipart_images).square().mean()
    flat = (openclipart_images - openclipart_images.mean((2, 3), keepdim=True)).square().mean()
    assert error < flat / 4
    assert 0.6 < vae.encode(openclipart_images).std() < 1.6


@pytest.fixture(params=TEXT_ENCODERS.names())
def encoder(request):
    return TEXT_ENCODERS.get(request.param).tiny()


def test_embeddings_are_right_padded_masked_and_independent_of_neighbours(encoder):
    alone = encoder.encode(["a b"])
    batch = encoder.encode(["a b", "c d e f g h"])
    assert tuple(alone.embeds.shape) == (1, encoder.spec.max_tokens, encoder.spec.embed_dim)
    torch.testing.assert_close(batch.embeds[:1], alone.embeds, atol=1e-5, rtol=1e-4)
    assert (batch.embeds[~batch.mask] == 0).all()
    assert (batch.mask.int().diff(dim=1) <= 0).all()  # kept tokens first


def test_null_prompt_is_one_row_and_differs_from_prompts(encoder):
    null = encoder.null()
    assert len(null) == 1
    assert not torch.equal(null.embeds, encoder.encode(["a b c"]).embeds)


def test_truncation_is_counted(encoder):
    assert encoder.encode(["a " * 100, "b"]).truncated == 1


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
