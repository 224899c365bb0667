"""The configuration: one frozen section for each part of the work, named after what it decides.

They say which values are allowed, and are the only declaration of each setting; what a setting does is
explained where it is used. A new section is a class here and a field of `Config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator

from diffugen.config.generation import PromptSettings, Task, check_chain
from diffugen.config.labelling import Labelling, LabelSettings, ScoreWeights
from diffugen.config.training import TrainingArguments
from diffugen.config.values import Device, Devices, Name, Section, Share, SideWH, Text
from diffugen.errors import did_you_mean

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Offload = Literal["none", "model", "sequential"]
AttentionBackend = Literal["native", "daam"]
MapKind = Literal["probability", "output"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = get_args(AttentionBackend)
MAP_KINDS: tuple[MapKind, ...] = get_args(MapKind)

ReviewMode = Literal["none", "static", "serve", "fiftyone"]
ReviewOrder = Literal["severity", "change", "diverse", "mixed", "doubt", "random"]

MaskChoice = Literal["consensus", "attention", "model", "union", "intersection"]
Trust = Literal["none", "attention", "model", "evidence"]


class DiffusionSettings(Section):
    """The diffusion model and how it generates.

    Attributes:
        model: ``miniature`` (embedded), or a folder or Hub name of a diffusers text-to-image model.
        device: ``auto`` takes the fastest device available.
        dtype: Number format of the weights; ``auto`` follows the device.
        size_wh: Width and height in pixels; None for the model's own.
        num_inference_steps: Denoising steps.
        guidance_scale: How closely an image follows its prompt.
        scheduler: Class name of a diffusers scheduler; None for the model's own.
        batch_size: Images at a time; None for 32 on a CUDA GPU, 8 elsewhere. Halved when memory runs out.
        attention_backend: ``native`` is our tracer; ``daam`` the package of that name, a slow reference.
        keep_self_attention: Whether self-attention is kept with the heat maps, for ``labels.self_attention``:
            up to 2 MB per image, and slower.
        map: What heat maps are made of: ``probability``, the attention that each cell pays to the words; or
            ``output``, for Stable Diffusion 3, FLUX and Chroma, how much each cell's attention output
            resembles that of each word, compared with the other words. See `diffugen.diffusion.concepts`.
        concepts: With map ``output``, words for what else is in the images; they compete with the classes for
            pixels, like the background words of prompts, and need not be in the prompt.
        offload: What leaves the GPU's memory while it is not needed.
        vae_slicing: Whether the images of a batch are decoded one by one: less memory.
        vae_tiling: Whether large images are decoded in tiles: less memory, sometimes visible seams.
        compile: Whether parts of the denoiser are compiled: a slow start, then faster.
        loras: From a LoRA file or Hub name to its weight.
        embeddings: Files of textual-inversion tokens.
        trust_remote_pickle: Whether weights that can run code when they are loaded are accepted.
    """

    RESUMABLE = ("batch_size", "compile", "device", "offload", "vae_slicing")

    model: Text = "miniature"
    device: Device = "auto"
    dtype: Dtype = "auto"
    size_wh: SideWH | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] = 20
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    scheduler: Text | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    attention_backend: AttentionBackend = "native"
    keep_self_attention: bool = False
    map: MapKind = "probability"
    concepts: tuple[Text, ...] = ()
    offload: Offload = "none"
    vae_slicing: bool = False
    vae_tiling: bool = False
    compile: bool = False
    loras: dict[str, Annotated[float, Field(ge=-2, le=2)]] = Field(default_factory=dict)
    embeddings: tuple[Text, ...] = ()
    trust_remote_pickle: bool = False

    @field_validator("keep_self_attention")
    @classmethod
    def _traced_by_us(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("attention_backend", "native") != "native":
            raise ValueError("false unless diffusion.attention_backend is native")
        return value

    @field_validator("map")
    @classmethod
    def _output_traced_by_us(cls, value: MapKind, info: ValidationInfo) -> MapKind:
        if value == "output" and info.data.get("attention_backend", "native") != "native":
            raise ValueError("probability unless diffusion.attention_backend is native")
        return value

    @field_validator("concepts")
    @classmethod
    def _of_outputs(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("map", "output") != "output":
            raise ValueError(
                "none unless diffusion.map is output; prompts.background has words of the prompts"
            )
        if len({word.casefold() for word in value}) < len(value):
            raise ValueError("each word once, whatever its case: the same word would compete with itself")
        return value


class DetectorSettings(Section):
    """The detector and its training.

    Attributes:
        checkpoint: Where the first round starts: ``miniature`` (embedded), a file, a folder with
            ``model.safetensors``, the name of a checkpoint that Ultralytics publishes, or a Mask2Former: its
            folder or its name on the Hub.
        device: ``auto`` takes the fastest device available. On several GPUs, such as ``cuda:0,1``, a YOLO
            model is trained by Ultralytics' DDP; the first does everything else.
        image_size: Longer side in pixels that images are scaled to in training; None for the size that suits
            the checkpoint and the images, see `diffugen.detectors.suited_image_size`.
        prediction_size: The same for prediction; None for the size that the checkpoint was trained at.
        epochs: Passes over the training images in each round.
        steps: Optimiser steps in each round instead, to the next whole epoch: as much training, however many
            images there are. None for ``epochs``.
        batch_size: Images per step, on all GPUs together; None for 16, rounded down to a multiple of their
            number.
        lr0: Initial learning rate; None lets the detector choose.
        freeze: How many layers, counted from the input, keep their weights; None for none.
        ignore_band: Width of a band on each side of a mask's edge whose pixels do not count in training, as a
            fraction of the square root of the image area: the edges of pseudo-labels are what is least sure.
            Only for a Mask2Former.
        confidence: Detections below this confidence, in [0, 1], are no labels.
        postprocess: Whether detections are reduced to one mask per object, with edges where the image's
            colours change; see `diffugen.labels.objects`.
        class_map: From a class of the run to the detector's name for it, for detectors that do not know the
            run's own, e.g. ``{sedan: car}``.
        extra: Further training arguments of Ultralytics, under its own names.
    """

    DECIDES_PREDICTIONS: ClassVar = ("checkpoint", "prediction_size", "postprocess", "class_map")

    checkpoint: Text = "yolov8n-seg.pt"
    device: Devices = "auto"
    image_size: Annotated[int, Field(ge=64)] | None = None
    prediction_size: Annotated[int, Field(ge=64)] | None = None
    epochs: Annotated[int, Field(ge=1)] = 30
    steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    lr0: Annotated[float, Field(gt=0)] | None = None
    freeze: Annotated[int, Field(ge=0)] | None = None
    ignore_band: Annotated[float, Field(ge=0, lt=0.2)] = 0.0
    confidence: Share = 0.25
    postprocess: bool = True
    class_map: dict[str, Text] = Field(default_factory=dict)
    extra: TrainingArguments = Field(default_factory=TrainingArguments)


class DisagreementSettings(Section):
    """When attention labels and model labels contradict each other.

    Attributes:
        min_iou: Below this IoU two instances are not the same object.
        good_iou: From this IoU on they agree on its location.
    """

    min_iou: Share = 0.1
    good_iou: Share = 0.5

    @field_validator("good_iou")
    @classmethod
    def _at_least_the_other(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("min_iou", 0):
            raise ValueError(f"at least disagreement.min_iou, which is {info.data['min_iou']:g}")
        return value


class DatasetSettings(Section):
    """Which labels are trained on.

    Attributes:
        mask: Which mask an object gets when both sources agree on it.
        trust: Which labels to use on disagreement; ``none`` holds the image for review, ``evidence`` decides
            object by object and paints over what is doubtful.
        min_score: Images with an attention label that scores lower, in [0, 1], are not trained on unless a
            person accepts them.
        val_frac: Fraction of the prompts whose images are held out for validation.
        known: Further labelled images to train on (a YOLO-seg folder, a COCO file, or one of the miniature's
            scene sets); None for none.
        crowds: What becomes of crowds in the known images (COCO's ``iscrowd``): ``hide`` paints over them,
            ``object`` trains with each as one object.
        paste: Images composed of pasted objects, as a fraction of the run's own training images.
        noise_filter: Share of the training images with unconfirmed labels that is held back, in [0, 1): those
            whose labels are contradicted most by a detector that was trained on the others; 0 for none.
    """

    RESUMABLE = ("mask", "trust", "min_score", "known", "crowds", "paste", "noise_filter")

    mask: MaskChoice = "consensus"
    trust: Trust = "none"
    min_score: Share = 0.0
    val_frac: Annotated[float, Field(gt=0, lt=1)] = 0.2
    known: Text | None = None
    crowds: Literal["hide", "object"] = "hide"
    paste: Annotated[float, Field(ge=0)] = 0.0
    noise_filter: Annotated[float, Field(ge=0, lt=1)] = 0.0


class ReviewSettings(Section):
    """How a person reviews the images on which attention and model disagree.

    Attributes:
        mode: ``static`` writes an HTML page, ``serve`` serves it on this machine, ``fiftyone`` opens the
            FiftyOne App, ``none`` skips the review.
        order: Which images come first; see `diffugen.comparison.acquisition`.
        audits: Images in the queue on which both sources agree, per image on which they do not.
        consensus: How many reviewers must agree on an image before it is decided.
        wait: Whether each round waits until the reviewer is done.
        reviewer: Name that is kept with each decision.
        port: Port of the FiftyOne App, or of the page.
    """

    mode: ReviewMode = "none"
    order: ReviewOrder = "severity"
    audits: Share = 0.1
    consensus: Annotated[int, Field(ge=1)] = 1
    wait: bool = False
    reviewer: Text = "reviewer"
    port: Annotated[int, Field(ge=1, le=65535)] = 5151


class TeachSettings(Section):
    """How a decoder is taught that draws better heat maps than attention; see `diffugen.labels.decoder`.

    Attributes:
        min_decisions: Decided images with labels from which on a loop teaches; None for never.
        images: Maximum number of undecided images whose attention labels it learns from besides.
        folds: Number of parts of the decided images that are held out in turn, to see whether it is better.
    """

    min_decisions: Annotated[int, Field(ge=1)] | None = 5
    images: Annotated[int, Field(ge=0)] = 100
    folds: Annotated[int, Field(ge=2)] = 5


class TuneSettings(Section):
    """The search for better label settings and score weights.

    Attributes:
        trials: How many label settings, and then how many score weights, are tried in a round; 0 for no
            search.
        images: Maximum number of images that are labelled in a trial.
        folds: Number of parts of the evidence that are held out in turn.
        min_decisions: Decided images below which nothing is tuned: model labels alone favour settings that
            repeat what the model was taught. With 0, they are enough.
    """

    trials: Annotated[int, Field(ge=0)] = 60
    images: Annotated[int, Field(ge=1)] = 300
    folds: Annotated[int, Field(ge=2)] = 4
    min_decisions: Annotated[int, Field(ge=0)] = 12


class LoopSettings(Section):
    """How long the loop runs, and what it is measured on.

    Attributes:
        rounds: Maximum number of rounds.
        images_per_prompt: Images of each prompt in each round.
        patience: Stop after this many rounds without a better detector.
        validation: Labelled images (a YOLO-seg folder or COCO file) that decide which detector is better;
            None for reviewed images, or else images on which attention and detector agree.
        truth: Ground truth that the report quotes and that decides nothing: a YOLO-seg folder, a COCO file,
            or the name of one of the miniature's scene sets; None for no such measurement.
        reference: Whether to train, at the end, the same detector on as many exact labels, to compare with;
            only where the truth is one of the miniature's scene sets.
    """

    rounds: Annotated[int, Field(ge=1)] = 3
    images_per_prompt: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] = 2
    validation: Text | None = None
    truth: Text | None = None
    reference: bool = True


class ExecutorSettings(Section):
    """Where images are made and labelled, and settings tried: in this process, or on the workers of a Ray.

    Attributes:
        kind: ``local`` for this process; ``ray`` for workers, to which all other keys of this section apply.
        address: The Ray to join: ``auto`` for one that runs on this machine, ``host:port``, or
            ``ray://host:port``; None to start one on this machine for as long as the command runs.
        workers: Number of workers; None for as many as there is room for.
        gpus_per_worker: GPUs of each worker, a fraction if several share one; None for 1 where there are
            GPUs, else 0.
        cpus_per_worker: CPU cores of each worker.
    """

    kind: Literal["local", "ray"] = "local"
    address: Text | None = None
    workers: Annotated[int, Field(ge=1)] | None = None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_or_shared(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and not value.is_integer():
            raise ValueError("a whole number, or a fraction below 1")
        return value


class InversionSettings(Section):
    """How a token is learned by textual inversion; not a part of a run's configuration.

    Attributes:
        vectors: Vectors of the token: more hold more detail and follow the rest of a prompt less.
        steps: Optimiser steps in all; give more to continue a finished training.
        learning_rate: Of Adam, constant.
        batch_size: Images per step; fewer need less memory.
        flip: Whether half of the images are mirrored; not where left and right matter.
        seed: Decides everything random.
        guidance_scale: Guidance of the sample pictures.
        device: ``auto`` takes the fastest device available.
        dtype: ``bfloat16`` needs half the memory.
    """

    vectors: Annotated[int, Field(ge=1)] = 1
    steps: Annotated[int, Field(ge=1)] = 500
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 4
    flip: bool = True
    seed: Annotated[int, Field(ge=0)] = 0
    guidance_scale: Annotated[float, Field(ge=0)] = 3.0
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Generation:
    """Everything that decides which images a round makes.

    Attributes:
        prompts: What the prompts say.
        tasks: The steps; empty for ``txt2img`` alone.
        diffusion: The model and how it generates.
        images_per_prompt: Images of each prompt.
        detector_device: Where detectors run that find regions to paint over.
    """

    prompts: PromptSettings
    tasks: tuple[Task, ...]
    diffusion: DiffusionSettings
    images_per_prompt: int
    detector_device: str


@dataclass(frozen=True)
class TrainingPolicy:
    """Which labels a round trains with.

    Attributes:
        dataset: Whose labels count, and which images are held out.
        disagreement: When two labels contradict each other.
    """

    dataset: DatasetSettings
    disagreement: DisagreementSettings


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
        review: How a person decides.
        teach: How a decoder learns from decided images.
        tune: How better label settings are searched for.
        loop: How long it runs.
        executor: Where images are made and labelled.
    """

    RESUMABLE = (
        "tasks",
        "labels",
        "score",
        "detector",
        "disagreement",
        "review",
        "teach",
        "tune",
        "loop",
        "executor",
    )

    name: Name = "miniature"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    prompts: PromptSettings
    tasks: Annotated[tuple[Task, ...], AfterValidator(check_chain)] = ()
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)
    labels: LabelSettings = Field(default_factory=LabelSettings)
    score: ScoreWeights = Field(default_factory=ScoreWeights)
    detector: DetectorSettings = Field(default_factory=DetectorSettings)
    disagreement: DisagreementSettings = Field(default_factory=DisagreementSettings)
    dataset: DatasetSettings = Field(default_factory=DatasetSettings)
    review: ReviewSettings = Field(default_factory=ReviewSettings)
    teach: TeachSettings = Field(default_factory=TeachSettings)
    tune: TuneSettings = Field(default_factory=TuneSettings)
    loop: LoopSettings = Field(default_factory=LoopSettings)
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)

    _pinned: frozenset[str] = PrivateAttr(default_factory=frozenset)

    @field_validator("labels")
    @classmethod
    def _has_self_attention(cls, value: LabelSettings, info: ValidationInfo) -> LabelSettings:
        diffusion: DiffusionSettings | None = info.data.get("diffusion")
        if value.self_attention and diffusion is not None and not diffusion.keep_self_attention:
            raise ValueError(
                "self_attention 0 unless the run's images are generated with diffusion.keep_self_attention"
            )
        return value

    @field_validator("labels")
    @classmethod
    def _thresholds_own_classes(cls, value: LabelSettings, info: ValidationInfo) -> LabelSettings:
        prompts: PromptSettings | None = info.data.get("prompts")
        if prompts is not None and isinstance(value.threshold, dict):
            for name in value.threshold:
                if name not in prompts.classes:
                    hint = did_you_mean(name, prompts.classes)
                    raise ValueError(f"in threshold classes of prompts, not {name!r}{hint}")
        return value

    @field_validator("detector")
    @classmethod
    def _maps_own_classes(cls, value: DetectorSettings, info: ValidationInfo) -> DetectorSettings:
        prompts: PromptSettings | None = info.data.get("prompts")
        classes = value.class_map if prompts is None else prompts.classes
        for name in value.class_map:
            if name not in classes:
                raise ValueError(
                    f"in class_map classes of prompts, not {name!r}{did_you_mean(name, classes)}"
                )
        return value

    @property
    def labelling(self) -> Labelling:
        """How images are labelled until tuning finds something better."""
        return Labelling(self.labels, self.score, self._pinned, self.detector, self.diffusion)

    @property
    def generation(self) -> Generation:
        """What the images of a round depend on."""
        return Generation(
            self.prompts, self.tasks, self.diffusion, self.loop.images_per_prompt, self.detector.device
        )

    @property
    def training_policy(self) -> TrainingPolicy:
        """Which labels a round trains with."""
        return TrainingPolicy(self.dataset, self.disagreement)

    def pin(self, keys: Iterable[str]) -> Config:
        """Remember the dotted keys that the user set for this command, and return the configuration."""
        self._pinned = frozenset(keys)
        return self

    def dump(self) -> dict[str, Any]:
        """Return all settings as JSON values, defaults included; `load_config` reads them back."""
        return self.model_dump(mode="json")


def resumable_keys(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that may change when a run is continued."""
    yield from (f"{prefix}{key}" for key in section.RESUMABLE)
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from resumable_keys(field.annotation, f"{prefix}{name}.")
