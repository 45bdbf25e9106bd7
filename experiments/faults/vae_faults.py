"""Faults of a VAE by itself."""

from collections.abc import Callable
from dataclasses import replace

import torch
from fault_world import World, evaluated_vae, fault
from torch import Tensor, nn

from sanakit.checks import run_gates
from sanakit.checks.measure_vae import vae_evidence
from sanakit.contracts import GateResult, LatentSpec, LatentStats
from sanakit.vaes import VAE


class Broken(VAE):
    """A sound VAE with its encoder's input, its decoder's output, or both, changed on the way."""

    def __init__(
        self,
        sound: VAE,
        *,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda x: x,
        raw: Callable[[Tensor], Tensor] = lambda x: x,
        stats: LatentStats | None = None,
        spec: LatentSpec | None = None,
    ) -> None:
        super().__init__(sound.model, spec or sound.spec, stats or sound.stats)
        self.sound, self.before, self.after, self.raw = sound, before, after, raw

    def _encode(self, images: Tensor) -> Tensor:
        return self.raw(self.sound._encode(self.before(images)))

    def _decode(self, raw_latents: Tensor) -> Tensor:
        return self.after(self.sound._decode(raw_latents))


def scaled(world: World, name: str, factor: float) -> list[GateResult]:
    vae = world.vae(name)
    vae.set_stats(LatentStats.from_scaling(factor))
    return evaluated_vae(world, vae)


@fault(
    "scaling factor missing",
    threads="diffusers 8887, 6753",
    gate="component/scale-high",
    code="SK0203",
    stage="component",
)
def scale_missing(world: World) -> list[GateResult]:
    return scaled(world, "pca-f16c16", 1.0)


@fault(
    "scaling factor inverted (1/s)",
    threads="diffusers 6923, 5166",
    gate="component/scale-high",
    code="SK0203",
    stage="component",
)
def scale_inverted(world: World) -> list[GateResult]:
    std = float(world.vae("pca-f8c4").latents_std.mean())
    return scaled(world, "pca-f8c4", std)


@fault(
    "scaling factor of another VAE",
    threads="SimpleTuner 1560, Open-Sora 838",
    gate="component/scale-low",
    code="SK0203",
    stage="component",
)
def scale_of_another(world: World) -> list[GateResult]:
    return scaled(world, "dc-f16c16", 0.13025)  # SDXL's


@fault("shift missing", threads="diffusers 8887", gate="component/shift", code="SK0209", stage="component")
def shift_missing(world: World) -> list[GateResult]:
    sound = world.vae()
    far = 2 * sound.latents_std
    vae = Broken(sound, raw=lambda z: z + far)
    vae._decode = lambda raw: sound._decode(raw - far)  # type: ignore[method-assign]
    return evaluated_vae(world, vae)


@fault(
    "latents decoded with the scale alone, the shift dropped",
    threads="diffusers pipeline_sana.py 961; Open-Sora 838",
    gate="component/normalisation",
    code="SK0215",
    stage="component",
)
def shift_dropped(world: World) -> list[GateResult]:
    vae = world.vae("pca-f32c64")
    vae.set_stats(replace(vae.stats, mean=(0.5,) * 64))
    vae.denormalize = lambda latents: latents * vae.latents_std  # type: ignore[method-assign]
    return evaluated_vae(world, vae)


@fault(
    "input range [0, 1] into a VAE of [-1, 1]",
    threads="diffusion-pipe 545",
    gate="component/input-range",
    code="SK0210",
    stage="component",
)
def range_halved(world: World) -> list[GateResult]:
    return evaluated_vae(world, Broken(world.vae(), before=lambda x: x / 2 + 0.5))


@fault(
    "input range [-1, 1] into a VAE of [0, 1]",
    threads="diffusion-pipe 545",
    gate="component/input-range",
    code="SK0210",
    stage="component",
)
def range_doubled(world: World) -> list[GateResult]:
    return evaluated_vae(world, Broken(world.vae(), before=lambda x: 2 * x - 1))


@fault(
    "channel order BGR", threads="diffusion-pipe 545", gate="component/channel-order", code="SK0211", stage="component"
)
def channel_order(world: World) -> list[GateResult]:
    return evaluated_vae(world, Broken(world.vae(), before=lambda x: x.flip(1)))


@fault("height and width exchanged", gate="component/orientation", code="SK0212", stage="component")
def transposed(world: World) -> list[GateResult]:
    return evaluated_vae(world, Broken(world.vae(), before=lambda x: x.mT))


@fault(
    "tiled decoding without blending",
    threads="diffusers 7310",
    gate="component/seams",
    code="SK0213",
    stage="component",
)
def tiling(world: World) -> list[GateResult]:
    """Each half is decoded alone: padding and normalisation see their own tile only."""
    vae = Broken(world.vae("kl-f8c4"))

    def splits(raw):
        return raw.split(raw.shape[3] // 2, 3)

    vae._decode = lambda raw: torch.cat([vae.sound._decode(half) for half in splits(raw)], 3)  # type: ignore[method-assign]
    return evaluated_vae(world, vae)


class HalfSum(nn.Module):
    """Linear attention's sum over tokens, accumulated in half precision: it overflows with the number of tokens."""

    def forward(self, x: Tensor) -> Tensor:
        keys = (x.flatten(2).abs() * 16).half()
        total = keys.cumsum(-1, dtype=torch.float16)[..., -1].float()
        return x + 0 * total[..., None, None]


@fault(
    "half precision overflows at the training resolution only",
    threads="diffusers 9844, 7310, 3209; sd-scripts 952; Sana 65",
    gate="component/finite-latents",
    code="SK0204",
    stage="component",
)
def overflow(world: World) -> list[GateResult]:
    vae = Broken(world.vae("pca-f8c4"), before=HalfSum())
    small = vae_evidence(vae, nn.functional.avg_pool2d(world.images, 3))
    assert not small["nonfinite_latents"], "sound at 32 px"
    return evaluated_vae(world, vae)


@fault("latent channels collapsed", threads="DC-Gen", gate="component/collapse", code="SK0214", stage="component")
def collapse(world: World) -> list[GateResult]:
    noise = torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(0))

    def one(z: Tensor) -> Tensor:
        return z[:, :1] + 0.05 * z.std() * noise.expand_as(z)

    vae = Broken(world.vae(), raw=one)
    std = one(world.vae()._encode(world.images)).std().item()
    vae.set_stats(LatentStats(std=(std,)))
    vae._decode = lambda raw: vae.sound._decode(vae.sound._encode(world.images)[: len(raw)])  # type: ignore[method-assign]
    return run_gates("component", vae_evidence(vae, world.images[:16]))


@fault("a latent channel is dead", gate="component/dead-channels", code="SK0205", stage="component")
def dead(world: World) -> list[GateResult]:
    keep = torch.ones(1, 16, 1, 1)
    keep[:, 11] = 0
    return evaluated_vae(world, Broken(world.vae(), raw=lambda z: z * keep))


@fault(
    "decoder of another VAE of the same shape",
    threads="PixArt-sigma 56",
    gate="component/reconstruction",
    code="SK0201",
    stage="component",
)
def other_decoder(world: World) -> list[GateResult]:
    other = world.vae("dc-f16c32")
    vae = Broken(world.vae("pca-f16c32"))
    scale = other.latents_std.mean() / world.vae("pca-f16c32").latents_std
    vae._decode = lambda raw: other._decode(raw * scale)  # type: ignore[method-assign]
    return evaluated_vae(world, vae)


@fault(
    "geometry declared wrongly",
    threads="Sana vae.scale_factor",
    gate="component/geometry",
    code="SK0202",
    stage="component",
)
def geometry(world: World) -> list[GateResult]:
    return evaluated_vae(world, Broken(world.vae(), spec=LatentSpec(latent_channels=16, spatial_compression_ratio=8)))


@fault("posterior sampled instead of its mode", gate="component/repeatable-latents", code="SK0216", stage="component")
def sampled(world: World) -> list[GateResult]:
    return evaluated_vae(world, Broken(world.vae(), raw=lambda z: z + 0.1 * z.std() * torch.randn_like(z)))
