"""The stages of a round, each a function over a run: takes flat arguments, goes on where an earlier call stopped.

Knows the order of work inside one stage, not the order of the stages (that is `loops/`) and not the command line.
Each stage reports to ``on_progress(done, total)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from diffugen.records import ImageRecord, LabelSet, Prompt, content_id

if TYPE_CHECKING:
    from diffugen.labels.label import LabelSettings
    from diffugen.labels.score import ScoreWeights
    from diffugen.store import RunStore

OnProgress = Callable[[int, int], None]

LABELS_A_TRANSACTION = 200


def generate_stage(
    store: RunStore,
    prompts: Sequence[Prompt],
    *,
    model: str,
    device: str,
    dtype: str,
    size_wh: tuple[int, int] | None,
    settings: Mapping[str, Any],
    batch_size: int | None,
    attention_backend: str,
    offload: str,
    trust_remote_pickle: bool,
    images_per_prompt: int,
    seed: int,
    round: int = 0,
    on_progress: OnProgress = lambda done, total: None,
) -> list[ImageRecord]:
    """Generate the images of a round that the run does not have yet, batch by batch, with their heat maps.

    Args:
        store: The run, open for writing.
        prompts: What to show.
        model: Hub name, folder or file of the diffusion model, or ``miniature``.
        device: Torch device or ``auto``.
        dtype: Number format of the weights or ``auto``.
        size_wh: Width and height in pixels; None for the model's own.
        settings: What else decides the pixels: ``num_inference_steps``, ``guidance_scale``, ``scheduler``.
        batch_size: Images at a time; None for 8.
        attention_backend: ``native`` or ``daam``.
        offload: ``none``, ``model`` or ``sequential``.
        trust_remote_pickle: Whether pickled weights are accepted.
        images_per_prompt: Images of each prompt.
        seed: Seed of the round's images.
        round: The round.
        on_progress: Called after each batch with images done and all images of the plan.

    Returns:
        The plan: the records of all images of the round, the ones that were there already included.

    Raises:
        DiffugenError: The model cannot be used, a phrase cannot be traced, or the run cannot be written.
    """
    from diffugen.diffusion.generate import generate, plan_jobs
    from diffugen.diffusion.pipelines import default_size_wh, load_pipeline

    pipeline = load_pipeline(
        model, device=device, dtype=dtype, scheduler=settings.get("scheduler"), offload=offload,
        trust_remote_pickle=trust_remote_pickle,
    )  # fmt: skip
    jobs = plan_jobs(
        prompts, images_per_prompt=images_per_prompt, run_seed=seed, size_wh=size_wh or default_size_wh(pipeline),
        model=model, settings=settings, round=round,
    )  # fmt: skip
    missing = [job for job in jobs if not store.has_image(job.id)]
    done = len(jobs) - len(missing)
    on_progress(done, len(jobs))
    for record, rgb, heat_maps, seconds in generate(
        pipeline, missing, batch_size=batch_size or 8, attention_backend=attention_backend
    ):
        store.add_image(record, rgb, heat_maps, seconds)
        done += 1
        on_progress(done, len(jobs))
    return jobs


def label_method(settings: LabelSettings, weights: ScoreWeights) -> str:
    """Return the provenance of attention labels made with these settings."""
    return f"attention-{content_id(settings.asdict(), asdict(weights))}"


def label_stage(
    store: RunStore,
    settings: LabelSettings,
    weights: ScoreWeights,
    *,
    round: int | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> str:
    """Label, by attention, the images that these settings have not labelled yet.

    Args:
        store: The run, open for writing.
        settings: How heat maps become instances.
        weights: How good an instance is.
        round: Only images of this round; None for all.
        on_progress: Called with images labelled and images to label.

    Returns:
        The provenance that the labels are kept under.

    Raises:
        DiffugenError: A heat map is missing or unreadable, or the settings do not fit it.
    """
    from diffugen.labels.label import label

    method = label_method(settings, weights)
    missing = list(store.label_ids_missing("attention", method, round))
    on_progress(0, len(missing))
    for first in range(0, len(missing), LABELS_A_TRANSACTION):
        found = []
        for image_id in missing[first : first + LABELS_A_TRANSACTION]:
            rgb = None if settings.refine == "none" else store.image(image_id)
            instances = label(store.heat_maps(image_id), settings, weights, rgb)
            found.append(LabelSet(image_id, "attention", instances, method, round or 0))
            on_progress(first + len(found), len(missing))
        store.put_labels(found)
    return method
