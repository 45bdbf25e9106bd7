"""A run folder in, one self-contained HTML file out. Imports no torch."""

from sanakit.reporting.report import write_report

__all__ = ["write_report"]
