"""Search for better label settings and score weights, and decide whether to adopt them. The home of Optuna.

`tune` runs the search against `Evidence`, labels that are taken as correct, and returns an `Outcome`. Nothing
here knows runs, rounds, or where the evidence comes from.
"""

from diffugen.tune.evidence import Evidence
from diffugen.tune.study import SMALLEST_EVIDENCE, Change, Outcome, tune

__all__ = ["SMALLEST_EVIDENCE", "Change", "Evidence", "Outcome", "tune"]
