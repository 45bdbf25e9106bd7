"""Tokenizers from folders: where they lie, and whether the model has an embedding for each of their tokens."""

import json
import threading
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sanakit.errors import SanakitError
from sanakit.files import refuse_pointer
from sanakit.folders import spellings
from sanakit.weights.find import said
from sanakit.weights.load import quiet

PLACEHOLDERS = (
    "image_token",
    "video_token",
    "audio_token",
)  # attributes: what stands for another modality's embeddings
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)

SAVE_TOKENIZER = (
    "Save it there: `tokenizer.save_pretrained(DIR)`, in a pipeline into the folder `tokenizer` beside the encoder."
)
WORD_START = "\u2581"  # SentencePiece's space
_CALLING = threading.Lock()


def called(tokenizer: Any, prompts: Any, **options: Any) -> Any:
    """What a transformers tokenizer makes of prompts. One call at a time: a fast tokenizer keeps padding and truncation
    of a call in itself, and calls of two threads would read each other's."""
    with _CALLING:
        return tokenizer(prompts, **options)


def tokenizer_folder(folder: Path) -> Path:
    """The folder itself, or in a pipeline `tokenizer` beside `text_encoder` (`tokenizer_2` beside `text_encoder_2`), by
    the name that was given or where its symbolic links lead."""
    for place in spellings(folder):
        beside = place.parent / place.name.replace("text_encoder", "tokenizer")
        if place.name.startswith("text_encoder") and beside.is_dir():
            return beside
    return folder


def load_tokenizer(folder: Path, rows: int | None = None) -> Any:
    """A transformers tokenizer. One without a padding token pads with its end, which the mask leaves out.

    rows: of the embedding that its tokens index. Raises SK0121 (a Git LFS pointer) or SK0126 (none that loads, no
    vocabulary, none to pad with, more tokens than rows).
    """
    from transformers import AutoTokenizer

    refuse_pointer(*(folder / name for name in TOKENIZER_FILES))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no narrower type than Exception
        raise SanakitError("SK0126", f"{folder}: no tokenizer that loads: {said(error)}", fix=SAVE_TOKENIZER) from error
    return checked_tokenizer(str(folder), tokenizer, rows)


def checked_tokenizer(label: str, tokenizer: Any, rows: int | None = None) -> Any:
    """A transformers tokenizer that reads words, pads, and has no token without a row; label: what errors call it.
    One without a padding token is given its end. Raises SK0126."""
    require_words(label, tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise SanakitError(
            "SK0126",
            f"{label}: the tokenizer has no token to pad with",
            fix="Set tokenizer.pad_token and save it again.",
        )
    if rows is not None:
        allowed = {str(getattr(tokenizer, name, None)) for name in PLACEHOLDERS}
        require_vocabulary(label, tokenizer.get_vocab().items(), rows, allowed)
    return tokenizer


def require_words(label: str, tokenizer: Any) -> None:
    """Raises SK0126 for a tokenizer of special tokens alone, which reads every prompt alike: transformers makes one
    where the folder has no vocabulary."""
    special = {str(token) for token in (*tokenizer.all_special_tokens, *tokenizer.added_tokens_decoder.values())}
    vocabulary = set(tokenizer.get_vocab())
    if vocabulary <= special | {WORD_START}:
        raise SanakitError(
            "SK0126",
            f"{label} holds no vocabulary of a tokenizer: it would have {len(vocabulary)} special tokens and no word",
            fix=SAVE_TOKENIZER,
        )


def require_vocabulary(
    label: str, vocabulary: Iterable[tuple[str, int]], rows: int, allowed: Set[str] = frozenset()
) -> None:
    """Raises SK0126 where a token has no row in the embedding, with both numbers. allowed: placeholders for other
    modalities, whose embeddings come from elsewhere (Gemma 3's text models have one row fewer than tokens)."""
    entries = list(vocabulary)
    beyond = sorted((number, token) for token, number in entries if number >= rows and token not in allowed)
    if beyond:
        number, token = beyond[0]
        raise SanakitError(
            "SK0126",
            f"{label}: the tokenizer has {len(entries):,} tokens, the embedding {rows:,} rows; {len(beyond)} tokens "
            f"have none, first {token!r} (number {number})",
        )


def require_rows(ids: Tensor, rows: int | None, tokenizer: Any) -> None:
    """Raises SK0126 where a prompt holds a token without a row, such as a placeholder for an image. ids: (B, T)."""
    if rows is not None and int(ids.max()) >= rows:
        number = int(ids.max())
        token = tokenizer.convert_ids_to_tokens(number)
        raise SanakitError("SK0126", f"a prompt holds {token!r} (number {number}), the embedding has {rows:,} rows")


def rows_of(model: nn.Module) -> int | None:
    """Rows of a transformers model's token embedding; None where it does not tell."""
    try:
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    weight = getattr(embedding, "weight", None)
    return None if weight is None else int(weight.shape[0])


def tokenizer_facts(tokenizer: Any) -> str:
    """A fast tokenizer's own record without the padding and truncation that its last call left in it."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        return type(tokenizer).__name__
    record = json.loads(backend.to_str())
    return json.dumps({k: v for k, v in record.items() if k not in ("padding", "truncation")}, sort_keys=True)
