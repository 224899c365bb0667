"""Turn templates and attribute values into the prompts and tasks of a run.

`make_prompts` combines templates with values, `child_prompts` does so for images that start from other
images, and `coverage` and `pair_coverage` count what the prompts cover. Nothing here knows images or models.
"""

from diffugen.prompts.children import child_prompts
from diffugen.prompts.coverage import PairCoverage, coverage, pair_coverage
from diffugen.prompts.make import make_prompts
from diffugen.prompts.phrases import find_phrases

__all__ = ["PairCoverage", "child_prompts", "coverage", "find_phrases", "make_prompts", "pair_coverage"]
