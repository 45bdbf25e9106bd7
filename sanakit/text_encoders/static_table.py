"""Static token tables: no context, one vector a token (WordLlama, arXiv 2405.00732 for the idea's family)."""

import importlib.util
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.text_encoders.base import TEXT_ENCODERS, TextEncoder
from sanakit.text_encoders.tokenizers import require_vocabulary

WORLD_TOKENS = 24  # reads 99% of the embedded captions whole


class StaticTable(TextEncoder):
    def __init__(self, table: nn.Embedding, tokenizer: Tokenizer, spec: TextSpec) -> None:
        super().__init__(table, spec)
        self.tokenizer = tokenizer
        require_vocabulary(type(self).__name__, tokenizer.get_vocab().items(), table.num_embeddings)

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        ids = torch.zeros(len(prompts), self.spec.max_tokens, dtype=torch.long)
        mask = torch.zeros(len(prompts), self.spec.max_tokens, dtype=torch.bool)
        truncated = 0
        for row, encoding in enumerate(self.tokenizer.encode_batch(prompts)):
            tokens = encoding.ids[: self.spec.max_tokens] or [0]  # nothing to attend to is not defined
            truncated += len(encoding.ids) > self.spec.max_tokens
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = True
        device = self.model.weight.device
        return self.model(ids.to(device)), mask.to(device), truncated


@TEXT_ENCODERS.register("wordllama", title="WordLlama static token table, 256-d", licence="MIT", embedded=True)
class WordLlama(StaticTable):
    """Llama-2 token embeddings distilled to 256 dimensions; read from the package's files, which it loads offline."""

    spec = TextSpec(embed_dim=256, max_tokens=WORLD_TOKENS)

    @classmethod
    def load(cls) -> Self:
        package = importlib.util.find_spec("wordllama")
        if package is None or package.origin is None:
            raise SanakitError("SK0901", "wordllama needs the package wordllama")
        root = Path(package.origin).parent
        weights = load_file(root / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].float()
        tokenizer = Tokenizer.from_file(str(root / "tokenizers" / "l2_supercat_tokenizer_config.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(nn.Embedding.from_pretrained(weights), tokenizer, cls.spec)

    @classmethod
    def tiny(cls) -> Self:
        from tokenizers import models, pre_tokenizers

        words = {word: i for i, word in enumerate(["<s>", *"abcdefghijklmnopqrstuvwxyz"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<s>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        return cls(nn.Embedding(len(words), 8), tokenizer, TextSpec(embed_dim=8, max_tokens=WORLD_TOKENS))
