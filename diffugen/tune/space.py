"""The search spaces of tuning: settings as flat parameters, their ranges, and what to vary in which trial.

One space is that of label settings, the other that of score weights. Knows which values are worth trying; not
Optuna, nor what a setting does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffugen.config.labelling import METHODS, TERMS, LabelSettings, Refinement, ScoreWeights

Params = dict[str, Any]
"""Maps a parameter's name to its value, a str or a number."""

Limits = tuple[str, ...] | tuple[float, float]
"""The choices of a parameter, or its lowest and highest value."""

Space = dict[str, Limits]
"""Maps a parameter's name to its limits."""

REFINEMENTS: tuple[Refinement, ...] = ("none", "crf")
"""Refinements to try; a segmenter takes too long for a search, and may not be there."""

MAX_RADIUS_FRAC = 0.03
"""Highest radius to try, because large discs make morphology slow; a larger current radius raises it."""

FRACTIONS = (0.2, 0.8)
"""Lowest and highest threshold to try, as a fraction of the way from a map's minimum to its maximum."""

DECIMALS = 4
"""Further decimals make no difference to labels, and make a configuration hard to read."""

TRIALS_PER_GROUP = 4
"""Trials that vary one group of parameters before the next group takes its turn."""

_PLAIN = ("method", "refine", "erode_frac", "dilate_frac")

_COMPETING = ("rival_weight", "background_weight")


def score_space(terms: Sequence[str]) -> tuple[Space, ...]:
    """Return the weight of each of these terms of the score, all of them together."""
    return (dict.fromkeys(terms, (0.0, 1.0)),)


def label_space(settings: LabelSettings) -> tuple[Space, ...]:
    """Return the parameters of labels in groups that take turns; each range contains the current value.

    The groups decide how maps are thresholded, how they are averaged, how masks are cleaned, and, if phrases
    compete now, how much they take from each other. ``accept`` is not among them: a label that is dropped
    leaves its object in the image, where a detector learns it as background. Thresholds by class are kept or
    given up as a whole.
    """
    fraction = _fraction(settings)
    thresholded: Space = {
        "method": METHODS,
        "refine": REFINEMENTS if settings.refine in REFINEMENTS else (settings.refine,),
        "threshold": ("otsu", "fraction", *(["current"] if _is_by_class(settings) else [])),
        "fraction": (min(FRACTIONS[0], fraction), max(FRACTIONS[1], fraction)),
    }
    averaged: Space = dict.fromkeys(
        [*_ratios("groups.", _groups(settings)), *_ratios("step_weights.", _thirds(settings))], (0.0, 1.0)
    )
    cleaned: Space = {
        "erode_frac": (0.0, max(MAX_RADIUS_FRAC, settings.erode_frac)),
        "dilate_frac": (0.0, max(MAX_RADIUS_FRAC, settings.dilate_frac)),
    }
    if settings.method != "compete":
        return thresholded, averaged, cleaned
    competing: Space = dict.fromkeys(_COMPETING, (0.0, 1.0))
    return thresholded, averaged, cleaned, competing


def label_params(settings: LabelSettings) -> Params:
    """Return label settings as parameters.

    Weights are divided by the largest of their kind, since only their ratios matter.
    """
    return {
        **{name: getattr(settings, name) for name in _PLAIN},
        **({name: getattr(settings, name) for name in _COMPETING} if settings.method == "compete" else {}),
        "threshold": _kind_of_threshold(settings),
        "fraction": _fraction(settings),
        **_ratios("groups.", _groups(settings)),
        **_ratios("step_weights.", _thirds(settings)),
    }


def score_params(weights: ScoreWeights, terms: Sequence[str]) -> Params:
    """Return the weights of these terms of the score as parameters, the largest of them 1."""
    return _ratios("", {term: getattr(weights, term) for term in terms})


def fixed_params(number: int, start: Params, best: Params, spaces: Sequence[Space]) -> Params:
    """Return the parameters of a trial that are not left to the sampler.

    Trial 0 is the start. The following trials switch one choice each, such as the method: no choice is near
    another, so a sampler that has to get several right at once, together with numbers that suit them, easily
    converges on wrong ones. All later trials vary one group of parameters, `TRIALS_PER_GROUP` trials at a
    time.

    Args:
        number: The trial's number.
        start: Parameters of the current settings.
        best: Parameters of the best trial so far; ignored for trial 0.
        spaces: The groups of parameters, from `search_space`.
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
    free = spaces[(number - 1 - len(switches)) // TRIALS_PER_GROUP % len(spaces)]
    return {name: value for name, value in best.items() if name not in free}


def to_settings(params: Params, settings: LabelSettings) -> LabelSettings:
    """Return the label settings that parameters stand for.

    Args:
        params: A value for each parameter of ``label_space(settings)``.
        settings: Provides everything that is not searched.
    """
    limits = {name: limits for space in label_space(settings) for name, limits in space.items()}
    found = {name: _rounded(value, limits[name]) for name, value in params.items()}
    changed: dict[str, Any] = {name: found[name] for name in (*_PLAIN, *_COMPETING) if name in found}
    given = {"otsu": "otsu", "fraction": found["fraction"], "current": settings.threshold}
    changed["threshold"] = given[found["threshold"]]
    if _groups(settings):
        changed["groups"] = _weights(found, "groups.", _groups(settings))
    changed["step_weights"] = tuple(_weights(found, "step_weights.", _thirds(settings)).values())
    return settings.changed(**changed)


def to_weights(params: Params, weights: ScoreWeights) -> ScoreWeights:
    """Return the score weights that parameters stand for, the largest of them 1; equal ones if all are 0.

    Args:
        params: A weight for each term that is searched.
        weights: Provides everything that is not searched, on the scale of its largest weight.
    """
    kept = {term: value for term, value in score_params(weights, TERMS).items() if term not in params}
    return ScoreWeights(**kept, **_weights(params, "", params))


def _rounded(value: Any, limits: Limits) -> Any:
    if not isinstance(value, float):
        return value
    # Within the limits: a current radius of 0.19999 must not become 0.2, which the settings refuse.
    return min(max(round(value, DECIMALS), limits[0]), limits[1])


def _fraction(settings: LabelSettings) -> float:
    return settings.threshold if isinstance(settings.threshold, float) else 0.5


def _is_by_class(settings: LabelSettings) -> bool:
    return not isinstance(settings.threshold, float) and settings.threshold != "otsu"


def _kind_of_threshold(settings: LabelSettings) -> str:
    if _is_by_class(settings):
        return "current"
    return "fraction" if isinstance(settings.threshold, float) else "otsu"


def _groups(settings: LabelSettings) -> Mapping[str, float]:
    """Return the weights of the layer groups if there are several, or else nothing: one has no ratio."""
    return settings.groups if len(settings.groups) > 1 else {}


def _thirds(settings: LabelSettings) -> Mapping[str, float]:
    return {str(third): weight for third, weight in enumerate(settings.step_weights)}


def _ratios(prefix: str, weights: Mapping[str, float]) -> Params:
    return {f"{prefix}{name}": weight / max(weights.values()) for name, weight in weights.items()}


def _weights(params: Params, prefix: str, names: Iterable[str]) -> dict[str, float]:
    """Return the weights of these names, the largest of them 1; all 1 if all parameters are 0."""
    values = {name: params[f"{prefix}{name}"] for name in names}
    largest = max(values.values())
    return {name: round(value / largest, DECIMALS) if largest else 1.0 for name, value in values.items()}
