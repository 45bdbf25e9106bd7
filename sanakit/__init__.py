"""sanakit: swap the text encoder or the VAE of a Sana-family model, and know what happens.

`import sanakit as sk` imports no torch. What `__all__` names is imported when it is first asked for (PEP 562); the
how-to is docs/library.md.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sanakit.api.drift import compare
    from sanakit.api.evaluation import evaluate
    from sanakit.api.load import load_base, load_images, load_text_encoder, load_vae
    from sanakit.api.monitor import DriftMonitor
    from sanakit.api.names import list_bases, list_datasets, list_strategies, list_text_encoders, list_vaes
    from sanakit.api.plan import plan
    from sanakit.api.quality import relative_error
    from sanakit.api.race import race
    from sanakit.api.swapped import swap
    from sanakit.api.validation import validate
    from sanakit.contracts import LatentStats
    from sanakit.errors import SanakitError

__version__ = "0.1.0"

__all__ = [
    "DriftMonitor",
    "LatentStats",
    "SanakitError",
    "__version__",
    "compare",
    "evaluate",
    "list_bases",
    "list_datasets",
    "list_strategies",
    "list_text_encoders",
    "list_vaes",
    "load_base",
    "load_images",
    "load_text_encoder",
    "load_vae",
    "plan",
    "race",
    "relative_error",
    "swap",
    "validate",
]

MODULES = {  # public name -> where it is defined; the block for type checkers above says the same
    "DriftMonitor": "sanakit.api.monitor",
    "LatentStats": "sanakit.contracts",
    "SanakitError": "sanakit.errors",
    "compare": "sanakit.api.drift",
    "evaluate": "sanakit.api.evaluation",
    "list_bases": "sanakit.api.names",
    "list_datasets": "sanakit.api.names",
    "list_strategies": "sanakit.api.names",
    "list_text_encoders": "sanakit.api.names",
    "list_vaes": "sanakit.api.names",
    "load_base": "sanakit.api.load",
    "load_images": "sanakit.api.load",
    "load_text_encoder": "sanakit.api.load",
    "load_vae": "sanakit.api.load",
    "plan": "sanakit.api.plan",
    "race": "sanakit.api.race",
    "relative_error": "sanakit.api.quality",
    "swap": "sanakit.api.swapped",  # reached by calling the package of the same name
    "validate": "sanakit.api.validation",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'sanakit' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    value = resolve(MODULES[name], name) if name != "swap" else importlib.import_module("sanakit.swap")
    globals()[name] = value
    return value


def resolve(module: str, name: str) -> Any:
    """What a module of sanakit defines under a name; the module is imported for it."""
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
