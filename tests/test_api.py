"""The Python API: its documentation's examples are run, and its names load lazily and resolve."""

from __future__ import annotations

import ast
import doctest
import re
from pathlib import Path

import pytest

import diffugen as dg
from diffugen.stages import verbs

ROOT = Path(__file__).parents[1]


def test_every_name_resolves_and_type_checkers_see_the_same_names() -> None:
    for name in dg.__all__:
        assert getattr(dg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        dg.nothing_of_the_kind  # noqa: B018
    tree = ast.parse(Path(dg.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0]
    declared = {
        alias.name: node.module
        for node in imports
        for alias in node.names
        if str(node.module).startswith("diffugen")
    }
    assert declared == dg._MODULE_OF


@pytest.mark.slow
def test_the_examples_of_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples of all verbs, one after the other on one run."""
    monkeypatch.chdir(tmp_path)
    functions = [
        value for value in vars(verbs).values() if getattr(value, "__module__", "") == verbs.__name__
    ]
    found = [test for value in functions for test in doctest.DocTestFinder(recurse=False).find(value)]
    examples = [
        example for test in sorted(found, key=lambda one: one.lineno or 0) for example in test.examples
    ]
    documented = {test.name.rpartition(".")[2] for test in found if test.examples}
    assert documented >= {name for name, module in dg._MODULE_OF.items() if module == verbs.__name__} - {
        "OpenRun"
    }
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(doctest.DocTest(examples, {"dg": dg}, "verbs", verbs.__file__, 0, None))
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.slow
def test_the_documented_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    namespace: dict[str, object] = {}
    exec(compile(code, "docs/python.md", "exec"), namespace)
    with dg.open_run("runs/notebook") as run:
        assert run.store.summary().images == 12
        assert Path("datasets/notebook/data.yaml").is_file()
        assert {one.reviewer for one in run.store.decisions()} <= {"ann"}
