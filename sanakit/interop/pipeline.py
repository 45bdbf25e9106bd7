"""The pipeline class of what SanaPipeline would render wrong: any VAE, any text encoder, Sana's own denoising loop.

A subclass of diffusers' SanaPipeline: prompts are encoded and latents are decoded by sanakit's components, the loop
in between is the parent's. Its folders name this class, so that DiffusionPipeline.from_pretrained fails on them instead
of decoding with the wrong ratio, scale or shift.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.sana.pipeline_output import SanaPipelineOutput
from torch import Tensor

from sanakit.core.dit import load_core
from sanakit.errors import SanakitError
from sanakit.folders import local_path
from sanakit.formats.pipeline_folder import flow_shift_of, pipeline_card
from sanakit.loading import load_base_encoder, load_vae
from sanakit.sampling import new_scheduler
from sanakit.text_encoders import TextEncoder
from sanakit.vaes import VAE


class SanakitPipeline(SanaPipeline):
    """`SanakitPipeline.from_pretrained(DIR)("red apple").images[0]`.

    Without further options a seed gives the image of `sanakit sample`: 24 Euler steps, guidance scale 3.
    """

    def __init__(
        self,
        text_encoder: TextEncoder,
        vae: VAE,
        transformer: SanaTransformer2DModel,
        scheduler: Any,
        image_size: int = 1024,
    ) -> None:
        DiffusionPipeline.__init__(self)  # the parent's own reads the ratio from a DC-AE's config
        self.register_modules(text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler)
        self.image_size = image_size
        self.vae_scale_factor = vae.spec.spatial_compression_ratio
        self.image_processor = PixArtImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, torch_dtype: torch.dtype = torch.float32, scheduler: str = "euler"
    ) -> Self:
        """A folder that `sanakit export` wrote, or a stock one. torch_dtype: of the transformer. scheduler: euler,
        dpm++ or unipc. Raises SK0104, SK0603, SK0107."""
        root = local_path(str(folder))
        card, core = pipeline_card(f"path:{root}", root), load_core(root / "transformer")
        return cls(
            text_encoder=load_base_encoder(card["text_encoder"], root / "transformer"),
            vae=load_vae(card["vae"]),
            transformer=core if torch_dtype == core.dtype else core.to(torch_dtype),
            scheduler=new_scheduler(scheduler, card["flow_shift"]),
            image_size=card["image_size"],
        )

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0

    def check_inputs(self, prompt: Any, height: int, width: int, *rest: Any, **named: Any) -> None:
        cell = self.vae_scale_factor * self.transformer.config.patch_size
        if height % cell or width % cell:
            raise SanakitError("SK0110", f"{height} x {width} px do not divide into tokens of {cell} px")
        super().check_inputs(prompt, 32, 32, *rest, **named)  # the parent asks for multiples of 32 whatever the VAE

    def encode_prompt(
        self,
        prompt: str | list[str],
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] = "",
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Embeddings (B N, L, D) and masks (B N, L) of prompts and negative prompts, N images of a prompt in a row."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        embedded = self.text_encoder.encode(prompts)

        def each(t: Any) -> Any:
            return t.repeat_interleave(num_images_per_prompt, 0).to(device)

        if not do_classifier_free_guidance:
            return each(embedded.embeds), each(embedded.mask), None, None
        if negative_prompt == "":
            null = self.text_encoder.null()
        else:
            texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
            null = self.text_encoder.encode(texts, instruction=False)
        if len(null) == 1:
            null = null[torch.zeros(len(prompts), dtype=torch.long)]
        return each(embedded.embeds), each(embedded.mask), each(null.embeds), each(null.mask)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        *,
        negative_prompt: str | list[str] = "",
        num_inference_steps: int = 24,
        guidance_scale: float = 3.0,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
    ) -> SanaPipelineOutput | tuple[Any]:
        """Images for prompts. height, width: pixels, image_size by default. latents: (B, C, h, w) of noise.

        output_type: "pil", "np", "pt" or "latent" (normalised latents). Raises SK0110 for a size that does not divide.
        """
        output = (
            super()
            .__call__(
                prompt,
                negative_prompt=negative_prompt,
                num_inference_steps=num_inference_steps,
                sigmas=self._sigmas(num_inference_steps),
                guidance_scale=guidance_scale,
                num_images_per_prompt=num_images_per_prompt,
                height=height or self.image_size,
                width=width or self.image_size,
                generator=generator,
                latents=latents,
                output_type="latent",
                use_resolution_binning=False,
                callback_on_step_end=callback_on_step_end,
            )
            .images
        )
        if output_type != "latent":
            output = self.image_processor.postprocess(self.vae.decode(output), output_type)
        return SanaPipelineOutput(images=output) if return_dict else (output,)

    def _sigmas(self, num_steps: int) -> list[float] | None:
        """Evenly spaced ones for Euler, whose own end above zero; None where a scheduler spaces its own."""
        if not isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            return None
        return torch.linspace(1, 0, num_steps + 1)[:-1].tolist()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and `--base path:DIR` read;
        stock where SanaPipeline renders the same."""
        from sanakit.interop.export import export_pipeline

        export_pipeline(
            Path(folder),
            core=self.transformer,
            vae=self.vae,
            text_encoder=self.text_encoder,
            image_size=self.image_size,
            flow_shift=flow_shift_of(dict(self.scheduler.config)),
        )
