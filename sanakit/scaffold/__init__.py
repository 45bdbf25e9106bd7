"""A new plugin as a small package: `sanakit new KIND NAME`. Its templates are text."""

from sanakit.scaffold.write import KINDS, write_plugin

__all__ = ["KINDS", "write_plugin"]
