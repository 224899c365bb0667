"""Tune label settings and score weights with an Optuna study, against labels that are taken as correct.

The only home of Optuna. Knows the study and its file. `diffugen.tune.space` explains what is searched,
`diffugen.tune.judge` the objective, and `diffugen.tune.folds` when the outcome is adopted.

Trial 0 is the current settings; the next trials switch one choice each, such as the method. Then TPE
(Bergstra et al. 2011) varies the best settings so far in one group of parameters at a time, by turns: how
heat maps are thresholded, averaged and cleaned, and how labels are scored. In all sixteen dimensions at once,
a few dozen trials find less, and take longer: with groups, new score weights need no new labels, and new
thresholds and radii no new averages.

Only finished trials are written, each in one transaction, and each gets a newly seeded sampler: a study that
was killed continues where it stopped, and ends as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import HEAT_TERMS, LabelSettings, ScoreWeights
from diffugen.errors import DiffugenError, StoreError, first_line
from diffugen.labels.segmenter import Segmenter
from diffugen.labels.witness import Witness
from diffugen.records import HeatMaps, content_id
from diffugen.run.executors import Executor
from diffugen.run.rounds import OnProgress, unseen
from diffugen.tune.evidence import Evidence, spread
from diffugen.tune.folds import Choice, choose
from diffugen.tune.judge import Judge
from diffugen.tune.space import (
    DECIMALS,
    REFINEMENTS,
    Params,
    Space,
    fixed_params,
    label_params,
    label_space,
    score_params,
    score_space,
    to_settings,
    to_weights,
)

SMALLEST_EVIDENCE, FEWEST_FAMILIES = 12, 2
"""Fewest images, and families among them, that say anything about other images."""

KEPT_FRAC = 0.25
"""Settings that label fewer than this fraction of the images labelled now lose 1: they leave hardly any."""

_NOT_SEARCHED = "kept, because labels.refine is sam, with which a search takes too long"

SEARCH_VERSION = 4
"""Part of a study's name; increment it if a change to the code means that old studies cannot continue."""


@dataclass(frozen=True)
class Change:
    """What a search changed, on average over the images of the evidence; None where nothing was tried.

    Attributes:
        before: The value of what was given.
        after: The value, on held-out evidence, of choosing what was adopted; the same as ``before`` if
            nothing was.
    """

    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of tuning.

    Attributes:
        settings: Label settings to use from now on: the given ones unless better ones were adopted.
        weights: Score weights to use from now on; the given ones unless better ones were adopted.
        adopted: Whether better settings or weights were adopted.
        reason: What was adopted and why, or why not.
        worth: Of the labels; see `diffugen.tune.judge`.
        miscalibration: Of the scores of the labels that ``settings`` make; None, as without any study, where
            the evidence contradicts even the best labels.
        images: Number of images of the evidence that were used.
        trials: Number of trials of the searches, including what was given.
    """

    settings: LabelSettings
    weights: ScoreWeights
    adopted: bool
    reason: str
    worth: Change = Change()
    miscalibration: Change = Change()
    images: int = 0
    trials: int = 0


@dataclass(frozen=True)
class _Search:
    """One of the two searches.

    Attributes:
        kind: What it searches for.
        spaces: Groups of parameters that take turns.
        start: Parameters of what is in use.
        judge: Returns the value of parameters in each image, float64 (N,), and the number of images with an
            accepted label; what is in use for None.
        banned: Returns the parameters that are 0 in all trials but the first.
    """

    kind: str
    spaces: Sequence[Space]
    start: Params
    judge: Callable[[Params | None], tuple[NDArray[np.float64], int]]
    banned: Callable[[], Collection[str]] = tuple


def tune(
    evidence: Sequence[Evidence],
    heat_maps: Callable[[str], HeatMaps],
    image: Callable[[str], NDArray[np.uint8]],
    settings: LabelSettings,
    weights: ScoreWeights,
    *,
    storage: Path,
    witness: Callable[[str], Witness | None] = lambda image_id: None,
    segmenter: Segmenter | None = None,
    terms: Sequence[str] = HEAT_TERMS,
    trials: int = 60,
    images: int = 300,
    folds: int = 4,
    seed: int = 0,
    executor: Executor | None = None,
    notify: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress = unseen,
) -> Outcome:
    """Search for label settings and score weights whose labels fit the evidence better.

    The search covers ``method``, ``rival_weight``, ``threshold``, ``refine``, ``erode_frac``,
    ``dilate_frac``, the weights in ``groups`` and ``step_weights``, ``accept``, and all score weights. Since
    only ratios of weights matter, the largest weight of each kind comes back as 1. A score term that the
    evidence contradicts, because it is the lower the better the label is, gets no weight in any trial but
    the first. ``refine: sam`` is not tried; where it is in use, only score weights are searched, because each
    trial of label settings would need the segmenter for every image.

    Args:
        evidence: Labels that are taken as correct, each image once.
        heat_maps: Returns an image's heat maps; called for the images in use, and more than once only if they
            exceed `diffugen.tune.matcher.CACHE_BYTES` together.
        image: Returns an image's pixels, uint8 (H, W, 3); called in the same way.
        settings: The current label settings.
        weights: The current score weights.
        storage: SQLite file of the study, created if needed; several studies can share it. The study's name
            contains a hash of evidence, settings, folds and seed, so a study is only ever continued with what
            it was started with. More ``trials`` continue it.
        witness: Returns what a detector found in an image, or None; see `diffugen.labels.witness`.
        terms: The score terms that labels from these heat maps have; `diffugen.config.labelling.TERMS` where
            a decoder drew them.
        segmenter: Outlines objects; required if ``settings.refine`` is ``"sam"``.
        trials: Number of trials in all, including the current settings.
        images: Maximum number of images of the evidence to use: those that count most, spread over families.
        folds: Number of parts of the evidence for cross-validation; fewer if there are fewer families.
        seed: Seed of images, folds and search: the same arguments give the same result, interrupted or not.
        executor: Where the images of a trial are labelled; None for this process. The result is the same.
        notify: Called with what the user should know, such as that a worker is gone.
        on_progress: Called with finished trials and all trials.

    Returns:
        The settings and weights to use from now on, and what is known about them.

    Raises:
        StoreError: The storage is corrupt, belongs to another program, or cannot be written.
        ConfigError: ``settings.groups`` does not match the heat maps.
        DiffugenError: An argument is out of range, an image occurs twice in the evidence or differs from its
            evidence in size, or Optuna is not installed.

    Example:
        >>> found = tune(evidence, store.heat_maps, store.image, *now, storage=file)  # doctest: +SKIP
        >>> found.adopted, found.worth.before, found.worth.after  # doctest: +SKIP
        (True, 0.113, 0.171)
    """
    _check(trials=(trials, 0), images=(images, 1), folds=(folds, 2))
    chosen = list(islice(spread(evidence, seed), images))
    families = [one.family for one in chosen]
    reason = _too_little(len(chosen), len(set(families)), trials)
    if reason:
        return Outcome(settings, weights, False, reason, images=len(chosen))
    _require_optuna()
    judge = Judge(chosen, heat_maps, image, witness, segmenter, terms, executor, notify)
    fixed = settings.refine not in REFINEMENTS
    label_trials = 1 if fixed else trials
    total = label_trials + trials

    def best_of(
        search: _Search, name: str, trials: int, before: int, worthless: float = -inf
    ) -> tuple[Params, Choice, float]:
        """Return the best trial's parameters, whether to adopt them, and the value of what is in use."""
        with _journal(storage, f"{search.kind}-{name}") as journal:
            found = _run(
                journal, search, judge.weights, trials, seed, lambda done: on_progress(before + done, total)
            )
        values = np.array([trial.user_attrs["values"] for trial in found]) * judge.weights
        choice = choose(values, families, folds, seed, worthless)
        return found[choice.best].params, choice, float(values[0].mean())

    with _silent():
        name = _identity(chosen, settings, weights, terms, folds, seed)
        search = _label_search(judge, settings, weights)
        params, labels, worth = best_of(search, name, label_trials, 0, worthless=0.0)
        settings = to_settings(params, settings) if labels.adopted else settings
        found = Outcome(
            settings=settings,
            weights=weights,
            adopted=labels.adopted,
            reason=f"label settings: {_NOT_SEARCHED if fixed else labels.reason}",
            worth=Change(worth, labels.held_out if labels.adopted else worth),
            images=len(chosen),
            trials=label_trials,
        )
        if labels.held_out <= 0:
            return found  # such evidence is as likely to be wrong about scores
        name = _identity(chosen, settings, weights, terms, folds, seed)
        search = _score_search(judge, settings, weights)
        params, scores, value = best_of(search, name, trials, label_trials)
    return replace(
        found,
        weights=to_weights(params, weights) if scores.adopted else weights,
        adopted=labels.adopted or scores.adopted,
        reason=f"{found.reason}; score weights: {scores.reason}",
        miscalibration=Change(-value, -(scores.held_out if scores.adopted else value)),
        trials=total,
    )


def _label_search(judge: Judge, settings: LabelSettings, weights: ScoreWeights) -> _Search:
    """Return the search for label settings whose labels are worth more."""

    def value(params: Params | None) -> tuple[NDArray[np.float64], int]:
        tried = judge.judge(to_settings(params, settings) if params else settings, weights)
        return tried.worth, tried.labelled

    return _Search("labels", label_space(settings), label_params(settings), value)


def _score_search(judge: Judge, settings: LabelSettings, weights: ScoreWeights) -> _Search:
    """Return the search for score weights that tell better how good a label is."""

    def value(params: Params | None) -> tuple[NDArray[np.float64], int]:
        tried = judge.judge(settings, to_weights(params, weights) if params else weights)
        return -tried.miscalibration, tried.labelled

    space, start = score_space(judge.terms), score_params(weights, judge.terms)
    return _Search("scores", space, start, value, lambda: judge.contradicted(settings))


def _check(**values: tuple[int, int]) -> None:
    mistakes = [
        f"{name} is {value!r}; expected an integer >= {least}"
        for name, (value, least) in values.items()
        if not isinstance(value, int) or value < least
    ]
    if mistakes:
        raise DiffugenError("tuning cannot start: " + "; ".join(mistakes))


def _too_little(images: int, families: int, trials: int) -> str | None:
    if trials < 2:
        return f"tune.trials is {trials}: no settings were tried besides the current ones"
    if images < SMALLEST_EVIDENCE or families < FEWEST_FAMILIES:
        return (
            f"too little evidence: {images} images from {families} prompts or photos; "
            f"tuning needs at least {SMALLEST_EVIDENCE} images from {FEWEST_FAMILIES}"
        )
    return None


def _require_optuna() -> None:
    try:
        import_module("optuna")
    except ImportError as error:
        raise DiffugenError(
            f"tuning needs Optuna ({error}). Install it with `pip install 'diffugen[tune]'`, or set "
            "tune.trials to 0"
        ) from error


def _identity(
    evidence: Sequence[Evidence],
    settings: LabelSettings,
    weights: ScoreWeights,
    terms: Sequence[str],
    folds: int,
    seed: int,
) -> str:
    """Return a hash of everything that decides the trials of a study, except their number."""
    labels = [
        [
            one.image_id,
            one.family,
            one.weight,
            one.instances.class_names,
            [rle["counts"] for rle in one.instances.rles],
        ]
        for one in evidence
    ]
    searched = settings.hashed, weights.model_dump(include=set(terms))
    return content_id(SEARCH_VERSION, labels, *searched, folds, seed)


def _run(
    journal: Any,
    search: _Search,
    image_weights: NDArray[np.float64],
    trials: int,
    seed: int,
    on_trial: Callable[[int], None],
) -> list[Any]:
    """Run the trials that the journal lacks; return all of them, as Optuna's finished trials."""
    import optuna

    banned: dict[str, float] | None = None  # found when the first trial that needs it begins
    distributions = {name: _distribution(limits) for space in search.spaces for name, limits in space.items()}
    # The study itself lives in memory. The journal gets finished trials only, so nothing half-done is left.
    study = optuna.create_study(direction="maximize")
    study.add_trials(journal.get_trials(deepcopy=False)[:trials])
    on_trial(len(study.trials))
    for number in range(len(study.trials), trials):
        best = study.best_trial.params if number else search.start
        fixed = fixed_params(number, search.start, best, search.spaces)
        if banned is None and number:
            banned = dict.fromkeys(search.banned(), 0.0)
        study.enqueue_trial({**fixed, **(banned or {})})
        # A new sampler each time: what it draws depends on the trials so far and the seed, not on when this
        # process started.
        study.sampler = optuna.samplers.TPESampler(seed=int(content_id(seed, number), 16) % 2**32)
        trial = study.ask(distributions)
        found, labelled = search.judge(trial.params if number else None)
        least = KEPT_FRAC * (study.trials[0].user_attrs["labelled"] if number else 0)
        values = np.round(found - (labelled < least), DECIMALS).tolist()
        trial.set_user_attr("values", values)
        trial.set_user_attr("labelled", labelled)
        journal.add_trial(study.tell(trial, float(np.mean(values * image_weights))))
        on_trial(number + 1)
    return study.get_trials(deepcopy=False)


def _distribution(limits: tuple[str, ...] | tuple[float, float]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return CategoricalDistribution(limits) if isinstance(limits[0], str) else FloatDistribution(*limits)


@contextmanager
def _journal(storage: Path, name: str) -> Iterator[Any]:
    """Open the study of this name in a SQLite file; create either if it does not exist."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    with ExitStack() as undo:
        try:
            storage.parent.mkdir(parents=True, exist_ok=True)
            opened = _open(storage)
            undo.callback(opened.engine.dispose)
            undo.callback(opened.remove_session)
            study = optuna.create_study(
                storage=opened, study_name=name, direction="maximize", load_if_exists=True
            )
        # Optuna raises RuntimeError for a file of another version.
        except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, OSError) as error:
            raise _unusable(storage, error) from error
        try:
            yield study
        # Judging raises neither of these.
        except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise _unusable(storage, error) from error


def _open(storage: Path) -> Any:
    import optuna
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import URL

    url = URL.create("sqlite", database=str(storage)).render_as_string()
    engine = create_engine(url)
    try:
        tables = set(inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if tables and not {"studies", "trials", "version_info"} <= tables:
        # Optuna would add its tables to it.
        raise StoreError(
            f"{storage} belongs to another program (tables: {', '.join(sorted(tables)[:5])}). "
            "Tuning needs a file of its own: move this one, or choose another"
        )
    return optuna.storages.RDBStorage(url)


def _unusable(storage: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the tuning study in {storage} cannot be read or written. {first_line(error.__cause__ or error)} "
        "Check permissions and free space. If the file is corrupt or from another Optuna version, move it "
        "away: tuning then starts over, and nothing else is lost"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Optuna from logging each trial: the caller shows progress itself."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
