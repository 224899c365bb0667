"""A review session in the FiftyOne App: `push` the queue, `open_app` on it, a `Takeover` of the decisions."""

from diffugen.review.app import open_app
from diffugen.review.push import push
from diffugen.review.takeover import Takeover

__all__ = ["Takeover", "open_app", "push"]
