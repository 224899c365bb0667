"""The stages of a round, one a file; `loops/` holds their order.

A stage is a function of the round, its inputs (results of earlier stages, records) and its own section of the
configuration. It continues where an earlier call stopped and returns a record of `diffugen.run.results`,
which the ledger keeps: a stage whose result is kept is not run again.
"""

from diffugen.stages.compare import compare
from diffugen.stages.dataset import choose
from diffugen.stages.evaluate import evaluate, evaluate_base, evaluate_reference
from diffugen.stages.generate import generate
from diffugen.stages.label import label, newest_method
from diffugen.stages.preflight import preflight
from diffugen.stages.promote import promote
from diffugen.stages.relabel import relabel
from diffugen.stages.review import import_decisions, review
from diffugen.stages.sets import LabelledSets, open_sets
from diffugen.stages.sift import sift
from diffugen.stages.teach import teach
from diffugen.stages.thresholds import thresholds
from diffugen.stages.train import first_detector, train
from diffugen.stages.trips import import_annotations, send_queue
from diffugen.stages.tune import tune

__all__ = [
    "LabelledSets",
    "choose",
    "compare",
    "evaluate",
    "evaluate_base",
    "evaluate_reference",
    "first_detector",
    "generate",
    "import_annotations",
    "import_decisions",
    "label",
    "newest_method",
    "open_sets",
    "preflight",
    "promote",
    "relabel",
    "review",
    "send_queue",
    "sift",
    "teach",
    "thresholds",
    "train",
    "tune",
]
