"""A swap in stages: plan, race, evidence, gates.

As a library the package is also the function `sanakit.swap(base, vae=..., data=...)` (sanakit/api/swapped.py): a module
may be called where its class says so, and the name is what people guess.
"""

import sys
from types import ModuleType
from typing import Any


class _Swap(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from sanakit import resolve

        return resolve("sanakit.api.swapped", "swap")(*args, **kwargs)


sys.modules[__name__].__class__ = _Swap
