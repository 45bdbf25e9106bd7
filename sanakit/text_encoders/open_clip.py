"""Text towers of open_clip (arXiv 2212.07143) for weights that transformers has no class for:
every token's normed state.

A folder with open_clip_config.json is one, `path:DIR` or `hub:owner/repo`. The vision tower is dropped.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.files import read_config
from sanakit.text_encoders.base import TEXT_ENCODERS, TextEncoder
from sanakit.weights.find import OPEN_CLIP, find_weights, said
from sanakit.weights.load import as_expected, quiet, unwrapped


class OpenCLIP(TextEncoder):
    """model: an open_clip TextTransformer that returns tokens. Its tokenizer lower-cases, and pads with zeros."""

    policies = ("max_tokens", "instruction")
    hub: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    config_name: ClassVar[str]  # in open_clip's own list

    def __init__(self, model: nn.Module, tokenizer: Any, spec: TextSpec) -> None:
        super().__init__(model, spec)
        self.tokenizer = tokenizer

    def set_spec(self, spec: TextSpec) -> None:
        if spec.max_tokens > self.model.context_length:
            raise SanakitError(
                "SK0306", f"max_tokens={spec.max_tokens}: the model has positions for {self.model.context_length}"
            )
        super().set_spec(spec)

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        kept = self.spec.max_tokens
        ids = self.tokenizer(prompts, context_length=kept)  # (B, kept), the end token last when cut short
        ends = (ids == self.tokenizer.eot_token_id).int().argmax(1)
        mask = torch.arange(kept) <= ends[:, None]
        device = self.model.token_embedding.weight.device
        _, tokens = self.model(F.pad(ids, (0, self.model.context_length - kept)).to(device))
        truncated = sum(len(self.tokenizer.encode(prompt)) + 2 > kept for prompt in prompts)
        return tokens[:, :kept], mask.to(device), truncated

    @classmethod
    def from_folder(cls, folder: Path, spec: TextSpec | None = None) -> Self:
        """Raises SK0106 for a tower that is a transformers model, SK0107 for weights that do not fit, SK0126 for a
        tokenizer that does not, or what `find_weights` raises."""
        import open_clip

        text = read_config(folder, "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
        for key in ("hf_model_name", "hf_tokenizer_name"):
            if text.get(key):
                raise SanakitError(
                    "SK0106",
                    f"{folder} reads text with {text[key]} of transformers",
                    fix="Take the transformers version of this model, for example google/siglip2-base-patch16-224.",
                )
        files = find_weights(folder, OPEN_CLIP)
        rename = unwrapped if any(unwrapped(name) != name for name in files.shapes) else None
        try:
            with as_expected(files, OPEN_CLIP, rename) as place, quiet():
                model = open_clip.create_model(f"local-dir:{place}", force_custom_text=True).text
                tokenizer = open_clip.get_tokenizer(f"local-dir:{place}")
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise SanakitError("SK0107", f"{folder}: {said(error)}") from error
        rows = model.token_embedding.num_embeddings
        if tokenizer.vocab_size > rows:
            raise SanakitError(
                "SK0126", f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the embedding {rows:,} rows"
            )
        model.output_tokens = True
        measured = TextSpec(embed_dim=model.width, max_tokens=model.context_length)
        if spec is not None and spec.embed_dim != measured.embed_dim:
            raise SanakitError("SK0301", f"{folder} is {measured.embed_dim} wide, the record declares {spec.embed_dim}")
        return cls(model, tokenizer, spec or measured)

    @classmethod
    def load(cls) -> Self:
        from sanakit.hub import fetch

        return cls.from_folder(fetch(cls.hub, cls.revision), cls.spec)

    @classmethod
    def tiny(cls) -> Self:
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transformer import TextTransformer

        model = TextTransformer(width=16, heads=2, layers=2, output_tokens=True)
        return cls(model, SimpleTokenizer(), TextSpec(embed_dim=16, max_tokens=77))


@TEXT_ENCODERS.register("openclip-vit-h-14", title="OpenCLIP ViT-H/14 on LAION-2B, 1024-d", licence="MIT")
class OpenCLIPH(OpenCLIP):
    hub = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config_name = "ViT-H-14"
    spec = TextSpec(embed_dim=1024, max_tokens=77)


@TEXT_ENCODERS.register("openclip-vit-l-14-datacomp", title="OpenCLIP ViT-L/14 on DataComp-1B, 768-d", licence="MIT")
class OpenCLIPDataComp(OpenCLIP):
    hub = "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"
    config_name = "ViT-L-14"
    spec = TextSpec(embed_dim=768, max_tokens=77)
