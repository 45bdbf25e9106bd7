"""Faults of a text encoder by itself."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_world import WORDS, World, evaluated_swap, evaluated_text, fault
from torch import Tensor

from sanakit.contracts import GateResult, TextSpec
from sanakit.loading import load_text_encoder
from sanakit.text_encoders import TextEncoder


class BrokenText(TextEncoder):
    """A sound encoder with its embeddings and mask changed on the way out."""

    def __init__(
        self,
        sound: TextEncoder,
        change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda e, m: (e, m),
        spec: TextSpec | None = None,
    ) -> None:
        super().__init__(sound.model, spec or sound.spec)
        self.sound, self.change = sound, change

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        self.sound.spec = replace(self.sound.spec, max_tokens=self.spec.max_tokens)
        embeds, mask, truncated = self.sound._encode(prompts)
        return *self.change(embeds, mask), truncated


@fault(
    "tokens padded left, mask right",
    threads="diffusers 8673",
    gate="component/padding-side",
    code="SK0324",
    stage="component",
)
def padding_side(world: World) -> list[GateResult]:
    sound = world.encoder()

    def left(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        shift = (~mask).sum(1).tolist()
        return torch.stack([e.roll(n, 0) for e, n in zip(embeds, shift, strict=True)]), mask

    return evaluated_text(world, BrokenText(sound, left))


class NoMask(TextEncoder):
    def __init__(self, sound: Any) -> None:
        super().__init__(sound.model, sound.spec)
        self.tokenizer = sound.tokenizer

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        batch = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.spec.max_tokens,
            padding_side="right",
            return_tensors="pt",
        )
        embeds = self.model(input_ids=batch["input_ids"]).last_hidden_state
        return embeds, batch["attention_mask"].bool(), 0


@fault(
    "the model never sees the mask",
    threads="flux 507; CogVideo 686",
    gate="component/padding",
    code="SK0303",
    stage="component",
)
def mask_unseen(world: World) -> list[GateResult]:
    return evaluated_text(world, NoMask(world.encoder()))


@fault(
    "the mask keeps every token", threads="SimpleTuner 1726", gate="component/mask", code="SK0323", stage="component"
)
def mask_full(world: World) -> list[GateResult]:
    return evaluated_text(world, BrokenText(world.encoder(), lambda e, m: (e, torch.ones_like(m))))


@fault("prompts truncated", threads="diffusion-pipe 497", gate="component/truncation", code="SK0304", stage="component")
def truncated(world: World) -> list[GateResult]:
    generator = np.random.default_rng(0)
    return evaluated_text(world, world.encoder(), [" ".join(generator.permutation(WORDS)) for _ in range(32)])


class Instructed(TextEncoder):
    """Drops what stands before the last sentence: a prefix that is cut off before the model reads it."""

    def __init__(self, sound: TextEncoder, instruction: str) -> None:
        super().__init__(sound.model, replace(sound.spec, instruction=instruction))
        self.sound = sound

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        self.sound.spec = replace(self.spec, instruction="")
        return self.sound._encode([prompt.removeprefix(self.spec.instruction) for prompt in prompts])


@fault("instruction prefix missing", threads="Sana 265", gate="component/instruction", code="SK0325", stage="component")
def prefix_missing(world: World) -> list[GateResult]:
    return evaluated_text(world, Instructed(world.encoder(), "describe in detail: "))


@fault(
    "null embedding of the old encoder",
    threads="Sana 265, 216; diffusers 7920; FastVideo 1752",
    gate="component/null",
    code="SK0326",
    stage="component",
)
def old_null(world: World) -> list[GateResult]:
    encoder = world.encoder("wordllama")
    old = encoder.encode(["an older encoder's idea of nothing"])
    encoder.kept_null = old
    return evaluated_text(world, encoder)


@fault(
    "logits of a CausalLM taken for hidden states",
    threads="diffusers 10489",
    gate="component/hidden-states",
    code="SK0305",
    stage="component",
)
def logits(world: World) -> list[GateResult]:
    """The first output of a model with its language-modelling head on."""
    sound: Any = world.encoder()
    head = sound.model.embeddings.word_embeddings.weight
    spec = replace(sound.spec, embed_dim=len(head))
    return evaluated_text(world, BrokenText(sound, lambda e, m: (e @ head.T, m), spec), world.prompts[:16])


@fault(
    "pooled vector in place of tokens",
    threads="diffusers pipeline_sana.py 275",
    gate="component/tokens-differ",
    code="SK0327",
    stage="component",
)
def pooled(world: World) -> list[GateResult]:
    def repeat(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = mask[..., None].float()
        mean = (embeds * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
        nudge = torch.arange(embeds.shape[1])[None, :, None] * 1e-4
        return mean.expand_as(embeds) + nudge * embeds, mask

    return evaluated_text(world, BrokenText(world.encoder(), repeat))


@fault("the same embedding for every prompt", gate="component/prompts-differ", code="SK0302", stage="component")
def constant(world: World) -> list[GateResult]:
    sound = world.encoder()
    fixed = sound._encode(["a fixed prompt of several words and more words than that"])[0]
    return evaluated_text(
        world, BrokenText(sound, lambda e, m: (fixed[:, : e.shape[1]] + 1e-3 * e, m[:1].expand_as(m)))
    )


class Mute(TextEncoder):
    """One embedding and one mask for all prompts, and noise that tells them apart but says nothing."""

    def __init__(self, sound: TextEncoder, noise: float) -> None:
        super().__init__(sound.model, sound.spec)
        self.noise = noise
        self.fixed, self.mask, _ = sound._encode(["a fixed prompt of several words and more words than that"])

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        rows = []
        for prompt in prompts:
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
            rows.append(torch.randn(self.fixed.shape[1:], generator=torch.Generator().manual_seed(seed)))
        mask, length = self.mask.expand(len(prompts), -1), self.spec.max_tokens
        embeds = (self.fixed + self.noise * self.fixed.std() * torch.stack(rows)) * mask[..., None]
        return embeds[:, :length], mask[:, :length], 0


@fault(
    "the same embedding for every prompt but for small noise",
    gate="component/prompts-differ",
    code="SK0302",
    stage="component",
)
def mute(world: World) -> list[GateResult]:
    return evaluated_swap(world, Mute(world.encoder(), 0.1))


@fault(
    "the same embedding for every prompt but for much noise",
    gate="component/meaning",
    code="SK0329",
    stage="component",
)
def loud(world: World) -> list[GateResult]:
    return evaluated_swap(world, Mute(world.encoder(), 1.0))


class FirstToken(TextEncoder):
    """Hands on the begin mark and the first token behind it."""

    def __init__(self, sound: Any) -> None:
        super().__init__(sound.model, sound.spec)
        self.sound = sound

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        self.sound.spec = self.spec
        embeds, mask, truncated = self.sound._encode(prompts)
        first = mask & (torch.arange(mask.shape[1]) < 2)
        return embeds * first[..., None], first, truncated


@fault("only the first token is read", gate="component/words-read", code="SK0328", stage="component")
def first_token(world: World) -> list[GateResult]:
    return evaluated_swap(world, FirstToken(world.encoder("wordllama")))


@fault("weights drawn, not trained", gate="component/meaning", code="SK0329", stage="component")
def random_weights(world: World) -> list[GateResult]:
    """A character-level BERT, initialised and saved, as one loads a folder whose weights were never trained."""
    return evaluated_swap(world, load_text_encoder(f"path:{random_bert(world)}"))


def random_bert(world: World) -> Path:
    """A folder with a randomly initialised character-level BERT and its tokenizer."""
    from transformers import BertConfig, BertModel

    from sanakit.text_encoders.tiny import SPECIAL, byte_tokenizer

    folder = world.folder / "random-bert"
    if not folder.is_dir():
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            BertModel(BertConfig(vocab_size=256 + len(SPECIAL), **sizes)).save_pretrained(folder)
        byte_tokenizer("<bos>", "<eos>").save_pretrained(folder)
    return folder


@fault(
    "vocabulary permuted: the tokenizer's numbers name other words",
    gate="component/meaning",
    code="SK0329",
    stage="component",
)
def permuted_vocabulary(world: World) -> list[GateResult]:
    encoder: Any = world.encoder("wordllama")
    table = encoder.model.weight
    with torch.no_grad():
        table.copy_(table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))])
    return evaluated_swap(world, encoder)


@fault(
    "encoder overflows to NaN",
    threads="diffusers 9844",
    gate="component/finite-embeddings",
    code="SK0301",
    stage="component",
)
def text_nan(world: World) -> list[GateResult]:
    def overflowing(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return (embeds * 1e5).half().float(), mask

    return evaluated_text(world, BrokenText(world.encoder(), overflowing))


@fault(
    "NaNs hidden as dropped captions",
    threads="mosaicml/diffusion drop_nans",
    gate="component/prompts-kept",
    code="SK0322",
    stage="component",
)
def hidden_nan(world: World) -> list[GateResult]:
    def hide(embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        bad = mask.sum(1) > 5
        return torch.where(bad[:, None, None], torch.zeros(()), embeds), mask

    return evaluated_text(world, BrokenText(world.encoder(), hide))


@fault("dropout left on", gate="component/repeatable-embeddings", code="SK0321", stage="component")
def dropout(world: World) -> list[GateResult]:
    encoder = world.encoder()
    encoder.model.train()
    return evaluated_text(world, encoder)
