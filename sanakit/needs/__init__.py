"""The dry run: what every stage of a swap will need of device, host and disk, told from configurations alone."""

from sanakit.needs.fit import Assumed, require_fit
from sanakit.needs.stages import needs_of

__all__ = ["Assumed", "needs_of", "require_fit"]
