"""Components and bases without their weights: geometry from config.json, or from the published configuration that is
recorded.

Models are built of fake tensors, so that Sana-1.6B with its text encoder takes no memory and nothing is downloaded but
configurations.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sanakit.contracts import LatentSpec, TextSpec
from sanakit.core.dit import saved_adapters
from sanakit.errors import SanakitError
from sanakit.files import read_config
from sanakit.folders import local_path
from sanakit.formats.pipeline_folder import is_sana_pipeline, read_index
from sanakit.hub import download_configs
from sanakit.loading import load_base, load_text_encoder, load_vae
from sanakit.needs.published import published_base
from sanakit.registry import Registry
from sanakit.text_encoders import TEXT_ENCODERS
from sanakit.text_encoders.architectures import MODELS
from sanakit.text_encoders.gemma import sana_spec
from sanakit.text_encoders.query import with_layer
from sanakit.text_encoders.transformer import DEFAULT_TOKENS, HubEncoder, width_of
from sanakit.training.live_bytes import LiveBytes, as_fake
from sanakit.vaes import VAES
from sanakit.vaes.diffusers_vae import ALLOWED_CLASSES, OWN_FORMATS, HubVAE, diffusers_spec, wrapper_of

CHARACTERS = 4  # of an instruction that are counted as one token, where no tokenizer was read


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a frozen part on a device: weights and what one image or prompt needs beyond them, in bytes; and its
    operations."""

    weights: int
    each: int
    flops: int


@dataclass(kw_only=True)
class VAEOutline:
    """A VAE of fake tensors. stored: bytes of its weights in the host's memory."""

    name: str
    spec: LatentSpec
    model: nn.Module
    mode: FakeTensorMode
    wrapper: Any  # run_encoder and run_decoder, or a loaded VAE
    stored: int

    def cost(self, size: int, dtype: torch.dtype, *, decode: bool = False) -> Cost:
        shape = self.spec.shape(size, size) if decode else (3, size, size)
        return _cost(self.model, self.mode, dtype, lambda: self._run(torch.empty(1, *shape, dtype=dtype), decode))

    def _run(self, given: Tensor, decode: bool) -> Any:
        wrapper = self.wrapper
        if inspect.isclass(wrapper):
            return wrapper.run_decoder(self.model, given) if decode else wrapper.run_encoder(self.model, given)  # type: ignore[attr-defined]
        return wrapper._decode(given) if decode else wrapper._encode(given)


@dataclass(kw_only=True)
class TextOutline:
    """A text encoder of fake tensors. stored: bytes of its weights in the host's memory. window: tokens that it reads
    of a prompt, its instruction included."""

    name: str
    spec: TextSpec
    model: nn.Module
    mode: FakeTensorMode
    stored: int

    @property
    def window(self) -> int:
        longer = self.spec.select == "first-last" and self.spec.instruction
        return self.spec.max_tokens + (len(self.spec.instruction) // CHARACTERS if longer else 0)

    def cost(self, dtype: torch.dtype) -> Cost:
        def read() -> Any:
            with self.mode:
                tokens = torch.zeros(1, self.window, dtype=torch.long)
                if isinstance(self.model, nn.Embedding):
                    return self.model(tokens)
                return self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))

        return _cost(self.model, self.mode, dtype, read)


@dataclass(frozen=True, kw_only=True)
class BaseOutline:
    """A base by its files of configuration. core: of SanaTransformer2DModel. recorded: it is the published
    configuration that sanakit records, nothing was read."""

    name: str
    core: dict[str, Any]
    adapters: tuple[str, ...]
    vae: str
    text_encoder: str
    image_size: int
    embedded: bool
    recorded: bool


def outline_base(name: str) -> BaseOutline:
    """Raises what `load_base` raises, SK0106 for a folder without config.json of its core, SK0902."""
    if name.startswith("hub:"):
        if published := published_base(name):
            return BaseOutline(name=name, adapters=(), embedded=False, recorded=True, **published)
        folder = download_configs(name.removeprefix("hub:"))
        base = load_base(f"path:{folder}")
    else:
        base = load_base(name)
    try:
        shapes = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SanakitError("SK0106", f"{base.folder / 'config.json'}: {error}") from error
    return BaseOutline(
        name=name,
        core={k: v for k, v in shapes.items() if not k.startswith("_")},
        adapters=saved_adapters(base.folder),
        vae=base.card["vae"],
        text_encoder=base.card["text_encoder"],
        image_size=base.card["image_size"],
        embedded=base.embedded,
        recorded=False,
    )


def outline_vae(name: str) -> VAEOutline:
    """By a registered name, `path:` or `hub:`; weights are read only where no configuration tells everything."""
    folder, mode = _folder(name), FakeTensorMode()
    wrapper, model = _registered(VAES, name), None
    if folder is not None and read_config(folder).get("_class_name") in set(ALLOWED_CLASSES) - set(OWN_FORMATS):
        wrapper, model = wrapper_of(folder), _of_config(folder, mode)
    elif wrapper is not None and issubclass(wrapper, HubVAE) and wrapper.published:
        model = _built(mode, lambda: wrapper.build(wrapper.published))
    if model is None:
        loaded = load_vae(name)
        stored = _stored(loaded.model)
        as_fake(loaded, mode)
        return VAEOutline(name=name, spec=loaded.spec, model=loaded.model, mode=mode, wrapper=loaded, stored=stored)
    with mode:
        spec = diffusers_spec(model, wrapper)
    return VAEOutline(name=name, spec=spec, model=model, mode=mode, wrapper=wrapper, stored=_stored(model))


def _of_config(folder: Path, mode: FakeTensorMode) -> nn.Module | None:
    """A diffusers VAE of fake tensors; None where its constructor reads numbers (Cosmos, RAE), which those have not."""
    import diffusers

    config = read_config(folder)
    kind = getattr(diffusers, str(config["_class_name"]))
    known = inspect.signature(kind.__init__).parameters  # a normalisation may be stated that the class lacks
    try:
        return _built(mode, lambda: kind(**{k: v for k, v in config.items() if k in known}))
    except (AssertionError, RuntimeError):  # as torch refuses it
        return None


def outline_encoder(name: str) -> TextOutline:
    """As `outline_vae`; of `?key=value` only `max_tokens` changes what is needed."""
    plain, _, query = with_layer(name, None).partition("?")
    folder, mode = _folder(plain), FakeTensorMode()
    kind = read_config(folder).get("model_type") if folder is not None else None
    entry = _registered(TEXT_ENCODERS, plain)
    if folder is not None and kind in MODELS and "." not in MODELS[kind]:
        import transformers

        model_class = getattr(transformers, MODELS[kind])
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
        model = _built(mode, lambda: model_class(config))
        spec = _spec_of(folder, model)
    elif entry is not None and issubclass(entry, HubEncoder) and entry.hub is not None:
        model, spec = _built(mode, lambda: entry.build(entry.published)), entry.spec
    else:
        loaded = load_text_encoder(with_layer(name, None))
        stored = _stored(loaded.model)
        as_fake(loaded.model, mode)
        return TextOutline(name=name, spec=loaded.spec, model=loaded.model, mode=mode, stored=stored)
    wanted = dict(part.split("=", 1) for part in query.split("&") if "=" in part).get("max_tokens")
    if wanted and wanted.isdecimal():
        spec = TextSpec(**{**vars(spec), "max_tokens": int(wanted)})
    return TextOutline(name=name, spec=spec, model=model, mode=mode, stored=_stored(model) // 2)  # published in bf16


def _spec_of(folder: Path, model: nn.Module) -> TextSpec:
    pipeline = folder.parent
    if folder.name == "text_encoder" and is_sana_pipeline(pipeline):
        stated = read_index(pipeline).get("sanakit")
        return TextSpec(**stated["text_encoder"]["spec"]) if stated else sana_spec(width_of(model))
    tokens = min(
        DEFAULT_TOKENS, int(getattr(model.config, "max_position_embeddings", DEFAULT_TOKENS))
    )  # as TransformerEncoder.from_folder
    return TextSpec(embed_dim=width_of(model), max_tokens=tokens)


def _folder(name: str) -> Path | None:
    """Where the configuration of a component lies; None for a registered name that says it in code."""
    scheme, _, rest = name.partition(":")
    if scheme == "hub":
        folder = download_configs(rest)
    elif scheme == "path":
        folder = local_path(rest)
    else:
        folder = getattr(_registered(VAES, name), "card_path", Path()).parent
    return folder if (folder / "config.json").is_file() and folder != Path() else None


def _registered(registry: Registry[Any], name: str) -> Any:
    return registry.get(name) if name in registry.entries() else None


def _built(mode: FakeTensorMode, make: Callable[[], nn.Module]) -> nn.Module:
    with mode, torch.random.fork_rng():
        return make().eval().requires_grad_(False)


def _stored(model: nn.Module) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _cost(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype, work: Callable[[], Any]) -> Cost:
    as_fake(model, mode, dtype)
    with mode, torch.no_grad(), LiveBytes(model) as live:
        weights = live.now
        work()
    return Cost(weights=weights, each=live.peak - weights, flops=live.flops)
