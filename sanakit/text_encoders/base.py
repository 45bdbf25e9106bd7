"""What every text encoder is to sanakit: prompts to token embeddings and a mask.

Embeddings are (B, L, D) with L = spec.max_tokens, right-padded; the mask is (B, L), 1 = keep; padded positions
are zeroed, so nothing of them can leak. The null prompt is "" without instruction, as in Sana's training.
"""

import copy
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.hashing import config_facts, hash_module
from sanakit.registry import Registry
from sanakit.text_encoders.random_weights import redrawn
from sanakit.text_encoders.tokenizers import tokenizer_facts

TEXT_ENCODERS: Registry[type["TextEncoder"]] = Registry("text-encoders")


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

    def map(self, change: Callable[[Tensor], Tensor]) -> "PromptEmbeds":
        """Both tensors changed, as by a move to another device."""
        return PromptEmbeds(change(self.embeds), change(self.mask), self.truncated)


class TextEncoder(nn.Module):
    """Base class. A family file sets the record and implements `load`, `tiny` and `_encode`."""

    name: str = ""
    title: str = ""
    part: ClassVar[str] = "text_encoder"  # of a placement, whose precision it computes in
    spec: TextSpec
    policies: ClassVar[tuple[str, ...]] = (
        "max_tokens",
        "instruction",
        "lower_case",
    )  # of the spec, open to `?key=value`
    kept_null: PromptEmbeds | None = None  # the base's own, where its checkpoint brought one

    def __init__(self, model: nn.Module, spec: TextSpec) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        self.set_spec(spec)

    def set_spec(self, spec: TextSpec) -> None:
        """Read by another policy from now on; a null embedding that was kept is of the earlier one and is dropped.
        Raises SK0306 for a policy that the model cannot follow."""
        if spec != self.spec:
            self.kept_null = None
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
        """Token embeddings of prompts, on the CPU; `instruction=False` leaves the record's prefix out. Raises SK0307
        for a single text, or for what is no text."""
        embeddings = self(self.whole_prompts(prompts, instruction=instruction))
        return PromptEmbeds(embeddings.embeds.cpu(), embeddings.mask.cpu(), embeddings.truncated)

    def whole_prompts(self, prompts: list[str], *, instruction: bool = True) -> list[str]:
        """Prompts as the model reads them: lower case and prefix by the record. Raises SK0307."""
        require_prompts(prompts)
        if self.spec.lower_case:
            prompts = [prompt.lower().strip() for prompt in prompts]
        prefix = self.spec.instruction if instruction else ""
        return [prefix + prompt for prompt in prompts]

    def forward(self, prompts: list[str]) -> PromptEmbeds:
        """As `encode`, of prompts that are already whole, with gradients where the model has them. Raises SK0307."""
        require_prompts(prompts)
        expected = (len(prompts), self.spec.max_tokens, self.spec.embed_dim)
        if not prompts:  # tokenizers and models do not agree on what to do with none
            return PromptEmbeds(torch.zeros(expected), torch.zeros(expected[:2], dtype=torch.bool))
        embeds, mask, truncated = self._encode(prompts)
        if tuple(embeds.shape) != expected or tuple(mask.shape) != expected[:2]:
            raise SanakitError(
                "SK0301", f"embeddings {tuple(embeds.shape)}, mask {tuple(mask.shape)}; the record declares {expected}"
            )
        return PromptEmbeds(embeds.float() * mask[..., None], mask, truncated)

    def null(self) -> PromptEmbeds:
        """The unconditional embedding (1, L, D): the empty prompt, no instruction. Recomputed, never inherited from
        another encoder; a base's own encoder keeps the one that its core was trained with while it is read as then."""
        return self.encode([""], instruction=False) if self.kept_null is None else self.kept_null

    def offsets(self, prompts: list[str]) -> Tensor | None:
        """Character span [start, end) of every token in its prompt, (B, L, 2), special tokens (0, 0); None where the
        tokenizer cannot tell. Raises SK0307."""
        require_prompts(prompts)
        from sanakit.text_encoders.offsets import token_offsets

        return token_offsets(self, prompts)

    def with_random_weights(self, seed: int = 0) -> Self:
        """The same class, tokenizer and record on a model whose weights are drawn: the control of gates that ask
        whether an encoder says more than its architecture alone. This encoder stays as it is."""
        twin = copy.copy(self)
        twin._modules = dict(self._modules)  # a shallow copy shares the table of parts
        twin.model = redrawn(self.model, seed)
        twin.kept_null = None
        twin.name = f"{self.name or type(self).__name__} with random weights"
        return twin

    @property
    def kept_in(self) -> torch.dtype:
        """Precision in which embeddings are kept, of 16 bits: half, or bfloat16 where its range may not do."""
        return torch.float16

    @property
    def quantised(self) -> str:
        """How the weights were quantised, such as `bitsandbytes nf4`; empty where they were not."""
        return str(getattr(self.model, "quantised", ""))

    def fingerprint(self) -> str:
        """Hash of weights and configuration, tokenizer, reading policy, the class that reads and how the weights were
        quantised: the key of embedding caches."""
        reader = next(base.__qualname__ for base in type(self).__mro__ if "_encode" in vars(base))
        policy = json.dumps(asdict(self.spec), sort_keys=True)
        facts = [reader, policy, tokenizer_facts(getattr(self, "tokenizer", None))]
        facts += config_facts(self.model)
        return hash_module(self.model, *facts, *([self.quantised] if self.quantised else []))


def require_prompts(prompts: Sequence[str]) -> None:
    """Raises SK0307 where prompts are no sequence of texts, such as one text alone."""
    if isinstance(prompts, str):
        raise SanakitError("SK0307", f"prompts are one text, {prompts[:40]!r}, expected a list of texts")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise SanakitError("SK0307", f"prompt {number} is a {type(prompt).__name__}, expected a text")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise SanakitError(
                "SK0307",
                f"prompt {number} holds bytes that are no UTF-8: {prompt!r:.80}",
                cause="It comes from a shell, or a file, in another encoding.",
                fix="Give text in UTF-8.",
            )


def as_kept(embeds: Tensor, encoder: TextEncoder) -> Tensor:
    """Embeddings as they are kept, in the encoder's `kept_in`. Raises SK0301 where they do not fit."""
    kept = embeds.to(encoder.kept_in)
    if kept.isfinite().all():
        return kept
    name = encoder.name or "the text encoder"
    if not embeds.isfinite().all():
        raise SanakitError("SK0301", f"{name} gives embeddings that are not finite")
    raise SanakitError(
        "SK0301",
        f"{name} gives embeddings up to {embeds.abs().max():,.0f}; {kept.dtype}, in which they are kept, ends at "
        f"{torch.finfo(kept.dtype).max:,.0f}",
        fix="Read the last layer, whose values are normed, or `layer=mean`.",
    )
