"""The zoo's records: published configurations, each family's own normalisation, and what is refused."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from torch._subclasses import FakeTensorMode

from sanakit.contracts import LatentStats
from sanakit.errors import SanakitError
from sanakit.loading import load_vae
from sanakit.testing.vae import noise_for
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.vaes import VAES
from sanakit.vaes.diffusers_vae import DiffusersVAE, HubVAE, diffusers_spec, wrapper_of
from sanakit.vaes.live import renormalised, wrap_autoencoder
from sanakit.vaes.saving import write_vae

SAVED = [name for name in VAES.names() if issubclass(VAES.get(name), DiffusersVAE)]
HUB = [name for name in VAES.names() if issubclass(VAES.get(name), HubVAE)]


def test_the_zoo_is_as_large_as_promised():
    assert len(VAES.names()) >= 25 and len(TEXT_ENCODERS.names()) >= 20


@pytest.mark.parametrize("name", [name for name in HUB if VAES.get(name).published is not None])
def test_published_configuration_has_the_declared_geometry(name):
    """At its real size, shapes without a byte of weights: on the meta device, or where a module makes tensors as it is
    imported (Cosmos), on fake ones."""
    entry = VAES.get(name)
    assert hasattr(diffusers, entry.model_class)  # imported out here
    cosmos = entry.model_class == "AutoencoderKLCosmos"
    with FakeTensorMode(allow_non_fake_inputs=True) if cosmos else torch.device("meta"):
        assert diffusers_spec(entry.build(entry.published).eval(), entry) == entry.spec


@pytest.mark.parametrize("name", HUB)
def test_record_names_a_repository_and_statistics_that_fit(name):
    entry = VAES.get(name)
    assert entry.hub.count("/") == 1 and VAES.entries()[name].licence
    assert entry.revision is None or len(entry.revision) == 40
    assert {len(entry.stats.mean), len(entry.stats.std)} <= {1, entry.spec.latent_channels}
    assert min(entry.stats.std) > 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dc-ae-f32c32-sana-1.0", lambda z: z * 0.41407),
        ("sd-vae-ft-mse", lambda z: z * 0.18215),
        ("sd3-vae", lambda z: (z - 0.0609) * 1.5305),
        ("flux.1-vae", lambda z: (z - 0.1159) * 0.3611),
        ("taef1", lambda z: z),
    ],
)
def test_normalisation_is_the_familys_own(name, expected):
    vae = VAES.get(name).tiny()
    raw = torch.randn(2, vae.spec.latent_channels, 2, 2)
    torch.testing.assert_close(vae.normalize(raw), expected(raw), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["wan-2.1-vae", "qwen-image-vae"])
def test_recorded_statistics_are_the_librarys_defaults(name):
    entry = VAES.get(name)
    model = entry.tiny().model
    assert entry.read_stats(model, dict(model.config)) == entry.stats


def test_flux2_stacks_two_by_two_and_takes_the_batch_norms_statistics():
    vae = VAES.get("flux.2-vae").tiny()
    vae.model.bn.running_mean.normal_()
    vae.model.bn.running_var.uniform_(0.5, 2)
    vae.set_stats(vae.read_stats(vae.model, {}))
    images = torch.rand(1, 3, 32, 64) * 2 - 1
    flat = vae.model.encode(images).latent_dist.mode()  # (1, 32, 4, 8)
    stacked = flat.view(1, 32, 2, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 128, 2, 4)
    torch.testing.assert_close(vae.encode(images), vae.model.bn(stacked), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae._decode(stacked), vae.model.decode(flat).sample)


@pytest.mark.parametrize("name", SAVED)
def test_what_is_saved_reads_back_as_the_same_vae(name, tmp_path):
    """With any normalisation: the twin's own, one factor instead of it, a mean and std per channel."""
    vae = VAES.get(name).tiny()
    channels = vae.spec.latent_channels
    mean, std = torch.randn(channels).tolist(), (torch.rand(channels) + 0.5).tolist()
    images = noise_for(vae, width=1, count=1)
    one_factor, each_channel = replace(vae.stats, std=(4.0,)), LatentStats(mean=tuple(mean), std=tuple(std))
    for number, stats in enumerate((vae.stats, one_factor, each_channel)):
        other = renormalised(vae, stats)
        write_vae(other, tmp_path / str(number))
        again = load_vae(f"path:{tmp_path / str(number)}")
        assert again.fingerprint() == vae.fingerprint()
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(again.latents_mean, other.latents_mean, **close)
        torch.testing.assert_close(again.latents_std, other.latents_std, **close)
        latents = other.encode(images)
        torch.testing.assert_close(again.encode(images), latents, **close)
        torch.testing.assert_close(again.decode(latents), other.decode(latents), **close)


@pytest.mark.parametrize(
    ("name", "mean", "spread"),
    [
        ("ltx-video-vae", "latents_mean", "latents_std"),
        ("ltx-2-vae", "latents_mean", "latents_std"),
        ("flux.2-vae", "bn.running_mean", "bn.running_var"),
    ],
)
def test_statistics_beside_the_weights_stay_there(name, mean, spread, tmp_path):
    """What diffusers reads is what was given; the model in memory and the key of its caches stay as they are."""
    model = VAES.get(name).tiny().model
    buffers = dict(model.named_buffers())
    buffers[mean].normal_()
    buffers[spread].uniform_(0.5, 2)
    before = {key: buffers[key].clone() for key in (mean, spread)}
    vae = wrap_autoencoder(model)
    halved = renormalised(vae, LatentStats(mean=vae.stats.mean, std=tuple(s / 2 for s in vae.stats.std)))
    assert halved.fingerprint() == vae.fingerprint()
    for number, one in enumerate((vae, halved)):
        write_vae(one, tmp_path / str(number))
        saved = dict(type(model).from_pretrained(tmp_path / str(number)).named_buffers())
        assert torch.equal(saved[mean], before[mean]) and torch.equal(saved[spread], before[spread]) is (one is vae)
        stats = one.read_stats(type(model).from_pretrained(tmp_path / str(number)), {})
        torch.testing.assert_close(torch.tensor(stats.std), one.latents_std.flatten())
        assert load_vae(f"path:{tmp_path / str(number)}").fingerprint() == vae.fingerprint()
    now = dict(model.named_buffers())
    assert all(torch.equal(now[key], before[key]) for key in before)
    edit(tmp_path / "0", latents_mean=[0.5] * vae.spec.latent_channels, latents_std=[2.0] * vae.spec.latent_channels)
    again = load_vae(f"path:{tmp_path / '0'}")  # as earlier versions wrote it
    assert set(again.stats.std) == {2.0}
    write_vae(again, tmp_path / "2")
    assert not {"latents_mean", "latents_std"} & json.loads((tmp_path / "2" / "config.json").read_text()).keys()
    assert load_vae(f"path:{tmp_path / '2'}").stats == again.stats


@pytest.mark.parametrize("name", ["ltx-video-vae", "ltx-2-vae"])
def test_a_decoder_with_a_timestep_takes_latents_as_clean(name):
    entry = VAES.get(name)
    model = entry.build(entry.small | {"timestep_conditioning": True}).eval()
    vae, raw = wrap_autoencoder(model), torch.randn(2, 128, 2, 2)
    with torch.no_grad():
        expected = model.decode(raw[:, :, None], torch.zeros(2)).sample[:, :, 0].clamp(-1, 1)
    torch.testing.assert_close(vae.decode_raw(raw), expected)
    assert vae.encode(torch.zeros(1, 3, 64, 64)).shape == (1, 128, 2, 2)


def test_a_movq_of_a_folder_decodes_as_the_registered_one(tmp_path):
    """Without quantisation, and without the factor that its config states."""
    vae = VAES.get("movq-kandinsky-2.2").tiny()
    vae.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scaling_factor"] == 0.18215
    again, raw = load_vae(f"path:{tmp_path}"), torch.randn(1, 4, 4, 4)
    assert torch.equal(again.decode_raw(raw), vae.decode_raw(raw)) and again.stats == vae.stats
    assert again.fingerprint() == vae.fingerprint() == wrap_autoencoder(vae.model).fingerprint()
    quantising = DiffusersVAE(vae.model, vae.spec, vae.stats)
    assert not torch.equal(quantising.decode_raw(raw), vae.decode_raw(raw))
    assert quantising.weights_hash() != vae.weights_hash()
    edit(tmp_path, norm_type="group")
    assert wrapper_of(tmp_path) is DiffusersVAE


def test_ltx_reads_mean_and_std_from_its_buffers():
    vae = VAES.get("ltx-video-vae").tiny()
    vae.model.latents_mean.normal_()
    vae.model.latents_std.uniform_(0.5, 2)
    vae.set_stats(vae.read_stats(vae.model, {}))
    raw = torch.randn(1, 128, 2, 2)
    mean, std = (t.view(1, -1, 1, 1) for t in (vae.model.latents_mean, vae.model.latents_std))
    torch.testing.assert_close(vae.normalize(raw), (raw - mean) * vae.model.config.scaling_factor / std)


def test_a_video_vae_takes_a_image_as_one_frame():
    vae = VAES.get("wan-2.1-vae").tiny()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    video = vae.model.encode(images[:, :, None]).latent_dist.mode()
    assert video.shape == (2, 16, 1, 2, 2)
    assert torch.equal(vae.encode_raw(images), video[:, :, 0])


@pytest.mark.parametrize(
    "name", ["hunyuanvideo-vae", "hunyuanvideo-1.5-vae", "cogvideox-2b-vae", "ltx-2-vae", "kvae-3d-1.0"]
)
def test_frames_go_through_a_video_vae_independently(name):
    """Latents and images of a batch are those of every image alone, and of the library's own one-frame video."""
    vae = VAES.get(name).tiny()
    side = 2 * vae.spec.spatial_compression_ratio
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw = vae.encode_raw(images)
    alone = torch.cat([vae.model.encode(image[:, :, None]).latent_dist.mode()[:, :, 0] for image in images.split(1)])
    torch.testing.assert_close(raw, alone, atol=1e-5, rtol=1e-4)
    decoded = vae.model.decode(raw[1:, :, None]).sample[:, :, 0].clamp(-1, 1)
    torch.testing.assert_close(vae.decode_raw(raw)[1:], decoded, atol=1e-3, rtol=1e-3)


def test_an_image_model_with_alpha_reads_opaque_images():
    vae = VAES.get("qwen-image-2.1-vae").tiny()
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    opaque = torch.cat([images, torch.ones(1, 1, 32, 32)], 1)
    torch.testing.assert_close(vae.encode_raw(images), vae.model.encode(opaque[:, :, None]).latent_dist.mode()[:, :, 0])
    assert vae.decode_raw(vae.encode_raw(images)).shape == images.shape


@pytest.mark.parametrize("name", ["kvae-2d-1.0", "e2e-flux-vae", "e2e-qwenimage-vae"])
def test_statistics_that_nobody_published_are_warned_about_not_guessed(name, tmp_path):
    entry = VAES.get(name)
    entry.tiny().model.save_pretrained(tmp_path)
    edit(tmp_path, scaling_factor=None, shift_factor=None, latents_mean=None, latents_std=None)
    with pytest.warns(UserWarning, match="SK0208.*states no scaling"):
        assert entry.from_folder(tmp_path).stats == LatentStats()


def test_a_representation_autoencoder_takes_its_own_image_size_only():
    vae = VAES.get("rae-dinov2-small").tiny()
    for size in ((128, 128), (256, 512)):
        with pytest.raises(SanakitError, match="SK0202.*256 px squares only"):
            vae.encode_raw(torch.zeros(1, 3, *size))


@pytest.fixture
def folder(tmp_path):
    """A saved AutoencoderKL of kl-f8c4's shape."""
    VAES.get("kl-f8c4").tiny().model.save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_config_without_scaling_is_warned_about_and_never_guessed(folder):
    edit(folder, scaling_factor=None)
    with pytest.warns(UserWarning, match="SK0208.*states no scaling"):
        vae = load_vae(f"path:{folder}")
        assert load_vae(f"path:{folder}", scaling_factor=0.5).stats.std == (2.0,)
    assert vae.stats == LatentStats()  # diffusers itself would take 0.18215


def test_statistics_of_the_config_win_over_the_record(folder):
    edit(folder, scaling_factor=0.25, shift_factor=0.5)
    assert VAES.get("sd-vae-ft-mse").from_folder(folder).stats == LatentStats(mean=(0.5,), std=(4.0,))
    edit(folder, scaling_factor=None, shift_factor=None)
    assert VAES.get("sd-vae-ft-mse").from_folder(folder).stats == LatentStats.from_scaling(0.18215)


def test_pickled_weights_are_refused(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(SanakitError, match=r"SK0111.*diffusion_pytorch_model\.bin, expected \*\.safetensors"):
        load_vae(f"path:{folder}")


def test_shards_that_are_missing_or_do_not_fit_are_refused(tmp_path):
    model = VAES.get("kl-f8c4").tiny().model
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1 and load_vae(f"path:{tmp_path}").spec.label == "f8c4"
    edit(tmp_path, block_out_channels=[8, 8, 8, 16])
    with pytest.raises(SanakitError, match="SK0107"):
        load_vae(f"path:{tmp_path}")
    edit(tmp_path, block_out_channels=[8, 8, 8, 8])
    shards[0].unlink()
    with pytest.raises(SanakitError, match=f"SK0122.*{len(shards) - 1} of {len(shards)} weight files"):
        load_vae(f"path:{tmp_path}")


def test_damaged_weights_are_refused(folder):
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SanakitError, match="SK0122.*7 bytes"):
        load_vae(f"path:{folder}")


def test_a_repository_that_wants_to_run_its_own_code_is_refused(folder):
    edit(folder, _class_name="TheirVAE", auto_map={"AutoModel": "theirs.TheirVAE"})
    with pytest.raises(SanakitError, match="SK0112.*theirs.TheirVAE"):
        wrapper_of(folder)


def test_a_repository_that_cannot_be_had_says_what_to_do(monkeypatch):
    with pytest.raises(SanakitError, match="SK0902.*stabilityai/sd-vae-ft-mse") as refused:
        VAES.get("sd-vae-ft-mse").load()
    assert refused.value.exit_code == 3 and "path:DIR" in str(refused.value)
