"""The settings that tuning searches, as flat parameters: names, ranges, the way there and back, and what to
try when.

Knows which values are worth trying; not Optuna, nor what a setting does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffugen.config.labelling import METHODS, REFINEMENTS, TERMS, LabelSettings, ScoreWeights

Params = dict[str, Any]
"""From a parameter's name to its value: text or a number."""

Space = dict[str, tuple[str, ...] | tuple[float, float]]
"""From a parameter's name to its choices (text), or to its lowest and highest value."""

MAX_RADIUS_FRAC = 0.03
"""Larger discs make morphology slow; current settings beyond it stay within reach."""

FRACTIONS = (0.2, 0.8)
"""Thresholds to try, as a part of the way from a map's minimum to its maximum."""

DECIMALS = 4
"""What is beyond makes no difference to a label, and a configuration hard to read."""

TURN = 4
"""Trials on one group of parameters, then as many on the next, and so on."""

_PLAIN = ("method", "refine", "erode_frac", "dilate_frac", "accept")


def search_space(settings: LabelSettings) -> tuple[Space, ...]:
    """Return the parameters in groups that are searched by turns; each range contains the current value.

    How a map is cut; how maps are averaged; how masks are cleaned; how labels are scored and accepted.
    """
    fraction = _fraction(settings)
    cut: Space = {
        "method": METHODS,
        "refine": REFINEMENTS,
        "threshold": ("otsu", "fraction"),
        "fraction": (min(FRACTIONS[0], fraction), max(FRACTIONS[1], fraction)),
    }
    averaged: Space = dict.fromkeys(
        [*_parts("groups", _groups(settings)), *_parts("step_weights", _thirds(settings))], (0.0, 1.0)
    )
    cleaned: Space = {
        "erode_frac": (0.0, max(MAX_RADIUS_FRAC, settings.erode_frac)),
        "dilate_frac": (0.0, max(MAX_RADIUS_FRAC, settings.dilate_frac)),
    }
    scored: Space = dict.fromkeys(["accept", *(f"score.{term}" for term in TERMS)], (0.0, 1.0))
    return cut, averaged, cleaned, scored


def to_params(settings: LabelSettings, weights: ScoreWeights) -> Params:
    """Return settings as parameters; weights as parts of the largest of their kind, since only ratios
    count.
    """
    return {
        **{name: getattr(settings, name) for name in _PLAIN},
        "threshold": "otsu" if settings.threshold == "otsu" else "fraction",
        "fraction": _fraction(settings),
        **_parts("groups", _groups(settings)),
        **_parts("step_weights", _thirds(settings)),
        **_parts("score", dict(weights)),
    }


def fixed_params(number: int, start: Params, best: Params, spaces: Sequence[Space]) -> Params:
    """Return the parameters that a trial does not leave to the sampler.

    Trial 0 is the start. The next ones switch one choice each (another method, say): a choice is far from all
    others, so a sampler that has to find several right at once, with numbers that suit them, easily settles
    on the wrong ones. All others leave one group of parameters free, `TURN` trials at a time.

    Args:
        number: The trial's number.
        start: Parameters of the current settings.
        best: Parameters of the best trial so far; not looked at for trial 0.
        spaces: From `search_space`.
    """
    choices = {
        name: limits for space in spaces for name, limits in space.items() if isinstance(limits[0], str)
    }
    switches = [
        (name, choice) for name, limits in choices.items() for choice in limits if choice != start[name]
    ]
    if number == 0:
        return start
    if number <= len(switches):
        return {**best, **dict([switches[number - 1]])}
    free = spaces[(number - 1 - len(switches)) // TURN % len(spaces)]
    return {name: value for name, value in best.items() if name not in free}


def from_params(params: Params, settings: LabelSettings) -> tuple[LabelSettings, ScoreWeights]:
    """Return the label settings and score weights that parameters stand for.

    Args:
        params: A value for each parameter.
        settings: Gives all that is not searched.
    """
    found = {
        name: round(value, DECIMALS) if isinstance(value, float) else value for name, value in params.items()
    }
    changed: dict[str, Any] = {name: found[name] for name in _PLAIN}
    changed["threshold"] = "otsu" if found["threshold"] == "otsu" else found["fraction"]
    if _groups(settings):
        changed["groups"] = _together(found, "groups", _groups(settings))
    changed["step_weights"] = tuple(_together(found, "step_weights", _thirds(settings)).values())
    return settings.changed(**changed), ScoreWeights(
        **_together(found, "score", dict.fromkeys(TERMS, 1.0))
    )


def _fraction(settings: LabelSettings) -> float:
    return 0.5 if isinstance(settings.threshold, str) else float(settings.threshold)


def _groups(settings: LabelSettings) -> Mapping[str, float]:
    """The groups' weights, where there is a ratio to search."""
    return settings.groups if len(settings.groups) > 1 else {}


def _thirds(settings: LabelSettings) -> Mapping[str, float]:
    return {str(third): weight for third, weight in enumerate(settings.step_weights)}


def _parts(prefix: str, weights: Mapping[str, float]) -> Params:
    return {f"{prefix}.{name}": weight / max(weights.values()) for name, weight in weights.items()}


def _together(params: Params, prefix: str, weights: Mapping[str, float]) -> dict[str, float]:
    values = {name: params[f"{prefix}.{name}"] for name in weights}
    largest = max(values.values())
    return {name: round(value / largest, DECIMALS) if largest else 1.0 for name, value in values.items()}
