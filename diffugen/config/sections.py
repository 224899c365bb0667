"""The configuration: frozen sections named after modules, with every mistake of a file in one list.

The files whose names begin with ``config`` are the only home of pydantic. They know which values are allowed,
not what they do: loops pass them on as flat arguments. A new section is a class here and a field of `Config`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from diffugen.config.generation import PromptsSection, TaskSection, check_chain
from diffugen.config.mistakes import hint
from diffugen.config.values import Device, Name, Radius, Section, SideWH, Text, Weight, some_weight
from diffugen.records import content_id


class DiffusionSection(Section):
    """The diffusion model and how it generates.

    Attributes:
        model: ``miniature`` (embedded), or a folder or hub name of a diffusers text-to-image model.
        device: ``auto`` takes the fastest there is.
        dtype: Number format of the weights; ``auto`` follows the device.
        size_wh: Width and height in pixels; None for the model's own.
        num_inference_steps: Denoising steps.
        guidance_scale: How strictly an image follows its prompt.
        scheduler: Class name of a diffusers scheduler; None for the model's own.
        batch_size: Images at a time; None lets the memory decide.
        attention_backend: Which tracer makes the heat maps.
        offload: What leaves the GPU's memory while it is not needed.
        vae_slicing: Whether images of a batch are decoded one by one: less memory.
        vae_tiling: Whether large images are decoded in tiles: less memory, sometimes visible seams.
        compile: Whether parts of the denoiser are compiled: slow to start, then faster.
        loras: From a LoRA file or hub name to its weight.
        embeddings: Files of textual-inversion tokens.
        trust_remote_pickle: Whether weights that can run code when they are loaded are accepted.
    """

    model: Text = "miniature"
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    size_wh: SideWH | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] = 20
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    scheduler: Text | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    attention_backend: Literal["native", "daam"] = "native"
    offload: Literal["none", "model", "sequential"] = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    compile: bool = False
    loras: dict[str, Annotated[float, Field(ge=-2, le=2)]] = Field(default_factory=dict)
    embeddings: tuple[Text, ...] = ()
    trust_remote_pickle: bool = False


class LabelsSection(Section):
    """From heat maps to instances.

    Attributes:
        method: ``paper`` thresholds each phrase's map by itself; ``compete`` lets phrases compete for pixels
            first.
        threshold: ``otsu``, or a part of the way from a map's minimum to its maximum, in (0, 1).
        refine: ``crf`` moves the edges of masks to where the image's colours change.
        erode_frac: Radius of the erosion, relative to the square root of the image area, in [0, 0.2).
        dilate_frac: Radius of the dilation after it, likewise.
        min_area_frac: Smaller masks, relative to the image area, are dropped.
        max_area_frac: Larger masks are dropped.
        instances: ``pieces`` makes each connected component an instance, ``one`` all of a class's mask,
            ``largest`` its largest component.
        groups: From a pattern for layer groups (``"up@*"``) to the weight of their maps.
        step_weights: Weights of the first, middle and last third of the denoising steps.
        accept: Labels with a lower score, in [0, 1], are dropped.
    """

    method: Literal["paper", "compete"] = "compete"
    threshold: Literal["otsu"] | Annotated[float, Field(gt=0, lt=1)] = "otsu"
    refine: Literal["none", "crf"] = "none"
    erode_frac: Radius = 0.01
    dilate_frac: Radius = 0.01
    min_area_frac: Annotated[float, Field(ge=0, lt=1)] = 0.002
    max_area_frac: Annotated[float, Field(gt=0, le=1)] = 0.95
    instances: Literal["pieces", "one", "largest"] = "pieces"
    groups: Annotated[dict[str, Weight], AfterValidator(some_weight)] = Field(
        default_factory=lambda: {"*": 1.0}
    )
    step_weights: Annotated[tuple[Weight, Weight, Weight], AfterValidator(some_weight)] = (1.0, 1.0, 1.0)
    accept: Annotated[float, Field(ge=0, le=1)] = 0.0

    @field_validator("max_area_frac")
    @classmethod
    def _above_the_smallest(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("min_area_frac", 0):
            raise ValueError(f"more than labels.min_area_frac, which is {info.data['min_area_frac']:g}")
        return value


class ScoreSection(Section):
    """Weights of the terms of `diffugen.labels.score`; only their ratios matter.

    Attributes:
        box_size: Weight of a large box.
        heat_intensity: Weight of a hot mask.
        contrast: Weight of a mask that is hotter than its surroundings.
        compactness: Weight of a mask without arms, holes and scattered pieces.
        margin: Weight of a lead over competing phrases.
    """

    box_size: Weight = 1.0
    heat_intensity: Weight = 1.0
    contrast: Weight = 1.0
    compactness: Weight = 1.0
    margin: Weight = 1.0

    @model_validator(mode="after")
    def _not_all_zero(self) -> ScoreSection:
        some_weight(self.model_dump())
        return self


class DetectorSection(Section):
    """The detector and its training.

    Attributes:
        checkpoint: What the first round starts from: ``miniature`` (embedded), a file, or a folder with
            ``model.safetensors``.
        device: ``auto`` takes the fastest there is.
        image_size: Longer side in pixels that images are scaled to.
        epochs: Passes over the training images in each round.
        batch_size: Images a step; None for 16.
        lr0: Initial learning rate; None lets the detector choose.
        freeze: How many layers, counted from the input, keep their weights; None for none.
        confidence: Instances that the detector is less sure of, in [0, 1], are no model labels.
        class_map: From a class of the run to the class that a detector knows it as, for detectors that do not
            know the run's own, e.g. ``{sedan: car}``.
        extra: Further training arguments of the detector's library, by their own names.
    """

    checkpoint: Text = "yolov8n-seg.pt"
    device: Device = "auto"
    image_size: Annotated[int, Field(ge=64)] = 640
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] | None = None
    lr0: Annotated[float, Field(gt=0)] | None = None
    freeze: Annotated[int, Field(ge=0)] | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.25
    class_map: dict[str, Text] = Field(default_factory=dict)
    extra: dict[str, bool | int | float | str] = Field(default_factory=dict)


class DisagreementSection(Section):
    """When attention labels and model labels contradict each other.

    Attributes:
        min_iou: Below this IoU two instances are not the same object.
        good_iou: From this IoU on they agree on where it is.
    """

    min_iou: Annotated[float, Field(ge=0, le=1)] = 0.1
    good_iou: Annotated[float, Field(ge=0, le=1)] = 0.5

    @field_validator("good_iou")
    @classmethod
    def _at_least_the_other(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("min_iou", 0):
            raise ValueError(f"at least disagreement.min_iou, which is {info.data['min_iou']:g}")
        return value


class DatasetSection(Section):
    """Which labels are trained on.

    Attributes:
        mask: Whose mask an object gets that both sources agree on.
        trust: Whose labels an image gets on which they disagree; ``none``: it waits for a person.
        min_score: Images with an attention label that scores lower, in [0, 1], are not trained on unless a
            person says so.
        val_frac: Part of the prompts whose images are held out.
        known: Labelled images to train on as well (a YOLO-seg folder or COCO file); None for none.
    """

    mask: Literal["attention", "model", "union", "intersection"] = "model"
    trust: Literal["none", "attention", "model"] = "none"
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    val_frac: Annotated[float, Field(gt=0, lt=1)] = 0.2
    known: Text | None = None


class TuneSection(Section):
    """The search for better label settings and score weights.

    Attributes:
        trials: How many settings are tried in a round; 0 for no search.
        images: At most so many images are looked at.
        folds: Parts of the evidence that are held out in turn.
    """

    trials: Annotated[int, Field(ge=0)] = 60
    images: Annotated[int, Field(ge=1)] = 300
    folds: Annotated[int, Field(ge=2)] = 4


class LoopSection(Section):
    """How long the loop goes on, and what it is measured on.

    Attributes:
        rounds: At most so many rounds.
        images_per_prompt: Images of each prompt in each round.
        patience: Stop after so many rounds without a better detector.
        validation: Labelled images (a YOLO-seg folder or COCO file) that decide which detector is better;
            None: reviewed images, or else images on which attention and detector agree.
        truth: Labelled images that the report quotes and nothing is decided on: a YOLO-seg folder, a COCO
            file, or the name of one of the miniature's scene sets; None for no such measurement.
        reference: Whether to train, at the end, the same detector on as many exact labels, to compare with;
            where the truth is one of the miniature's scene sets.
    """

    rounds: Annotated[int, Field(ge=1)] = 3
    images_per_prompt: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] = 2
    validation: Text | None = None
    truth: Text | None = None
    reference: bool = True


class Config(Section):
    """Everything a loop can be told.

    Attributes:
        name: What is generated, in a word; names the run's folder.
        seed: Seed of prompts, images and training.
        prompts: What to generate.
        tasks: In which steps; empty for ``txt2img`` alone.
        diffusion: With which model, and how.
        labels: How heat maps become labels.
        score: How good a label is.
        detector: What is trained, and how.
        disagreement: When two labels contradict each other.
        dataset: Which labels are trained on.
        tune: How better label settings are searched for.
        loop: How long it goes on.
    """

    name: Name = "miniature"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    prompts: PromptsSection
    tasks: Annotated[tuple[TaskSection, ...], AfterValidator(check_chain)] = ()
    diffusion: DiffusionSection = Field(default_factory=DiffusionSection)
    labels: LabelsSection = Field(default_factory=LabelsSection)
    score: ScoreSection = Field(default_factory=ScoreSection)
    detector: DetectorSection = Field(default_factory=DetectorSection)
    disagreement: DisagreementSection = Field(default_factory=DisagreementSection)
    dataset: DatasetSection = Field(default_factory=DatasetSection)
    tune: TuneSection = Field(default_factory=TuneSection)
    loop: LoopSection = Field(default_factory=LoopSection)

    @field_validator("detector")
    @classmethod
    def _maps_own_classes(cls, value: DetectorSection, info: ValidationInfo) -> DetectorSection:
        prompts: PromptsSection | None = info.data.get("prompts")
        classes = value.class_map if prompts is None else prompts.classes
        for name in value.class_map:
            if name not in classes:
                raise ValueError(f"in class_map classes of prompts, not {name!r}{hint(name, classes)}")
        return value

    def dump(self) -> dict[str, Any]:
        """Return all settings, defaults included, as JSON values; `load_config` reads them back from a JSON
        file.
        """
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """16 hex digits that depend on every setting, and on the order of classes and attributes."""
        return content_id(json.dumps(self.dump()))
