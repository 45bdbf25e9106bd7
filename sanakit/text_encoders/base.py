"""What every text encoder is to sanakit: prompts to token embeddings and a mask.

Embeddings are (B, L, D) with L = spec.max_tokens, right-padded; the mask is (B, L), 1 = keep; padded positions
are zeroed, so nothing of them can leak. The null prompt is "" without instruction, as in Sana's training.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError, did_you_mean
from sanakit.hashing import hash_module
from sanakit.registry import Registry

TEXT_ENCODERS: Registry[type["TextEncoder"]] = Registry("text-encoders", "sanakit.text_encoders")


@dataclass(frozen=True)
class PromptEmbeds:
    """embeds: (B, L, D) float32, padded positions zero. mask: (B, L) bool. truncated: prompts cut short."""

    embeds: Tensor
    mask: Tensor
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index: Tensor | slice) -> "PromptEmbeds":
        return PromptEmbeds(self.embeds[index], self.mask[index])


class TextEncoder(nn.Module):
    """Base class. A family file sets the record and implements `load`, `tiny` and `_encode`."""

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    kept_null: PromptEmbeds | None = None  # the base's own, where its checkpoint brought one

    def __init__(self, model: nn.Module, spec: TextSpec) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.spec = spec

    @classmethod
    @abstractmethod
    def load(cls) -> Self:
        """The pretrained component. Raises SanakitError when it is not to be had."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """A small, randomly initialised twin that runs on a CPU in milliseconds."""

    @abstractmethod
    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        """Right-padded embeddings (B, L, D), mask (B, L) bool, number of truncated prompts."""

    @torch.no_grad()
    def encode(self, prompts: list[str], *, instruction: bool = True) -> PromptEmbeds:
        """Token embeddings of prompts; `instruction=False` leaves the record's prefix out."""
        prefix = self.spec.instruction if instruction else ""
        return self([prefix + prompt for prompt in prompts])

    def forward(self, prompts: list[str]) -> PromptEmbeds:
        """As `encode`, of prompts that are already whole, with gradients where the model has them."""
        embeds, mask, truncated = self._encode(prompts)
        expected = (len(prompts), self.spec.max_tokens, self.spec.embed_dim)
        if tuple(embeds.shape) != expected or tuple(mask.shape) != expected[:2]:
            raise SanakitError(
                "SK0301", f"embeddings {tuple(embeds.shape)}, mask {tuple(mask.shape)}; the record declares {expected}"
            )
        return PromptEmbeds(embeds.float() * mask[..., None], mask, truncated)

    def null(self) -> PromptEmbeds:
        """The unconditional embedding (1, L, D): the empty prompt, no instruction. Recomputed, never inherited from
        another encoder; a base's own encoder keeps the one that its core was trained with."""
        return self.encode([""], instruction=False) if self.kept_null is None else self.kept_null

    def fingerprint(self) -> str:
        spec = self.spec
        return hash_module(self.model, type(self).__name__, str(spec.max_tokens), spec.instruction)


def load_text_encoder(name: str) -> TextEncoder:
    """A registered name, `path:DIR` or `hub:owner/repo[@revision][:subfolder]`."""
    scheme, _, rest = name.partition(":")
    if scheme in ("path", "hub"):
        from sanakit.text_encoders.encoder_only import EncoderOnly

        if scheme == "hub":
            from sanakit.interop.hub import download

            folder = download(rest)
        else:
            folder = Path(rest).expanduser()
        if not folder.is_dir():
            raise SanakitError("SK0106", f"{folder} is not a folder{did_you_mean(name, TEXT_ENCODERS.names())}")
        if (folder.parent / "model_index.json").is_file():
            from sanakit.interop.folder import load_pipeline_encoder

            return load_pipeline_encoder(folder.parent)
        return EncoderOnly.from_folder(folder)
    return TEXT_ENCODERS.get(name).load()
