"""Imports go one way, each heavy package has one home, and start-up loads no heavy package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import diffugen
from docs.package_graph import PACKAGE, ROOT, imported, package_of
from tests.support.children import WAIT_SECONDS

FILES = sorted(PACKAGE.rglob("*.py"))

ORDER = (
    "errors",
    "records",
    "config",
    "run",
    "prompts",
    "diffusion",
    "labels",
    "comparison",
    "dataset",
    "detectors",
    "tune",
    "review",
    "report",
    "miniature",
    "stages",
    "cli",
)

HOMES = {
    "diffusers": ("diffusion/", "miniature/"),
    "daam": ("diffusion/",),
    "ultralytics": ("detectors/yolo", "detectors/sam.py"),
    "optuna": ("tune/",),
    "fiftyone": ("review/",),
    "pydantic": ("config/", "run/results.py"),
    "sqlite3": ("run/",),
    "ray": ("run/ray_executor.py",),
    "yaml": ("config/", "detectors/yolo_checkpoint.py"),
    "tomllib": ("config/",),
    "cv2": ("labels/", "miniature/"),
    "scipy": ("comparison/",),
    "jinja2": ("report/", "review/"),
    "typer": ("cli/",),
    "rich": ("cli/",),
}

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "ultralytics",
    "fiftyone",
    "optuna",
    "ray",
    "cv2",
    "numpy",
    "matplotlib",
    "scipy",
    "pydantic",
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_keeps_the_structure(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    package = package_of(relative)
    assert package is None or package in ORDER, f"diffugen/{relative} is not in ORDER"
    for name in imported(path):
        root, _, rest = name.partition(".")
        assert root not in ("docs", "loops", "reports", "tests"), (
            f"diffugen/{relative} imports {name}: the library must work without it"
        )
        homes = HOMES.get(root)
        if homes is not None:
            assert relative.startswith(homes), (
                f"diffugen/{relative} imports {root}, whose home is {', '.join(homes)}"
            )
        target = package_of(rest.split(".")[0]) if root == "diffugen" and rest else None
        if package is not None and target in ORDER:
            assert ORDER.index(target) <= ORDER.index(package), (
                f"diffugen/{relative} imports {name}, which comes after it in ORDER"
            )


def modules_after(*arguments: str) -> set[str]:
    """The modules loaded by a fresh interpreter that runs ``arguments``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_import_loads_nothing_heavy() -> None:
    loaded = modules_after("-c", "import diffugen")
    assert "diffugen" in loaded
    assert not loaded & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    loaded = modules_after("-m", "diffugen.cli", "--help")
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_public_names_resolve_and_others_do_not() -> None:
    for name in diffugen.__all__:
        assert getattr(diffugen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        diffugen.nothing_of_the_kind  # noqa: B018


def test_imports_are_read_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "diffugen" / "labels" / "score.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import os.path, cv2\nfrom diffugen import run\nfrom . import shapes\nfrom ..records import Phrase\n"
        "if TYPE_CHECKING:\n    from diffugen.tune.study import tune\ndef late():\n    import optuna\n"
    )
    assert sorted(imported(path, tmp_path)) == [
        "cv2",
        "diffugen.labels.shapes",
        "diffugen.records.Phrase",
        "diffugen.run",
        "diffugen.tune.study.tune",
        "optuna",
        "os.path",
    ]


def test_a_file_belongs_to_its_first_folder() -> None:
    assert package_of("labels/score.py") == "labels"
    assert package_of("errors.py") == "errors"
    assert package_of("__init__.py") is None
    assert package_of("labelshelpers.py") not in ORDER


def test_the_top_level_stays_small() -> None:
    names = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {
        "__init__",
        "__pycache__",
        "py.typed",
    }
    assert names - {"_loops", "_configs"} <= set(ORDER)
    assert len(ORDER) <= 16


def test_no_file_continues_a_package_by_its_name() -> None:
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    strays = [path.name for path in PACKAGE.glob("*_*.py") if path.name.split("_")[0] in packages]
    assert not strays, "these files belong inside the package"
