"""Hypothesis runs the same examples on every machine, without a time limit."""

from hypothesis import settings

settings.register_profile("diffugen", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("diffugen")
