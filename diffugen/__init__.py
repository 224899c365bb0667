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
    )
    from diffugen.config import (
        LabelSettings as LabelSettings,
    )
    from diffugen.config import (
        ScoreWeights as ScoreWeights,
    )
    from diffugen.config import (
        load_config as load_config,
    )
    from diffugen.dataset import (
        read_coco as read_coco,
    )
    from diffugen.dataset import (
        read_yolo as read_yolo,
    )
    from diffugen.dataset import (
        write_coco as write_coco,
    )
    from diffugen.dataset import (
        write_yolo as write_yolo,
    )
    from diffugen.detectors import (
        Detector as Detector,
    )
    from diffugen.detectors.yolo import (
        YoloDetector as YoloDetector,
    )
    from diffugen.errors import (
        ConfigError as ConfigError,
    )
    from diffugen.errors import (
        DiffugenError as DiffugenError,
    )
    from diffugen.errors import (
        ModelError as ModelError,
    )
    from diffugen.errors import (
        PromptError as PromptError,
    )
    from diffugen.errors import (
        StoreError as StoreError,
    )
    from diffugen.records import (
        Decision as Decision,
    )
    from diffugen.records import (
        Disagreement as Disagreement,
    )
    from diffugen.records import (
        HeatMaps as HeatMaps,
    )
    from diffugen.records import (
        ImageRecord as ImageRecord,
    )
    from diffugen.records import (
        Instances as Instances,
    )
    from diffugen.records import (
        LabelSet as LabelSet,
    )
    from diffugen.records import (
        Phrase as Phrase,
    )
    from diffugen.records import (
        Prompt as Prompt,
    )
    from diffugen.stages.verbs import (
        OpenRun as OpenRun,
    )
    from diffugen.stages.verbs import (
        compare as compare,
    )
    from diffugen.stages.verbs import (
        contact_sheet as contact_sheet,
    )
    from diffugen.stages.verbs import (
        decide as decide,
    )
    from diffugen.stages.verbs import (
        evaluate as evaluate,
    )
    from diffugen.stages.verbs import (
        export as export,
    )
    from diffugen.stages.verbs import (
        generate as generate,
    )
    from diffugen.stages.verbs import (
        label as label,
    )
    from diffugen.stages.verbs import (
        open_run as open_run,
    )
    from diffugen.stages.verbs import (
        relabel as relabel,
    )
    from diffugen.stages.verbs import (
        review_queue as review_queue,
    )
    from diffugen.stages.verbs import (
        show as show,
    )
    from diffugen.stages.verbs import (
        train as train,
    )
    from diffugen.stages.verbs import (
        tune_labels as tune_labels,
    )
    from diffugen.stages.verbs import (
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
