"""What joins a component to the core."""

from sanakit.adapters.base import ADAPTERS, rebuild_core

__all__ = ["ADAPTERS", "rebuild_core"]
