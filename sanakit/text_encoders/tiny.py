"""A tokenizer of bytes for tiny twins: any text, no file, no network."""

from typing import Any

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def byte_tokenizer(before: str = "", after: str = "") -> Any:
    """One token a byte; before, after: special tokens put around a prompt. Pads left unless told otherwise,
    as many do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    backend = Tokenizer(models.BPE(words, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(), special_tokens=[(m, words[m]) for m in (before, after) if m]
        )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)
