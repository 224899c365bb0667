"""A review session in the FiftyOne App: `push` the queue, `open_app` on it, a `Takeover` of the decisions."""

from diffugen.review.app import open_app
from diffugen.review.pull import Takeover, pull
from diffugen.review.push import push

__all__ = ["Takeover", "open_app", "pull", "push"]
