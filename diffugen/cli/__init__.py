"""The command line, a command a file; each body imports its step, so that ``--help`` starts at once."""

from diffugen.cli.app import main

__all__ = ["main"]
