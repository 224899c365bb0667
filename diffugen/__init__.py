"""DiffuGen: labelled images of rare classes from text-to-image models, improved in a loop.

    import diffugen as dg

    run = dg.open_run("runs/piano", dg.load_config("miniature", ["prompts.count=8"]))
    dg.generate(run)
    dg.label(run)
    dg.show(run)  # a picture, inline in a notebook

docs/python.md has the rest. Importing this package loads the standard library only; a public name loads its
module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffugen.config import (
        Config as Config,
        LabelSettings as LabelSettings,
        ScoreWeights as ScoreWeights,
        load_config as load_config,
    )
    from diffugen.dataset import (
        read_coco as read_coco,
        read_yolo as read_yolo,
        write_coco as write_coco,
        write_yolo as write_yolo,
    )
    from diffugen.detectors import Detector as Detector
    from diffugen.detectors.yolo import YoloDetector as YoloDetector
    from diffugen.errors import (
        ConfigError as ConfigError,
        DiffugenError as DiffugenError,
        ModelError as ModelError,
        PromptError as PromptError,
        StoreError as StoreError,
    )
    from diffugen.records import (
        Decision as Decision,
        Disagreement as Disagreement,
        HeatMaps as HeatMaps,
        ImageRecord as ImageRecord,
        Instances as Instances,
        LabelSet as LabelSet,
        Phrase as Phrase,
        Prompt as Prompt,
    )
    from diffugen.stages.verbs import (
        OpenRun as OpenRun,
        compare as compare,
        contact_sheet as contact_sheet,
        decide as decide,
        evaluate as evaluate,
        export as export,
        generate as generate,
        label as label,
        open_run as open_run,
        relabel as relabel,
        review_queue as review_queue,
        show as show,
        teach as teach,
        train as train,
        tune_labels as tune_labels,
        write_report as write_report,
    )

__version__ = "0.1.0"

_HOMES = {
    "diffugen.config": ("Config", "LabelSettings", "ScoreWeights", "load_config"),
    "diffugen.dataset": ("read_coco", "read_yolo", "write_coco", "write_yolo"),
    "diffugen.detectors": ("Detector",),
    "diffugen.detectors.yolo": ("YoloDetector",),
    "diffugen.errors": ("ConfigError", "DiffugenError", "ModelError", "PromptError", "StoreError"),
    "diffugen.records": (
        "Decision",
        "Disagreement",
        "HeatMaps",
        "ImageRecord",
        "Instances",
        "LabelSet",
        "Phrase",
        "Prompt",
    ),
    "diffugen.stages.verbs": (
        "OpenRun",
        "compare",
        "contact_sheet",
        "decide",
        "evaluate",
        "export",
        "generate",
        "label",
        "open_run",
        "relabel",
        "review_queue",
        "show",
        "teach",
        "train",
        "tune_labels",
        "write_report",
    ),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    """Return the public name from its home module, imported on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
