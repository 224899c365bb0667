"""Workflows, hooks, and the citation agree with the Makefile, the pinned versions, and the package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import diffugen
from tests.support.children import WAIT_SECONDS

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML_FILES = sorted(
    [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, flags=re.MULTILINE))
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: Path) -> list[str]:
    """The shell commands of a workflow, those of several lines as one."""
    steps = [step for job in load(workflow)["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


def make_calls(text: str) -> set[str]:
    return set(re.findall(r"^\s*make (\w+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_file_is_valid_yaml(path: Path) -> None:
    assert isinstance(load(path), dict)


def test_workflows_are_the_two() -> None:
    assert [path.stem for path in WORKFLOWS] == ["checks", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_targets_and_paths_that_exist(path: Path) -> None:
    called = {target for command in commands(path) for target in make_calls(command)}
    assert called
    assert called <= TARGETS
    for command in commands(path):
        for name in re.findall(r"\btests/[\w/.]*", command):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_jobs_have_a_time_limit_and_no_right_to_write(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] > 0 for job in workflow["jobs"].values())


def test_tests_that_a_workflow_leaves_out_exist() -> None:
    names = [name for path in WORKFLOWS for command in commands(path) for name in deselected(command)]
    assert names
    for name in names:
        file, function = name.split("::")
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


def deselected(command: str) -> list[str]:
    return re.findall(r"--deselect (\S+)", command)


def test_ci_checks_before_it_tests() -> None:
    assert make_calls(CI) <= TARGETS
    assert CI.index("\nmake lint\n") < CI.index("\nmake test\n")


def test_make_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    names = re.findall(r"^make (\w+) +\S", listed.stdout, flags=re.MULTILINE)
    assert set(names) == TARGETS
    assert {"install", "demo", "test", "lint", "format", "fast", "check", "build", "clean"} <= TARGETS
    assert set(re.findall(r"\w+", MAKEFILE.split(".PHONY:")[1].splitlines()[0])) >= TARGETS


def test_hooks_have_the_pinned_ruff_and_leave_data_alone() -> None:
    config = load(ROOT / ".pre-commit-config.yaml")
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name in ("ruff", "ruff-format"):
        assert set(hooks[name]["additional_dependencies"]) <= set(pinned)
    for path in ("tests/fixtures/run-schema-3/data.yaml", "diffugen/miniature/weights/oracle/config.json"):
        assert re.search(config["exclude"], path)
    assert not re.search(config["exclude"], "diffugen/miniature/train.py")


def test_citation_has_the_version_and_the_paper() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == diffugen.__version__
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2309.00248"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads TOML from 3.11 on")
def test_one_address_of_the_repository() -> None:
    import tomllib

    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    home = urls["Homepage"]
    assert load(ROOT / "CITATION.cff")["repository-code"] == home
    texts = [
        path.read_text(encoding="utf-8")
        for path in [*YAML_FILES, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]
    ]
    addresses = {found for text in texts for found in re.findall(r"https://github\.com/[\w-]+/[\w-]+", text)}
    assert addresses == {home}


TESTS = sorted((ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_waits_for_children_have_a_timeout(path: Path) -> None:
    """A test that waits for ever hides which one it is."""
    for line, call, keywords in waits(path.read_text(encoding="utf-8")):
        assert "timeout" in keywords, f"{path}:{line}: {call}() without timeout=WAIT_SECONDS"


def waits(source: str) -> Iterator[tuple[int, str, set[str | None]]]:
    """The calls that wait for a process or a thread, each with its line and keywords."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
            runs = owner == "subprocess" and name in ("run", "call", "check_call", "check_output")
            if runs or name in ("communicate", "wait") or (name == "join" and not node.args):
                yield node.lineno, f"{owner}.{name}", {keyword.arg for keyword in node.keywords}


def test_waits_are_found() -> None:
    source = "subprocess.run(a)\np.communicate()\np.wait(5)\nt.join()\n', '.join(a)\nstage.run(b)\n"
    found = list(waits(source + "subprocess.run(a, timeout=3)"))
    assert [line for line, _, keywords in found if "timeout" not in keywords] == [1, 2, 3, 4]
    assert len(found) == 5
