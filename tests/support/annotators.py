"""What a person does in CVAT, Label Studio and labelme, done to the files that these tools read and write."""

from __future__ import annotations

import base64
import copy
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from PIL import Image

from tests.support.run_for_review import SIZE_WH

Points = Sequence[tuple[float, float]]


class Cvat:
    """The annotations of one task, exported as a zip file."""

    name = "cvat"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = xml.parse(folder / "annotations.xml").getroot()

    def image(self, image_id: str) -> Any:
        return self.root.find(f"image[@name='{image_id}.png']")

    def classes(self, image_id: str) -> list[tuple[str, str]]:
        """Class and source of each label."""
        return [
            (one.get("label", ""), one.findtext("attribute[@name='source']") or "")
            for one in self.image(image_id).findall("mask")
        ]

    def delete(self, image_id: str, index: int) -> None:
        image = self.image(image_id)
        image.remove(image.findall("mask")[index])

    def rename(self, image_id: str, index: int, name: str) -> None:
        self.image(image_id).findall("mask")[index].set("label", name)

    def draw(self, image_id: str, name: str, points: Points) -> None:
        flat = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
        xml.SubElement(self.image(image_id), "polygon", label=name, source="manual", points=flat)

    def mark(self, image_id: str, mark: str) -> None:
        xml.SubElement(self.image(image_id), "tag", label=mark, source="manual")

    def resize(self, image_id: str) -> None:
        self.image(image_id).set("width", "41")

    def damage(self, image_id: str) -> None:
        self.image(image_id).find("mask").set("rle", "1, 2, 3")

    def call(self, image_id: str, other: str) -> None:
        """Change the name of an image."""
        self.image(image_id).set("name", f"images/{other}.png")

    def saved(self) -> Path:
        file = self.folder.with_suffix(".zip")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("annotations.xml", xml.tostring(self.root))
        return file


class LabelStudio:
    """The tasks of one project, exported as JSON; an image that was touched is submitted."""

    name = "labelstudio"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks = json.loads((folder / "tasks.json").read_text())

    def task(self, image_id: str) -> dict[str, Any]:
        [found] = [one for one in self.tasks if one["data"]["image_id"] == image_id]
        return dict(found)

    def classes(self, image_id: str) -> list[tuple[str, str]]:
        result = self.task(image_id)["predictions"][0]["result"]
        names = {"labels": "attention", "model": "model"}
        return [(one["value"]["brushlabels"][0], names[one["from_name"]]) for one in result]

    def result(self, image_id: str) -> list[Any]:
        """The regions of the submitted annotation."""
        [task] = [one for one in self.tasks if one["data"]["image_id"] == image_id]
        if "annotations" not in task:
            result = copy.deepcopy(task["predictions"][0]["result"])
            task["annotations"] = [{"id": 1, "completed_by": 1, "was_cancelled": False, "result": result}]
        found: list[Any] = task["annotations"][0]["result"]
        return found

    def delete(self, image_id: str, index: int) -> None:
        del self.result(image_id)[index]

    def rename(self, image_id: str, index: int, name: str) -> None:
        self.result(image_id)[index]["value"]["brushlabels"] = [name]

    def draw(self, image_id: str, name: str, points: Points) -> None:
        width, height = SIZE_WH
        shares = [[100 * x / width, 100 * y / height] for x, y in points]
        about = {"original_width": width, "original_height": height, "image_rotation": 0}
        value = {"points": shares, "polygonlabels": [name], "closed": True}
        self.result(image_id).append(
            {"type": "polygonlabels", "from_name": "drawn", "to_name": "image", "value": value, **about}
        )

    def mark(self, image_id: str, mark: str) -> None:
        if mark == "reject":
            value = {"choices": ["reject"]}
            self.result(image_id).append({"type": "choices", "from_name": "verdict", "value": value})
        self.result(image_id)

    def resize(self, image_id: str) -> None:
        self.result(image_id)[0]["original_width"] = 41

    def damage(self, image_id: str) -> None:
        self.result(image_id)[0]["value"]["rle"] = self.result(image_id)[0]["value"]["rle"][:-4]

    def call(self, image_id: str, other: str) -> None:
        self.result(image_id)
        for task in self.tasks:
            if task["data"]["image_id"] == image_id:
                task["data"]["image_id"] = other

    def saved(self) -> Path:
        file = self.folder.with_suffix(".json")
        file.write_text(json.dumps(self.tasks))
        return file


class Labelme:
    """The folder that labelme saves into."""

    name = "labelme"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents = {one: json.loads(one.read_text()) for one in sorted(folder.glob("*.json"))}

    def content(self, image_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.contents[self.folder / f"{image_id}.json"]
        return found

    def classes(self, image_id: str) -> list[tuple[str, str]]:
        return [(one["label"], one["description"]) for one in self.content(image_id)["shapes"]]

    def delete(self, image_id: str, index: int) -> None:
        del self.content(image_id)["shapes"][index]

    def rename(self, image_id: str, index: int, name: str) -> None:
        self.content(image_id)["shapes"][index]["label"] = name

    def draw(self, image_id: str, name: str, points: Points) -> None:
        shape = {"label": name, "points": [list(one) for one in points], "shape_type": "polygon"}
        self.content(image_id)["shapes"].append({**shape, "group_id": None, "flags": {}})

    def mark(self, image_id: str, mark: str) -> None:
        self.content(image_id)["flags"][mark] = True

    def resize(self, image_id: str) -> None:
        self.content(image_id)["imageWidth"] = 41

    def damage(self, image_id: str) -> None:
        shape = self.content(image_id)["shapes"][0]
        shape["mask"] = shape["mask"][:60]

    def call(self, image_id: str, other: str) -> None:
        self.content(image_id)["diffugen"]["image_id"] = other

    def saved(self) -> Path:
        for file, content in self.contents.items():
            file.write_text(json.dumps(content))
        return self.folder


ANNOTATORS = (Cvat, LabelStudio, Labelme)
Annotator = Cvat | LabelStudio | Labelme


def png_base64(size_wh: tuple[int, int]) -> str:
    """A white PNG in base64, as labelme keeps a mask."""
    buffer = io.BytesIO()
    Image.new("L", size_wh, 255).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
