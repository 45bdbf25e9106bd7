# ruff: noqa: I001  the order of the imports is the order of the catalogue
"""The fault catalogue as data: small real systems, each broken in exactly one way that has cost people GPU-days, and
clean systems beside them. Used by tests/test_fault_catalogue.py and experiments/faults/fault_catalogue.py.

A fault is a function of the `World` that either returns the results of gates or runs into the error that refuses it.
"""

import vae_faults  # noqa: F401  it adds its faults
import text_faults  # noqa: F401  it adds its faults
import data_faults  # noqa: F401  it adds its faults
import loading_faults  # noqa: F401  it adds its faults
import system_faults  # noqa: F401  it adds its faults
import resume_faults  # noqa: F401  it adds its faults
from clean_systems import clean_systems
from fault_world import FAULTS, SIZE, Fault, World

__all__ = ["FAULTS", "SIZE", "Fault", "World", "clean_systems"]
