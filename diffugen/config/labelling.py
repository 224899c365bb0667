"""How heat maps become labels, and how a label is scored: settings, score weights, and the two together.

These classes are the only declaration of these values: the configuration reads them, `diffugen.labels` works
with them, and tuning searches them. They know which values are allowed, not what the values do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from diffugen.config.values import Radius, Section, Share, Text, Weight, some_weight
from diffugen.records import content_id

if TYPE_CHECKING:
    from diffugen.config.sections import DetectorSettings, DiffusionSettings

Method = Literal["paper", "compete"]
Source = Literal["attention", "detector", "both"]
Refinement = Literal["none", "crf", "sam"]
Threshold = Literal["otsu"] | float
Fraction = Annotated[float, Field(gt=0, lt=1)]

METHODS: tuple[Method, ...] = get_args(Method)


class LabelSettings(Section):
    """Everything but the score weights that decides labels; see `diffugen.labels.label`.

    Attributes:
        method: ``paper`` thresholds the map of each class by itself; ``compete`` lets phrases compete for
            pixels first.
        rival_weight: With ``compete``, how much of the hottest other class's heat a class loses, in [0, 1].
        background_weight: With ``compete``, how much of the hottest background word's heat it loses.
        source: ``attention`` labels by heat maps, the paper's unsupervised labelling; ``detector`` has the
            detector that the run begins with label, its supervised one, with confidences as scores; no other
            label setting and no score weight counts then. ``both`` has that detector label what it knows, and
            attention the other classes; see `diffugen.labels.witness`.
        detector_confidence: With ``detector`` and ``both``, objects that the detector is less sure of do not
            count, in [0, 1].
        threshold: ``otsu``, or a fraction of the way from a map's minimum to its maximum, in (0, 1): higher
            is tighter. A mapping from classes to either; those that are missing have ``otsu``. ``adaptive``
            has such a mapping chosen from the run's own maps and images; see `diffugen.labels.thresholds`.
        refine: ``crf`` moves mask edges to where the image's colours change; see `diffugen.labels.refine`.
            ``sam`` has each object outlined by ``segmenter``; see `diffugen.labels.segmenter`.
        segmenter: With ``sam``, a checkpoint of a Segment Anything Model: a file, or the name of one that
            Ultralytics publishes; see `diffugen.detectors.sam`.
        erode_frac: Radius of the erosion, relative to the square root of the image area, in [0, 0.2).
        dilate_frac: Radius of the dilation that follows, in the same unit and range.
        min_area_frac: Smaller pieces, relative to the image area, are dropped as specks.
        max_area_frac: Larger instances are dropped: such a map did not single out an object.
        instances: ``pieces`` makes each connected component an instance, ``one`` makes one instance of all of
            them, ``largest`` keeps the largest alone, for prompts that name a single object.
        groups: From a pattern for layer groups (``"up@*"``) to the weight of their maps; see
            `diffugen.labels.heatmaps.group_weights`.
        step_weights: Weights of the first, middle and last third of the denoising steps.
        self_attention: How many times heat spreads to the cells that resemble each other by the model's
            self-attention, 0 to 4; above 0, images need ``diffusion.keep_self_attention``. See
            `diffugen.labels.heatmaps.combine`.
        accept: Labels with a lower score are dropped, in [0, 1].
    """

    FORMER: ClassVar[Mapping[str, str]] = {
        "witness": "source: both for witness: base, or source: attention for witness: none",
        "witness_confidence": "detector_confidence",
    }

    method: Method = "paper"
    rival_weight: Share = 0.2
    background_weight: Share = 0.0
    source: Source = "attention"
    detector_confidence: Share = 0.5
    threshold: Literal["otsu", "adaptive"] | Fraction | dict[str, Literal["otsu"] | Fraction] = "otsu"
    refine: Refinement = "none"
    segmenter: Text = "sam2.1_t.pt"
    erode_frac: Radius = 0.01
    dilate_frac: Radius = 0.01
    min_area_frac: Annotated[float, Field(ge=0, lt=1)] = 0.002
    max_area_frac: Annotated[float, Field(gt=0, le=1)] = 0.95
    instances: Literal["pieces", "one", "largest"] = "pieces"
    groups: Annotated[dict[str, Weight], AfterValidator(some_weight)] = Field(
        default_factory=lambda: {"*": 1.0}
    )
    step_weights: Annotated[tuple[Weight, Weight, Weight], AfterValidator(some_weight)] = (1.0, 1.0, 1.0)
    self_attention: Annotated[int, Field(ge=0, le=4)] = 0
    accept: Share = 0.0

    def threshold_of(self, class_name: str) -> Threshold:
        """Return how the map of a class is thresholded.

        As long as no thresholds were chosen for ``adaptive``, that is Otsu's method.
        """
        if isinstance(self.threshold, dict):
            return self.threshold.get(class_name, "otsu")
        return "otsu" if self.threshold == "adaptive" else self.threshold

    @property
    def hashed(self) -> dict[str, Any]:
        """What hashes of settings contain: JSON values under the names that they had when runs were made.

        Keys that earlier versions lacked are left out unless they are in use.
        """
        idle = set() if self.refine == "sam" else {"segmenter"}
        idle |= set() if self.self_attention else {"self_attention"}
        values = self.model_dump(mode="json", exclude={"source", "detector_confidence", *idle})
        witness = _AS_WITNESS.get(self.source, self.source)
        return {**values, "witness": witness, "witness_confidence": self.detector_confidence}

    @field_validator("max_area_frac")
    @classmethod
    def _above_the_smallest(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("min_area_frac", 0):
            raise ValueError(f"more than labels.min_area_frac, which is {info.data['min_area_frac']:g}")
        return value


_AS_WITNESS: Mapping[str, str] = {"attention": "none", "both": "base"}
"""From ``source`` to the value of ``witness``, which earlier versions had in its place."""

_CURRENT_NAMES = {"witness": "source", "witness_confidence": "detector_confidence"}


def with_current_names(settings: Any) -> Any:
    """Return label settings that a run keeps, JSON values, with the keys and values that they have now.

    What is no mapping is returned as it is.
    """
    if not isinstance(settings, dict):
        return settings
    kept = {_CURRENT_NAMES.get(key, key): value for key, value in settings.items()}
    if "witness" in settings:
        witness = settings["witness"]
        kept["source"] = next((now for now, then in _AS_WITNESS.items() if then == witness), witness)
    return kept


CERTAINTY = "certainty"
"""Name of the score term that only labels drawn by a decoder have."""


class ScoreWeights(Section):
    """Weights of the score's terms; only their ratios matter.

    The terms are defined in `diffugen.labels.score`.

    Attributes:
        box_size: Weight of a large box; the paper's, but large boxes are often leaks.
        heat_intensity: Weight of a hot mask.
        contrast: Weight of a mask that is hotter than its surroundings.
        compactness: Weight of a mask without arms, holes and scattered pieces.
        margin: Weight of a lead over competing phrases.
        separation: Weight of a heat map that falls into two levels.
        edge: Weight of a mask that ends where the image's colours change.
        certainty: Weight of a mask on which a decoder's networks agree; only labels that a decoder drew have
            this term, so it cannot be the only one.
    """

    PAPER: ClassVar[Mapping[str, float]] = {"box_size": 1.0, "heat_intensity": 1.0}
    """What ``score: paper`` stands for; all other terms are 0."""

    box_size: Weight = 0.0
    heat_intensity: Weight = 1.0
    contrast: Weight = 1.0
    compactness: Weight = 1.0
    margin: Weight = 1.0
    separation: Weight = 1.0
    edge: Weight = 0.0
    certainty: Weight = 0.0

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {**dict.fromkeys(cls.model_fields, 0.0), **cls.PAPER} if given == "paper" else given

    @model_validator(mode="after")
    def _not_all_zero(self) -> ScoreWeights:
        try:
            some_weight(self.model_dump(exclude={CERTAINTY}))
        except ValueError as error:
            raise ValueError(f"{error} besides {CERTAINTY}, which labels of attention lack") from error
        return self


TERMS = tuple(ScoreWeights.model_fields)
"""Names of the score's terms."""

HEAT_TERMS = tuple(name for name in TERMS if name != CERTAINTY)
"""Names of the terms that labels of attention have."""


@dataclass(frozen=True)
class DecoderRef:
    """A decoder that a run was taught; see `diffugen.labels.decoder`.

    Attributes:
        folder: Its folder, relative to the run's.
        id: Hash of what it was taught with.
    """

    folder: str
    id: str


@dataclass(frozen=True)
class Labelling:
    """What decides the labels of a round: label settings and score weights, of the configuration or as tuned.

    Attributes:
        settings: How heat maps become instances.
        weights: How an instance is scored.
        pinned: Dotted keys, such as ``labels.refine``, that the user set for this command: they win over
            tuned values.
        base: The detector that the run begins with; needed unless ``settings.source`` is ``attention``.
        diffusion: The model that decoders read features with.
        decoder: What draws the heat maps that become labels; None for attention itself.

    Raises:
        ValueError: The settings ask for a detector, and there is none.
    """

    settings: LabelSettings
    weights: ScoreWeights
    pinned: frozenset[str] = frozenset()
    base: DetectorSettings | None = None
    diffusion: DiffusionSettings | None = None
    decoder: DecoderRef | None = None

    def __post_init__(self) -> None:
        if self.settings.source != "attention" and self.base is None:
            raise ValueError(f"labels.source is {self.settings.source}, which needs a detector; pass base")

    @property
    def detector(self) -> DetectorSettings | None:
        """The detector that labels, alone or beside attention; None for attention alone."""
        return None if self.settings.source == "attention" else self.base

    @property
    def adaptive(self) -> bool:
        """Whether a threshold is to be chosen for each class."""
        return self.uses_heat and self.settings.threshold == "adaptive"

    def with_thresholds(self, chosen: Mapping[str, float]) -> Labelling:
        """Return the same labelling with these thresholds for classes, and Otsu's for the others."""
        return replace(self, settings=self.settings.changed(threshold=dict(chosen)))

    @property
    def uses_heat(self) -> bool:
        """Whether labels are made from heat maps: without, there is nothing to tune or to teach."""
        return self.settings.source != "detector"

    @property
    def terms(self) -> tuple[str, ...]:
        """The score terms that labels by heat maps have: ``certainty`` only where a decoder draws them."""
        return HEAT_TERMS if self.decoder is None else TERMS

    @property
    def segmenter(self) -> str | None:
        """The checkpoint of the segmenter that outlines objects; None for no such refinement."""
        return self.settings.segmenter if self.uses_heat and self.settings.refine == "sam" else None

    @property
    def needs_images(self) -> bool:
        """Whether labels depend on the pixels of the images, not on their heat maps alone."""
        return self.settings.refine != "none" or self.weights.edge > 0

    @property
    def method(self) -> str:
        """Provenance of labels: ``attention-`` and a hash of everything that decides them.

        With a decoder, it is ``taught-`` and such a hash; of a detector's labels alone, ``detector-``.
        """
        seen_by = [] if self.detector is None else [self._of_detector(self.detector)]
        if not self.uses_heat:
            return f"{_BY_DETECTOR}{content_id(self.settings.detector_confidence, *seen_by)}"
        unused = {"witness", "witness_confidence"} if self.detector is None else set()
        if self.settings.method == "paper":
            unused |= {"rival_weight", "background_weight"}
        # Earlier versions did not have these terms; without a weight, they leave labels as they were.
        unweighted = {name for name in ("separation", "edge", CERTAINTY) if not getattr(self.weights, name)}
        unweighted.update(set(TERMS).difference(self.terms))
        parts: list[Any] = [
            {key: value for key, value in self.settings.hashed.items() if key not in unused},
            self.weights.model_dump(exclude=unweighted),
            *seen_by,
        ]
        if self.decoder is not None:
            return f"taught-{content_id(*parts, self.decoder.id)}"
        return f"attention-{content_id(*parts)}"

    @staticmethod
    def _of_detector(detector: DetectorSettings) -> dict[str, Any]:
        values = detector.model_dump(mode="json")
        return {key: values[key] for key in detector.DECIDES_PREDICTIONS}

    def tuned(self, settings: LabelSettings, weights: ScoreWeights) -> Labelling:
        """Return the labelling with tuned values, except for the pinned ones."""
        return replace(
            self,
            settings=settings.changed(**self._pinned_values("labels", self.settings)),
            weights=weights.changed(**self._pinned_values("score", self.weights)),
        )

    def _pinned_values(self, name: str, section: Section) -> Mapping[str, object]:
        if name in self.pinned:
            return dict(section)
        return {
            key: value for key, value in section if any(_covers(pin, f"{name}.{key}") for pin in self.pinned)
        }


_BY_DETECTOR = "detector-"


def by_detector(method: str | None) -> bool:
    """Return whether a provenance (`Labelling.method`) is that of labels that a detector alone has made."""
    return method is not None and method.startswith(_BY_DETECTOR)


def _covers(pin: str, key: str) -> bool:
    """Return whether a dotted key is the other, or lies below it."""
    return pin == key or pin.startswith(f"{key}.")
