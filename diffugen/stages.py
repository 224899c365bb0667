"""The stages that make images and attention labels, and how a stage is run once.

Every stage (here, in `diffugen.stages_labels` and in `diffugen.stages_training`) is a function over a run: it takes flat
arguments, named like the configuration's keys, goes on where an earlier call stopped, reports to ``on_progress(done, total)``
and returns what the ledger shall keep of it, as JSON values. It knows the order of work inside itself, not the order of the
stages (that is `loops/`) and not the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diffugen.records import LabelSet, Prompt, content_id

if TYPE_CHECKING:
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.store import RunStore

OnProgress = Callable[[int, int], None]
Result = dict[str, Any]
Work = Callable[[OnProgress], Result]
Watch = Callable[[str, str], AbstractContextManager[OnProgress]]
"""Called with what is done and its unit; gives what a stage reports its progress to."""

LABELS_A_TRANSACTION = 200
IMAGES_A_BATCH = 8
UNITS = {"train": "epoch", "tune": "trial"}
"""What a stage counts, where it is not images."""


def run_stage(store: RunStore, round: int, name: str, work: Work, watch: Watch, *, again: bool = False) -> Result:
    """Run a stage of a round and keep its result and its time; where that was done before, only return the result.

    Args:
        store: The run, open for writing.
        round: The round.
        name: The stage.
        work: Does it, given what to report progress to.
        watch: Shows progress.
        again: Do it even where it was done before, because something of it is missing.
    """
    kept = store.stage_done(round, name)
    if kept is not None and not again:
        return kept
    start = time.perf_counter()
    with watch(f"round {round}: {name}", UNITS.get(name, "image")) as on_progress:
        result = work(on_progress)
    store.finish_stage(round, name, result, time.perf_counter() - start)
    return result


def files_missing(store: RunStore, round: int) -> bool:
    """Return whether an image of a round has lost its files, so that the round must be generated again."""
    return not all(store.has_image(image_id) for image_id in store.image_ids(round))


def round_seed(seed: int, round: int) -> int:
    """Return the seed of a round's prompts, images and training; that of round 0 is the run's own."""
    return seed if round == 0 else int(content_id("round", seed, round), 16) % 2**31


def generate_stage(
    store: RunStore,
    prompts: Sequence[Prompt],
    on_progress: OnProgress = lambda done, total: None,
    *,
    model: str,
    device: str,
    dtype: str,
    size_wh: tuple[int, int] | None,
    num_inference_steps: int,
    guidance_scale: float,
    scheduler: str | None,
    batch_size: int | None,
    attention_backend: str,
    offload: str,
    trust_remote_pickle: bool,
    images_per_prompt: int,
    seed: int,
    round: int = 0,
) -> Result:
    """Generate the images of a round that the run does not have yet, batch by batch, with their heat maps.

    Args:
        store: The run, open for writing.
        prompts: What to show.
        on_progress: Called after each batch with images done and all images of the plan.
        model: Hub name, folder or file of the diffusion model, or ``miniature``.
        device: Torch device or ``auto``.
        dtype: Number format of the weights or ``auto``.
        size_wh: Width and height in pixels; None for the model's own.
        num_inference_steps: Denoising steps.
        guidance_scale: How strictly an image follows its prompt.
        scheduler: Class name of a diffusers scheduler; None for the model's own.
        batch_size: Images at a time; None for `IMAGES_A_BATCH`.
        attention_backend: ``native`` or ``daam``.
        offload: ``none``, ``model`` or ``sequential``.
        trust_remote_pickle: Whether pickled weights are accepted.
        images_per_prompt: Images of each prompt.
        seed: Seed of the round's images.
        round: The round.

    Returns:
        ``images``: how many the plan has, those that were there already included.

    Raises:
        DiffugenError: The model cannot be used, a phrase cannot be traced, or the run cannot be written.
    """
    from diffugen.diffusion.generate import generate, plan_jobs
    from diffugen.diffusion.pipelines import default_size_wh, load_pipeline

    pipeline = load_pipeline(
        model, device=device, dtype=dtype, scheduler=scheduler, offload=offload, trust_remote_pickle=trust_remote_pickle
    )
    settings = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        **({} if scheduler is None else {"scheduler": scheduler}),
        **({} if dtype == "auto" else {"dtype": dtype}),
    }
    jobs = plan_jobs(
        prompts, images_per_prompt=images_per_prompt, run_seed=seed, size_wh=size_wh or default_size_wh(pipeline),
        model=model, settings=settings, round=round,
    )  # fmt: skip
    size = batch_size or IMAGES_A_BATCH
    # Whole batches, of which some images may be there: in another batch an image would be rounded another way.
    unfinished = [
        job
        for first in range(0, len(jobs), size)
        if not all(store.has_image(job.id) for job in jobs[first : first + size])
        for job in jobs[first : first + size]
    ]
    done = len(jobs) - len(unfinished)
    on_progress(done, len(jobs))
    for record, rgb, heat_maps, seconds in generate(
        pipeline, unfinished, batch_size=size, attention_backend=attention_backend
    ):
        store.add_image(record, rgb, heat_maps, seconds)
        done += 1
        on_progress(done, len(jobs))
    return {"images": len(jobs)}


def label_method(settings: LabelSettings, weights: ScoreWeights) -> str:
    """Return the provenance of attention labels made with these settings."""
    return f"attention-{content_id(settings.asdict(), asdict(weights))}"


def label_settings(
    store: RunStore, round: int, labels: Mapping[str, Any], score: Mapping[str, Any]
) -> tuple[LabelSettings, ScoreWeights]:
    """Return what a round labels with: the settings that an earlier round's tuning found, or else the configured ones.

    Args:
        store: The run.
        round: The round.
        labels: The configured `LabelSettings`, by name.
        score: The configured `ScoreWeights`, by name.
    """
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights

    for earlier in reversed(range(round)):
        tuned = store.stage_done(earlier, "tune")
        if tuned and tuned["adopted"]:
            labels, score = tuned["after"]["settings"], tuned["after"]["weights"]
            break
    return LabelSettings(**{**labels, "step_weights": tuple(labels["step_weights"])}), ScoreWeights(**score)


def label_stage(
    store: RunStore,
    settings: LabelSettings,
    weights: ScoreWeights,
    on_progress: OnProgress = lambda done, total: None,
    *,
    round: int = 0,
) -> Result:
    """Label, by attention, the images of the run that these settings have not labelled yet, of earlier rounds too.

    Args:
        store: The run, open for writing.
        settings: How heat maps become instances.
        weights: How good an instance is.
        on_progress: Called with images labelled and images to label.
        round: The round that the labels are made in.

    Returns:
        ``method`` (the provenance that the labels are kept under), ``images``, ``objects``, ``settings``, ``weights``.

    Raises:
        DiffugenError: A heat map is missing or unreadable, or the settings do not fit it.
    """
    from diffugen.labels.label import label

    method = label_method(settings, weights)
    missing = list(store.label_ids_missing("attention", method))
    on_progress(0, len(missing))
    for first in range(0, len(missing), LABELS_A_TRANSACTION):
        found = []
        for image_id in missing[first : first + LABELS_A_TRANSACTION]:
            rgb = None if settings.refine == "none" else store.image(image_id)
            instances = label(store.heat_maps(image_id), settings, weights, rgb)
            found.append(LabelSet(image_id, "attention", instances, method, round))
            on_progress(first + len(found), len(missing))
        store.put_labels(found)
    counts = [len(labels.instances) for labels in store.labels("attention", method)]
    return {
        "method": method, "images": len(counts), "objects": sum(counts), "settings": settings.asdict(),
        "weights": asdict(weights),
    }  # fmt: skip
