"""The FiftyOne dataset of a review: its name, its fields, its look in the App, and its saved views.

Knows which fields there are, not what fills them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffugen.config.labelling import TERMS
from diffugen.errors import DiffugenError
from diffugen.records import KINDS, VERDICTS, content_id
from diffugen.review.queue import AUDIT
from diffugen.review.samples import SHOWN
from diffugen.review.verdicts import undecided
from diffugen.run.store import RunStore

COLOURS = {
    "attention": "#ff8c1a",
    "model": "#3d9bff",
    "human": "#3cb44b",
    "rank": "#5c6670",
    "kinds": "#5c6670",
    "decision": "#2e9e4f",
}
"""Colours of fields in the App."""

OPACITY = 0.2
"""How much a mask covers: the object below must stay visible."""


def dataset_name(folder: Path) -> str:
    """Return the name of a run's dataset: that of its folder, or a hash of it if it has no Latin letters."""
    name = folder.resolve().name
    return name if re.search("[A-Za-z0-9]", name) else f"run-{content_id(name)}"


def prompt_field(attribute: str) -> str:
    """Return the name of the field that holds an attribute of the prompt."""
    return "prompt_" + re.sub("[^0-9A-Za-z_]", "_", attribute)


def open_dataset(store: RunStore) -> Any:
    """Return the run's ``fiftyone.Dataset``; made if there is none.

    Raises:
        DiffugenError: The database has a dataset of that name that belongs to another run.
    """
    import fiftyone as fo

    name = dataset_name(store.folder)
    run = {"folder": str(store.folder.resolve()), "created_at": store.summary().created_at}
    if not fo.dataset_exists(name):
        dataset = fo.Dataset(name, persistent=True)
        dataset.info = {"classes": []}
    else:
        dataset = fo.load_dataset(name)
        owner = dataset.info.get("run", {})
        if owner.get("created_at") != run["created_at"]:
            raise DiffugenError(
                f"the database already has a dataset {name!r}, of {owner.get('folder', 'another program')}, "
                f"not of {run['folder']}. Rename the folder of this run, or delete that dataset: fiftyone "
                f"datasets delete {shlex.quote(name)}"
            )
    dataset.info["run"] = run
    dataset.save()
    return dataset


def declare(dataset: Any, attributes: Iterable[Mapping[str, str]]) -> None:
    """Declare and arrange all fields, so that the App offers them even before an image has a value there.

    Args:
        dataset: The dataset.
        attributes: The attributes of each prompt.
    """
    prompt_fields = sorted({prompt_field(name) for values in attributes for name in values})
    _declare_fields(dataset, prompt_fields)
    _arrange(dataset, prompt_fields)
    dataset.save()


def make_editable(dataset: Any, class_names: Iterable[str]) -> None:
    """Allow masks, boxes and classes to be changed and drawn in the App."""
    schema = {"type": "detections", "component": "radio", "classes": sorted(class_names)}
    dataset.set_label_schemas(dict.fromkeys(SHOWN, schema))
    dataset.activate_label_schemas(list(SHOWN))


def _declare_fields(dataset: Any, prompt_fields: list[str]) -> None:
    import fiftyone as fo

    text, whole, number = fo.StringField, fo.IntField, fo.FloatField
    known = dataset.get_field_schema(flat=True)

    def add(name: str, kind: Any, **more: Any) -> None:
        if name not in known:
            dataset.add_sample_field(name, kind, **more)

    fields = {
        "rank": (whole, "place in the review queue; 1 is worst"),
        "severity": (number, "severity of the worst disagreement, 0 to 1"),
        "decision": (text, "verdict on the image"),
        "reviewer": (text, "who decided"),
        "decided_at": (fo.DateTimeField, "when"),
        "imported": (text, "verdict that the run has"),
        "strip": (text, "picture for the panel"),
        "prompt": (text, "prompt that the image was generated from"),
        "round": (whole, "round that generated the image"),
        "task": (text, "task that generated the image"),
        "image_id": (text, "id of the image in the run"),
    }
    for name, (kind, meaning) in fields.items():
        add(name, kind, description=meaning)
    add("kinds", fo.ListField, subfield=text, description="kinds of disagreement, or audit")
    add("why", fo.ListField, subfield=text, description="why the image is in the queue, in words")
    add("heat", fo.EmbeddedDocumentField, embedded_doc_type=fo.Heatmap, description="heat of the classes")
    for source in SHOWN:
        add(source, fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
        terms = TERMS if source == "attention" else ()
        for name in ("kind", "severity", "iou", *terms):
            add(f"{source}.detections.{name}", text if name == "kind" else number)
    for name in prompt_fields:
        add(name, text)


def _arrange(dataset: Any, prompt_fields: list[str]) -> None:
    import fiftyone as fo

    groups = {
        "tags": ["tags"],
        "labels": [*SHOWN, "heat"],
        "review": ["decision", "reviewer", "rank", "kinds", "why", "severity"],
        "generated from": ["prompt", *prompt_fields, "round", "task", "image_id"],
        "other": [
            *("id", "filepath", "metadata", "created_at", "last_modified_at"),
            *("decided_at", "imported", "strip"),
        ],
    }
    look = dataset.app_config
    look.sidebar_groups = [
        fo.SidebarGroupDocument(name=name, paths=paths, expanded=name in ("labels", "review"))
        for name, paths in groups.items()
    ]
    look.active_fields = fo.ActiveFields(paths=["decision", *SHOWN, "kinds"], exclude=False)
    look.color_scheme = fo.ColorScheme(
        color_by="field",
        opacity=OPACITY,
        fields=[{"path": path, "fieldColor": colour} for path, colour in COLOURS.items()],
    )


def save_views(dataset: Any) -> None:
    """Save the views ``queue``, ``undecided``, ``decided``, ``audit``, and one for each kind of dispute."""
    from fiftyone import ViewField

    queue = dataset.exists("rank").sort_by("rank")
    views = {
        "queue": (queue, "all images of the queue, worst first"),
        "undecided": (undecided(dataset), "images of the queue without a verdict"),
        "decided": (
            dataset.match(ViewField("decision").is_in(list(VERDICTS))).sort_by("rank"),
            "images with a verdict",
        ),
        AUDIT: (queue.match(ViewField("kinds").contains(AUDIT)), "images on which both sources agree"),
    }
    for kind in KINDS:
        view = queue.match(ViewField("kinds").contains(kind))
        views[kind] = (view, f"images of the queue with a disagreement of kind {kind}")
    for name, (view, meaning) in views.items():
        dataset.save_view(name, view, description=meaning, overwrite=True)
