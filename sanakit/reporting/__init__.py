"""A run folder in, one self-contained HTML file out. Imports no torch."""

from sanakit.reporting.report import report_path, write_report

__all__ = ["report_path", "write_report"]
