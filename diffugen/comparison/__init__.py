"""Compare two label sets of one image: match by mask IoU, rank the disagreements, and measure quality.

`match` pairs instances, `compare` and `rank` find and order the disagreements, `average_precision`,
`label_quality` and `reliability` measure against ground truth. Nothing here knows images, files or where
labels come from.
"""

from diffugen.comparison.acquisition import rank
from diffugen.comparison.disagreement import Comparison, compare
from diffugen.comparison.matching import Match, match
from diffugen.comparison.metrics import average_precision, label_quality, reliability

__all__ = [
    "Comparison",
    "Match",
    "average_precision",
    "compare",
    "label_quality",
    "match",
    "rank",
    "reliability",
]
