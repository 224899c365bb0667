"""Tune label settings and score weights by an Optuna study against evidence: reviewed labels, or agreed ones.

The only home of Optuna. Knows the study and its file. What is searched stands in `diffugen.tune.space`, the
objective in `diffugen.tune.judge`, and when the outcome may be used in `diffugen.tune.folds`; each is
explained there.

Trial 0 is the current settings; the next ones switch one choice each, such as the method. Then TPE (Bergstra
et al. 2011) changes the best settings so far in one group of parameters at a time: how heat maps are cut,
averaged, cleaned, and how labels are scored, by turns. In sixteen dimensions at once a few dozen trials find
less, and slower: score weights need no new labels, and cutting and cleaning no new averages.

Only finished trials are written, each in one transaction, and the sampler is seeded anew for each: a study
that was killed goes on where it stopped and ends as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, ScoreWeights
from diffugen.errors import DiffugenError, StoreError
from diffugen.records import HeatMaps, content_id
from diffugen.tune.folds import choose
from diffugen.tune.judge import Evidence, Judge, spread
from diffugen.tune.space import DECIMALS, fixed_params, from_params, search_space, to_params

SMALLEST_EVIDENCE, FEWEST_PROMPTS = 12, 2
"""Images, and prompts among them, below which evidence says nothing about other images."""

KEPT_FRAC = 0.25
"""Settings that label fewer than this part of the images that are labelled now are no better labels, but
hardly any."""

SEARCH_VERSION = 1
"""Part of a study's name: raised when code changes such that an old study cannot be continued."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """The outcome of tuning.

    Attributes:
        settings: Label settings to use from now on: the given ones unless better ones were adopted.
        weights: Score weights to use from now on, likewise.
        adopted: Whether better ones were adopted.
        reason: Why, or why not, in a sentence.
        value_before: Value of the given settings on all evidence; None without a study.
        value_after: Value of ``settings`` and ``weights`` on all evidence.
        held_out_before: Value of the given settings on held-out evidence.
        held_out_after: Value of tuned settings on held-out evidence, adopted or not.
        images: Images of the evidence that took part.
        trials: Trials of the study, the given settings included.
        history: Value of each trial in order, the given settings first; ``max(history[:n])`` is the best of n
            trials.
    """

    settings: LabelSettings
    weights: ScoreWeights
    adopted: bool
    reason: str
    value_before: float | None
    value_after: float | None
    held_out_before: float | None
    held_out_after: float | None
    images: int
    trials: int
    history: tuple[float, ...] = ()


def tune(
    evidence: Sequence[Evidence],
    heat_maps: Callable[[str], HeatMaps],
    image: Callable[[str], NDArray[np.uint8]],
    settings: LabelSettings,
    weights: ScoreWeights,
    *,
    storage: Path,
    study: str = "labels",
    trials: int = 60,
    images: int = 300,
    folds: int = 4,
    seed: int = 0,
    on_progress: OnProgress = lambda done, total: None,
) -> Outcome:
    """Search for label settings and score weights whose labels fit the evidence better.

    Searched are ``method``, ``threshold``, ``refine``, ``erode_frac``, ``dilate_frac``, the weights in
    ``groups`` and ``step_weights``, ``accept``, and all score weights. Of weights only ratios count, so they
    come back with 1 as the largest.

    Args:
        evidence: What is taken for right, each image once.
        heat_maps: Returns an image's heat maps; only called for the images that take part, again and again
            only where they exceed `diffugen.tune.judge.KEPT_BYTES` together.
        image: Returns an image's pixels, uint8 (H, W, 3); called likewise, for settings that refine masks.
        settings: The current label settings.
        weights: The current score weights.
        storage: SQLite file of the study, made where it does not exist; several studies can share it.
        study: Name of the study. A hash of evidence, settings, folds and seed is added, so that a study is
            only ever continued with what it was begun with; with more ``trials`` it goes on.
        trials: Trials in all, the current settings included.
        images: At most this many images of the evidence take part, spread over prompts.
        folds: Parts of the evidence for cross-validation; at most as many as there are prompts.
        seed: Seed of images, folds and search: the same arguments give the same result, interrupted or not.
        on_progress: Called with finished trials and all trials.

    Returns:
        The settings and weights to use from now on, and what is known about them.

    Raises:
        StoreError: The storage is corrupt, no Optuna storage, or cannot be written.
        ConfigError: ``settings.groups`` does not fit the heat maps.
        DiffugenError: Arguments out of range, or evidence that is of another size than its image or names one
            twice.

    Example:
        >>> tuned = tune(evidence, store.heat_maps, store.image, settings, weights, storage=file)  # doctest: +SKIP
        >>> tuned.adopted, tuned.held_out_before, tuned.held_out_after  # doctest: +SKIP
        (True, 0.113, 0.171)
    """
    _check(trials=(trials, 0), images=(images, 1), folds=(folds, 2))
    chosen = spread(evidence, images, seed)
    prompts = [one.family for one in chosen]
    reason = _too_little(len(chosen), len(set(prompts)), trials)
    if reason:
        return Outcome(settings, weights, False, reason, None, None, None, None, len(chosen), 0)
    _require_optuna()
    judge = Judge(chosen, heat_maps, image)
    name = f"{study}-{_identity(chosen, settings, weights, folds, seed)}"
    with _silent(), _journal(storage, name) as journal:
        done = _search(journal, judge, settings, weights, trials, seed, on_progress)
    values = np.array([trial.user_attrs["values"] for trial in done])
    choice = choose(values, prompts, folds, seed)
    if choice.adopted:
        settings, weights = from_params(done[choice.best].params, settings)
    history = tuple(values.mean(axis=1).tolist())
    return Outcome(
        settings=settings,
        weights=weights,
        adopted=choice.adopted,
        reason=choice.reason,
        value_before=history[0],
        value_after=history[choice.best if choice.adopted else 0],
        held_out_before=history[0],
        held_out_after=choice.held_out,
        images=len(chosen),
        trials=len(done),
        history=history,
    )


def _check(**values: tuple[int, int]) -> None:
    mistakes = [
        f"{name} is {value!r}; expected a whole number from {least}"
        for name, (value, least) in values.items()
        if not isinstance(value, int) or value < least
    ]
    if mistakes:
        raise DiffugenError("tuning cannot start: " + "; ".join(mistakes))


def _too_little(images: int, prompts: int, trials: int) -> str | None:
    if trials < 2:
        return f"{trials} trials: nothing to compare the current settings with"
    if images < SMALLEST_EVIDENCE or prompts < FEWEST_PROMPTS:
        return (
            f"too little evidence: {images} images of {prompts} prompts; "
            f"tuning needs at least {SMALLEST_EVIDENCE} images of {FEWEST_PROMPTS} prompts"
        )
    return None


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise DiffugenError(
            f"tuning needs Optuna ({error}). Install it with `pip install 'diffugen[tune]'`, or set "
            "tune.trials to 0"
        ) from error


def _identity(
    evidence: Sequence[Evidence], settings: LabelSettings, weights: ScoreWeights, folds: int, seed: int
) -> str:
    """Return a hash of all that decides a study's trials but their number."""
    right = [
        [
            one.image_id,
            one.family,
            one.instances.class_names,
            [rle["counts"] for rle in one.instances.rles],
        ]
        for one in evidence
    ]
    return content_id(SEARCH_VERSION, right, settings.model_dump(mode="json"), weights.model_dump(), folds, seed)


def _search(
    journal: Any,
    judge: Judge,
    settings: LabelSettings,
    weights: ScoreWeights,
    trials: int,
    seed: int,
    on_progress: OnProgress,
) -> list[Any]:
    """Run the trials that the journal does not have yet; return all of them, as Optuna's finished trials."""
    import optuna

    spaces, start = search_space(settings), to_params(settings, weights)
    distributions = {name: _distribution(limits) for space in spaces for name, limits in space.items()}
    # The study itself lives in memory; the journal gets finished trials only, so there is nothing half-done
    # to mend.
    study = optuna.create_study(direction="maximize")
    study.add_trials(journal.get_trials(deepcopy=False)[:trials])
    on_progress(len(study.trials), trials)
    for number in range(len(study.trials), trials):
        best = study.best_trial.params if number else start
        study.enqueue_trial(fixed_params(number, start, best, spaces))
        # A new sampler each time: what it draws depends on the trials so far and its seed, not on when this
        # process began.
        study.sampler = optuna.samplers.TPESampler(seed=int(content_id(seed, number), 16) % 2**32)
        trial = study.ask(distributions)
        tried = (settings, weights) if number == 0 else from_params(trial.params, settings)
        judgement = judge.judge(*tried)
        least = KEPT_FRAC * (study.trials[0].user_attrs["labelled"] if number else 0)
        values = np.round(judgement.values - (judgement.labelled < least), DECIMALS).tolist()
        trial.set_user_attr("values", values)
        trial.set_user_attr("labelled", judgement.labelled)
        journal.add_trial(study.tell(trial, float(np.mean(values))))
        on_progress(number + 1, trials)
    return study.get_trials(deepcopy=False)


def _distribution(limits: tuple[str, ...] | tuple[float, float]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return CategoricalDistribution(limits) if isinstance(limits[0], str) else FloatDistribution(*limits)


@contextmanager
def _journal(storage: Path, name: str) -> Iterator[Any]:
    """Open the study of that name in a SQLite file, making both where they do not exist."""
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
        # RuntimeError is Optuna's for a file by another version.
        except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, OSError) as error:
            raise _unusable(storage, error) from error
        try:
            yield study
        # Judging raises neither.
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
        # Optuna would add its own tables to it.
        raise StoreError(
            f"{storage} is the database of another program (tables: {', '.join(sorted(tables)[:5])}). "
            "Give tuning a file of its own"
        )
    return optuna.storages.RDBStorage(url)


def _unusable(storage: Path, error: Exception) -> StoreError:
    cause = str(error.__cause__ or error).splitlines()[0]
    return StoreError(
        f"the tuning study in {storage} cannot be read or written ({cause}). Check permissions and free "
        "space; if the file is "
        "corrupt or by another Optuna version, move it away: tuning then starts again, and nothing else is "
        "lost"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Optuna from reporting each trial: the caller has its own progress."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
