"""The report of a run: one page, and the same as Markdown."""

from diffugen.report.write import write_report

__all__ = ["write_report"]
