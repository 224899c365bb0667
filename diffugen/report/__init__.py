"""The report of a run, as one HTML page and as Markdown.

`write_report` reads a run and writes both; nothing here generates, labels, or decides the order of work.
"""

from diffugen.report.write import write_report

__all__ = ["write_report"]
