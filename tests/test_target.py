"""The best linear denoiser of a latent space: read in parts, from the same windows as before on small data sets."""

import pytest
import torch
from torch.nn import functional

from sanakit.data import load_images
from sanakit.data.dataset import LatentDataset, build_dataset
from sanakit.loading import load_text_encoder, load_vae
from sanakit.swap import quality
from sanakit.text_encoders import PromptEmbeds


class Counted:
    """Latents that say how many were asked for at once."""

    def __init__(self, latents):
        self.latents, self.shape, self.most, self.read = latents, latents.shape, 0, 0

    def __getitem__(self, rows):
        self.most, self.read = max(self.most, len(rows)), self.read + len(rows)
        return self.latents[rows]

    def __len__(self):
        return len(self.latents)


def test_the_best_linear_denoiser_reads_a_sample_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.2, 2, 16).reshape(1, 1, 4, 2, 2).repeat(1, 1, 1, 2, 2)

    def data(count):
        latents = torch.randn(count, 2, 4, 4, 4, generator=generator) * spread
        empty = PromptEmbeds(torch.zeros(0, 1, 1), torch.zeros(0, 1, dtype=torch.bool))
        return LatentDataset(
            names=[""] * count,
            latents=Counted(latents),
            captions=empty,
            first=torch.arange(count),
            count=torch.ones(count),
        )

    train, test = data(3000), data(500)
    whole = quality.wiener_losses(train, test)
    assert train.latents.most == quality.READ_AT_ONCE and train.latents.read == 3000
    monkeypatch.setattr(quality, "MAX_WINDOWS", 4000)
    monkeypatch.setattr(quality, "SAMPLED", 2000)
    train.latents.read = 0
    assert quality.wiener_losses(train, test) == pytest.approx(whole, rel=0.03) and train.latents.read == 2000


def windows_of_all(data, side, progress=None):
    """What the windows were before they were read in parts: the whole set, place by place, cut."""
    latents = data.latents[torch.arange(len(data))].flatten(0, 1)
    return functional.unfold(latents, side, stride=side).permute(2, 0, 1).flatten(0, 1)[: quality.MAX_WINDOWS]


def image_set(count, side, generator):
    empty = PromptEmbeds(torch.zeros(0, 1, 1), torch.zeros(0, 1, dtype=torch.bool))
    latents = torch.randn(count, 2, 16, side, side, generator=generator)
    first, views = torch.arange(count), torch.ones(count)
    return LatentDataset(names=[""] * count, latents=latents, captions=empty, first=first, count=views)


def test_windows_of_up_to_a_views_limit_are_those_of_the_whole_set():
    data = image_set(150, 12, torch.Generator().manual_seed(0))
    assert torch.equal(quality._sampled_windows(data, 6), windows_of_all(data, 6))


@pytest.mark.parametrize("most", [1000, 600, 200])  # of 1,200: all places of some, two of four, and a sample of images
def test_windows_that_are_cut_are_of_every_part_of_the_picture(most, monkeypatch):
    """Latents with a plain upper half read as the same ones upside down."""
    monkeypatch.setattr(quality, "MAX_WINDOWS", most)
    monkeypatch.setattr(quality, "SAMPLED", 100)
    data = image_set(150, 12, torch.Generator().manual_seed(0))
    data.latents[..., :6, :] *= 0.1
    upper = quality._sampled_windows(data, 6).square().mean(1) < 0.2
    assert len(upper) == most and upper.float().mean() == pytest.approx(0.5, abs=0.08)


def test_the_target_on_the_embedded_images_does_not_move(monkeypatch):
    images = load_images("embedded")
    splits = [images.split(held_out).subset(range(count)) for held_out, count in ((False, 192), (True, 48))]
    vae, encoder = load_vae("pca-f16c32"), load_text_encoder("wordllama")
    train, test = (build_dataset(vae, encoder, split, 96, mirror=split is splits[0]) for split in splits)
    losses = quality.wiener_losses(train, test)
    monkeypatch.setattr(quality, "_sampled_windows", windows_of_all)
    assert losses == quality.wiener_losses(train, test)
    assert losses == pytest.approx([29.70911, 3.992371, 2.015829, 1.482262, 1.148003], rel=1e-4)
