"""The report of a run: one page, and the same as Markdown."""
