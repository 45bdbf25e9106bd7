"""Gemma-2 as SanaPipeline reads it (diffusers, pipelines/sana/pipeline_sana.py; Sana, arXiv 2410.10629, 3.1).

Prompts are lower-cased and stripped, the instruction is put before them, the decoder's last hidden state is padded
right to the instruction's tokens + 298, and token 0 with the last 299 are kept: the instruction is read, then dropped.
The null prompt has no instruction and is padded to 300.
"""

import inspect
from typing import Any

from diffusers import SanaPipeline
from torch import Tensor, nn

from sanakit.contracts import TextSpec
from sanakit.text_encoders.base import PromptEmbeds, TextEncoder

MAX_TOKENS = 300
INSTRUCTION = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


class SanaTextEncoder(TextEncoder):
    """The text encoder of a SanaPipeline folder; works with any transformers model whose first output is hidden states."""

    def __init__(self, model: nn.Module, tokenizer: Any, spec: TextSpec) -> None:
        super().__init__(model, spec)
        self.tokenizer = tokenizer

    def encode(self, prompts: list[str], *, instruction: bool = True) -> PromptEmbeds:
        return super().encode([prompt.lower().strip() for prompt in prompts], instruction=instruction)

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        prefix, length = self.spec.instruction, self.spec.max_tokens
        instructed = bool(prefix) and all(prompt.startswith(prefix) for prompt in prompts)
        total = len(self.tokenizer.encode(prefix)) + length - 2 if instructed else length
        lengths = [len(ids) for ids in self.tokenizer(prompts)["input_ids"]]
        batch = self.tokenizer(
            prompts, padding="max_length", max_length=total, truncation=True, padding_side="right", return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        select = [0, *range(1 - length, 0)]
        return hidden[:, select], batch["attention_mask"][:, select].bool(), sum(n > total for n in lengths)
