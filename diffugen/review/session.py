"""A review session in the FiftyOne App: `push` the queue, `open_app` on it, `pull` the decisions."""

from diffugen.review.app import open_app
from diffugen.review.pull import pull
from diffugen.review.push import push

__all__ = ["open_app", "pull", "push"]
