"""Transformers models that give hidden states (decoders, encoders, the encoder of a pair), read by their TextSpec."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.text_encoders.architectures import NORMED_LAYERS, load_transformer
from sanakit.text_encoders.base import PromptEmbeds, TextEncoder
from sanakit.text_encoders.tiny import SPECIAL, byte_tokenizer
from sanakit.text_encoders.tokenizers import called, load_tokenizer, require_rows, rows_of, tokenizer_folder

DEFAULT_TOKENS = 64  # of a model named by folder; `?max_tokens=N` changes it


class TransformerEncoder(TextEncoder):
    """The generic component: `path:DIR` and `hub:owner/repo` of any class in `MODELS`."""

    policies = (*TextEncoder.policies, "select", "layer", "attend_padding")

    def __init__(self, model: nn.Module, tokenizer: Any, spec: TextSpec) -> None:
        super().__init__(model, spec)
        self.tokenizer = tokenizer

    def tokenize(self, prompts: list[str], **options: Any) -> tuple[Any, list[int]]:
        """A batch of the tokenizer's, padded right to one length, and the positions in it that the record keeps.

        prompts: all with their instruction, or all without (`_groups`). A prompt without a single token is given one of
        padding, so that attention over it is defined.
        """
        kept, total = self.spec.max_tokens, self._window(prompts[0])
        batch = called(
            self.tokenizer,
            prompts,
            padding="max_length",
            max_length=total,
            truncation=True,
            padding_side="right",
            return_tensors="pt",
            return_attention_mask=True,
            **options,
        )
        require_rows(batch["input_ids"], rows_of(self.model), self.tokenizer)
        batch["attention_mask"][:, 0] = 1
        return batch, list(range(kept)) if self.spec.select == "first" else [0, *range(total - kept + 1, total)]

    def _window(self, prompt: str) -> int:
        """Tokens of a prompt that the model reads: the instruction comes on top of those that are kept."""
        prefix, kept = self.spec.instruction, self.spec.max_tokens
        if self.spec.select == "first-last" and prefix and prompt.startswith(prefix):
            return kept + len(called(self.tokenizer, prefix)["input_ids"]) - 2
        return kept

    def _groups(self, prompts: list[str]) -> list[list[int]]:
        """Rows of the prompts that are read in one window each: a prompt is never read in the window of another, as a
        dropped (empty) one among prompts with an instruction would be."""
        rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(self._window(prompt), []).append(row)
        return list(rows.values())

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        (hidden,), mask = self._read(prompts, [self.spec.layer])
        tokens = called(self.tokenizer, prompts)["input_ids"]
        truncated = sum(len(ids) > self._window(prompt) for ids, prompt in zip(tokens, prompts, strict=True))
        return hidden, mask, truncated

    @torch.no_grad()
    def encode_layers(self, prompts: list[str], layers: Sequence[int | str]) -> list[PromptEmbeds]:
        """As `encode`, read at each of the layers, in one pass; truncated prompts are not counted."""
        if not prompts:
            return [self.encode(prompts) for _ in layers]
        hidden, mask = self._read(self.whole_prompts(prompts), layers)
        return [PromptEmbeds((h.float() * mask[..., None]).cpu(), mask.cpu()) for h in hidden]

    def _read(self, prompts: list[str], layers: Sequence[int | str]) -> tuple[list[Tensor], Tensor]:
        """Hidden states (B, L, D) of the layers at the kept positions, and the mask (B, L) bool."""
        groups = self._groups(prompts)
        if len(groups) == 1:
            return self._read_alike(prompts, layers)
        parts = [self._read_alike([prompts[row] for row in rows], layers) for rows in groups]
        order = torch.tensor([row for rows in groups for row in rows]).argsort()
        hidden = [torch.cat([part[0][i] for part in parts])[order.to(parts[0][1].device)] for i in range(len(layers))]
        return hidden, torch.cat([mask for _, mask in parts])[order.to(parts[0][1].device)]

    def _read_alike(self, prompts: list[str], layers: Sequence[int | str]) -> tuple[list[Tensor], Tensor]:
        """`_read` of prompts that are read in one window."""
        batch, keep = self.tokenize(prompts)
        ids, mask = (batch[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        seen = torch.ones_like(mask) if self.spec.attend_padding else mask
        inner = any(layer != "last" for layer in layers)
        output = self.model(input_ids=ids, attention_mask=seen, output_hidden_states=inner)
        return [self._hidden(output, layer)[:, keep] for layer in layers], mask[:, keep].bool()

    def _hidden(self, output: Any, layer: int | str) -> Tensor:
        """(B, T, D) of a layer. Raises SK0305 for a model that ends in a head, SK0306 for a layer that it lacks."""
        if getattr(output, "last_hidden_state", None) is None:
            raise SanakitError("SK0305", f"{type(self.model).__name__} gives {', '.join(output)}, no last_hidden_state")
        if layer == "last":
            return output.last_hidden_state
        states = output.hidden_states  # the embedding, then every layer's output
        if layer == "mean":
            return torch.stack([F.layer_norm(h.float(), h.shape[-1:]) for h in states[1:]]).mean(0)
        if not isinstance(layer, int) or not -len(states) <= layer < len(states):
            raise SanakitError(
                "SK0306", f"layer={layer}: {type(self.model).__name__} has hidden states 0 to {len(states) - 1}"
            )
        return states[layer]

    @classmethod
    def from_folder(cls, folder: Path, spec: TextSpec | None = None) -> Self:
        """A transformers folder. spec: by default plain prompts of 64 tokens and the last layer.

        Raises SK0106 (class), SK0112 (wants to run its own code), SK0107 (weights), SK0126 (tokenizer), or what
        `find_weights` raises.
        """
        model = load_transformer(folder)
        tokenizer = load_tokenizer(tokenizer_folder(folder), rows_of(model))
        width = width_of(model)
        spec = spec or plain_spec(model)
        if width != spec.embed_dim:
            found = f"{folder} is {width} wide, the record of {cls.name} declares {spec.embed_dim}"
            raise SanakitError("SK0301", found)
        return cls(model, tokenizer, spec)

    @property
    def kept_in(self) -> torch.dtype:
        """Inner layers of models that norm only their last can exceed half precision, as Gemma's do."""
        inner = isinstance(self.spec.layer, int) and self.model.config.model_type not in NORMED_LAYERS
        return torch.bfloat16 if inner else super().kept_in

    def set_spec(self, spec: TextSpec) -> None:
        limit = token_limit(self.model)
        if spec.max_tokens > limit:
            raise SanakitError("SK0306", f"max_tokens={spec.max_tokens}: the model has positions for {limit}")
        super().set_spec(spec)


class HubEncoder(TransformerEncoder):
    """A published encoder: a family file sets the record, nothing is fetched before `load`.

    hub: owner/repo[:subfolder]. model_class: the transformers class. published: its configuration where documented.
    small: what the tiny twin's configuration changes. marks: special tokens that its tokenizer puts around a prompt.
    """

    hub: ClassVar[str | None] = None
    revision: ClassVar[str | None] = None
    spec: TextSpec
    model_class: ClassVar[str]
    published: ClassVar[dict[str, Any]]
    small: ClassVar[dict[str, Any]]
    marks: ClassVar[tuple[str, str]] = ("", "")

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        import transformers

        model_class = getattr(transformers, cls.model_class)
        return model_class(model_class.config_class(**config))

    @classmethod
    def load(cls) -> Self:
        from sanakit.hub import fetch

        return cls.from_folder(fetch(cls.hub, cls.revision), cls.spec)

    @classmethod
    def tiny(cls) -> Self:
        model = cls.build({"vocab_size": 256 + len(SPECIAL), **special_ids(), **cls.small})
        return cls(model, byte_tokenizer(*cls.marks), replace(cls.spec, embed_dim=width_of(model)))


def plain_spec(model: Any) -> TextSpec:
    """How a model is read where nothing else is said: plain prompts of 64 tokens, the last layer."""
    padded = "siglip" in model.config.model_type  # trained on padding, arXiv 2303.15343
    tokens = min(DEFAULT_TOKENS, token_limit(model))
    return TextSpec(embed_dim=width_of(model), max_tokens=tokens, attend_padding=padded)


def special_ids() -> dict[str, int]:
    return {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos"))}


def width_of(model: Any) -> int:
    """Width of a model's hidden states; T5Gemma keeps its encoder's configuration inside."""
    config = model.config
    inner = getattr(config, "encoder", None)
    return int(config.hidden_size if inner is None else inner.hidden_size)


def depth_of(model: Any) -> int:
    """Number of layers, as the configuration of the part that reads text says."""
    inner = getattr(model.config, "encoder", None)
    return int((model.config if inner is None else inner).num_hidden_layers)


def token_limit(model: Any) -> int:
    """Tokens that a table of positions serves; relative and rotary positions set none that matters."""
    for name, module in model.named_modules():
        if name.endswith(("position_embedding", "position_embeddings")) and isinstance(module, nn.Embedding):
            padding = module.padding_idx  # RoBERTa and MPNet count from behind it
            return module.num_embeddings - (0 if padding is None else padding + 1)
    return 1 << 30
