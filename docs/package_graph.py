"""Which package of DiffuGen imports which.

Reads the source with `ast`, so nothing is imported or run. Does not know which imports are allowed
(tests/test_architecture.py does) or how they are drawn.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from docs.layered_layout import Graph

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffugen"


def package_of(relative: str) -> str | None:
    """Return ``labels`` for ``labels/score.py``, ``errors`` for ``errors.py``, None for ``__init__.py``."""
    name = relative.split("/")[0].removesuffix(".py")
    return None if name == "__init__" else name


def imported(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield every name that a file imports, made absolute; inside functions and under TYPE_CHECKING too."""
    parts = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def read_imports() -> tuple[Graph, dict[str, set[str]]]:
    """Read ``diffugen/`` and ``loops/``.

    Returns:
        The imports between packages, with ``loops`` as one of them, and for each other library the packages
        that import it.
    """
    graph: Graph = {}
    users: dict[str, set[str]] = defaultdict(set)
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "loops").glob("*.py")]):
        inside = path.is_relative_to(PACKAGE)
        package = package_of(path.relative_to(PACKAGE).as_posix()) if inside else "loops"
        if package is None or package.startswith("_"):
            continue
        targets = graph.setdefault(package, set())
        for name in imported(path):
            root, _, rest = name.partition(".")
            if root != "diffugen":
                users[root].add(package)
            elif (PACKAGE / rest.split(".")[0]).is_dir() or (PACKAGE / f"{rest.split('.')[0]}.py").is_file():
                targets.add(rest.split(".")[0])
    return {name: targets - {name} for name, targets in graph.items()}, dict(users)


def reachable(graph: Graph, start: str) -> set[str]:
    """Return everything that ``start`` imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += sorted(new)
    return found


def reduced(graph: Graph) -> Graph:
    """Return the graph without arrows that follow from a chain of others (its transitive reduction).

    Raises:
        ValueError: Packages import each other in a circle.
    """
    below = {name: reachable(graph, name) for name in graph}
    circle = sorted(name for name in graph if name in below[name])
    if circle:
        raise ValueError(f"these packages import each other in a circle: {', '.join(circle)}")
    return {
        name: {target for target in targets if not any(target in below[other] for other in targets)}
        for name, targets in graph.items()
    }
