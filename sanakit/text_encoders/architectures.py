"""Transformers models that read text, by `model_type` of their config.json, and how a folder of one is loaded."""

from pathlib import Path
from typing import Any

from torch import nn

from sanakit.errors import SanakitError
from sanakit.files import read_config
from sanakit.weights.find import TRANSFORMERS
from sanakit.weights.load import load_model
from sanakit.weights.quantised import accepted_quantisation, dequantised

UNUSED = ("pooler.", "head.", "text_model.head.")  # parts that no token embedding passes

# model_type of config.json -> the class that ends in hidden states; a tail names the part that reads text
MODELS = {
    "albert": "AlbertModel",
    "bert": "BertModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "deberta-v2": "DebertaV2Model",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "gemma": "GemmaModel",
    "gemma2": "Gemma2Model",
    "gemma3": "Gemma3Model.language_model",
    "gemma3_text": "Gemma3TextModel",
    "gemma3n": "Gemma3nModel.language_model",
    "gemma3n_text": "Gemma3nTextModel",
    "gemma4": "Gemma4Model.language_model",
    "gemma4_text": "Gemma4TextModel",
    "granite": "GraniteModel",
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "mistral3": "Mistral3Model.language_model",
    "modernbert": "ModernBertModel",
    "mpnet": "MPNetModel",
    "mt5": "MT5EncoderModel",
    "olmo2": "Olmo2Model",
    "phi3": "Phi3Model",
    "qwen2": "Qwen2Model",
    "qwen2_5_vl": "Qwen2_5_VLModel.language_model",
    "qwen2_5_vl_text": "Qwen2_5_VLTextModel",
    "qwen3": "Qwen3Model",
    "qwen3_5": "Qwen3_5Model.language_model",
    "qwen3_5_text": "Qwen3_5TextModel",
    "qwen3_vl": "Qwen3VLModel.language_model",
    "qwen3_vl_text": "Qwen3VLTextModel",
    "roberta": "RobertaModel",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
    "smollm3": "SmolLM3Model",
    "t5": "T5EncoderModel",
    "t5gemma": "T5GemmaEncoderModel",
    "t5gemma2": "T5Gemma2Model.encoder.text_model",
    "t5gemma2_text": "T5Gemma2TextEncoder",
    "umt5": "UMT5EncoderModel",
    "xlm-roberta": "XLMRobertaModel",
}

# Those whose every layer ends in a norm (BERT's kind), or that were made for half precision (CLIP's): every layer of
# theirs fits into it. The others' hidden states grow from layer to layer and are normed after the last one only.
NORMED_LAYERS = {
    *("albert", "bert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta"),
    *("clip", "clip_text_model", "siglip", "siglip_text_model"),
}


def class_of(name: str) -> Any:
    """A class of transformers, one that the package itself does not name too."""
    import transformers

    if name == "T5Gemma2TextEncoder":
        from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2TextEncoder

        return T5Gemma2TextEncoder
    return getattr(transformers, name)


def load_transformer(folder: Path) -> nn.Module:
    """The model without its head, in the precision that it was saved in; whatever head the folder names is left out.
    Weights that bitsandbytes quantised become the numbers that they stand for, and `model.quantised` says so.

    Raises SK0106 (class), SK0112 (wants to run its own code), SK0107 (weights), SK0901 (bitsandbytes is missing), or
    what `find_weights` raises.
    """
    import transformers

    config = read_config(folder)
    kind = config.get("model_type")
    if kind not in MODELS:
        if "auto_map" in config:
            raise SanakitError("SK0112", f"{folder} names {config['auto_map']} for its {kind}")
        named = kind or config.get("_class_name") or "folder without model_type"
        raise SanakitError("SK0106", f"{folder} is a {named}, expected one of {', '.join(MODELS)}")
    label = accepted_quantisation(folder, config)
    name, _, part = MODELS[kind].partition(".")

    def read(place: Path) -> tuple[Any, dict[str, Any]]:
        options: dict[str, Any] = {"ignore_mismatched_sizes": True}  # they are in the report, with both shapes
        if kind == "t5gemma":  # its encoder alone asks for a configuration that says so
            options["config"] = transformers.T5GemmaConfig.from_pretrained(place, is_encoder_decoder=False)
        if label:
            options["device_map"] = {"": "cpu"}  # else the first GPU
        return class_of(name).from_pretrained(
            place, local_files_only=True, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )

    model = load_model(folder, TRANSFORMERS, read, unused=UNUSED, strict=False, quantised=bool(label))
    model = dequantised(folder, label, model) if label else model
    inner: nn.Module = model.get_submodule(part) if part else model
    inner.quantised = label  # type: ignore[assignment]
    return inner
