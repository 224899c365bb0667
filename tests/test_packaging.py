"""The distributions hold what the code looks for, and the wheel works without the source beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.children import WAIT_SECONDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NEEDED = (
    "diffugen/_loops/bootstrap.py",
    "diffugen/_configs/miniature.yaml",
    "diffugen/miniature/weights/diffusion/unet/diffusion_pytorch_model.safetensors",
    "diffugen/miniature/weights/detector/model.safetensors",
    "diffugen/py.typed",
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a source distribution, and a wheel built from that; without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked where no source is."""
    folder = tmp_path_factory.mktemp("wheel")
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def files(folder: Path) -> set[str]:
    """The files of a folder, without what Python compiled."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(unpacked: Path, *arguments: str) -> str:
    """The output of a fresh interpreter that sees the wheel before the source."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command,
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_whole_package(unpacked: Path) -> None:
    held = files(unpacked / "diffugen")
    assert {name for name in held if not name.startswith(("_loops/", "_configs/"))} == files(
        ROOT / "diffugen"
    )


def test_wheel_holds_loops_configurations_and_weights(unpacked: Path) -> None:
    for name in NEEDED:
        assert (unpacked / name).is_file(), name
    assert files(unpacked / "diffugen" / "_loops") == files(ROOT / "loops")
    assert files(unpacked / "diffugen" / "_configs") == files(ROOT / "configs")


@pytest.mark.parametrize("package", ["report", "review"])
def test_wheel_holds_the_templates_of_pages(unpacked: Path, package: str) -> None:
    assert list((unpacked / "diffugen" / package).rglob("*.html")), f"no template in {package}/"


def test_commands_work_from_the_wheel(unpacked: Path) -> None:
    assert Path(run(unpacked, "-c", "import diffugen; print(diffugen.__file__)")).is_relative_to(unpacked)
    assert "bootstrap" in run(unpacked, "-m", "diffugen.cli", "--help")
    assert "miniature" in run(unpacked, "-m", "diffugen.cli", "configs", "list")
    assert "bootstrap" in run(unpacked, "-m", "diffugen.cli", "loops", "list")
    assert "piano" in run(unpacked, "-m", "diffugen.cli", "prompts")


def test_source_distribution_holds_what_a_contributor_needs(dist: Path) -> None:
    [sdist] = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "Makefile",
        "constraints.txt",
        "loops/bootstrap.py",
        "docs/draw_packages.py",
        "CITATION.cff",
    ):
        assert name in names
    assert "tests/test_packaging.py" in names
