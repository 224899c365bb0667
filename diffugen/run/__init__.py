"""A run directory: its ledger and files, its rounds, and how a stage of a round is run once."""

from diffugen.run.rounds import OnProgress, Progress, Round, Run, silent, stage
from diffugen.run.store import RunStore

__all__ = ["OnProgress", "Progress", "Round", "Run", "RunStore", "silent", "stage"]
