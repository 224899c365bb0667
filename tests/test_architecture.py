"""The structure holds: imports run one way, a heavy package has one home, and start-up loads none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffugen

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffugen"
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
    "daam": ("diffusion/", "miniature/"),
    "ultralytics": ("detectors/yolo",),
    "optuna": ("tune/",),
    "fiftyone": ("review/",),
    "pydantic": ("config/",),
    "sqlite3": ("run/",),
    "cv2": ("labels/", "miniature/", "report/"),
}

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "ultralytics",
    "fiftyone",
    "optuna",
    "cv2",
    "numpy",
    "matplotlib",
    "scipy",
    "pydantic",
)


def layer_of(relative: str) -> str | None:
    """``labels/score.py`` is of layer labels, ``errors.py`` of layer errors, ``__init__.py`` of none."""
    name = relative.split("/")[0].removesuffix(".py")
    return None if name == "__init__" else name


def imported(path: Path) -> Iterator[str]:
    """Every absolute module name that a file imports anywhere, inside functions and under TYPE_CHECKING
    too."""
    package = ["diffugen", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_file_keeps_the_structure(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    layer = layer_of(relative)
    assert layer is None or layer in ORDER, f"diffugen/{relative} has no place in ORDER"
    for name in imported(path):
        root, _, rest = name.partition(".")
        assert root not in ("loops", "tests"), (
            f"diffugen/{relative} imports {name}: the library does not know the loops"
        )
        homes = HOMES.get(root)
        if homes is not None:
            assert relative.startswith(homes), (
                f"diffugen/{relative} imports {root}, whose home is {', '.join(homes)}"
            )
        target = layer_of(rest.split(".")[0]) if root == "diffugen" and rest else None
        if layer is not None and target in ORDER:
            assert ORDER.index(target) <= ORDER.index(layer), (
                f"diffugen/{relative} imports {name}, which lies below it"
            )


def modules_after(*arguments: str) -> set[str]:
    """The modules loaded by a fresh interpreter that runs ``arguments``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
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


def test_public_names_resolve_and_only_they_do() -> None:
    for name in diffugen.__all__:
        assert getattr(diffugen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        diffugen.nothing_of_the_kind  # noqa: B018


def test_the_rules_can_fail(tmp_path: Path) -> None:
    bad = PACKAGE / "errors.py"
    assert list(imported(bad)) == ["__future__.annotations", "collections.abc.Sequence"]
    assert layer_of("labels/score.py") == "labels"
    assert layer_of("labelshelpers.py") not in ORDER


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
    families = [path.name for path in PACKAGE.glob("*_*.py") if path.name.split("_")[0] in packages]
    assert not families, "such a file belongs inside the package"
