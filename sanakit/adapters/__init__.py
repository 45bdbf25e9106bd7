"""What joins a component to the core."""

from sanakit.adapters.base import ADAPTERS, Adapter, adapters_of, attach, fresh_core, has_modules, rebuild_core

__all__ = ["ADAPTERS", "Adapter", "adapters_of", "attach", "fresh_core", "has_modules", "rebuild_core"]
