"""The rooms of the package: which one may import which, and that no imports go in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import hf_condense

PACKAGE = Path(hf_condense.__file__).parent
FLOORS = {
    "_version": 0,
    "base": 1,
    "source": 2,
    "condensed": 2,
    "networks": 3,
    "engine": 4,
    "methods": 5,
    "api": 5,
    "evaluation": 6,
    "pictures": 7,
    "demo_data": 7,
    "testing": 7,
    "web_page": 7,
    "__init__": 8,
    "cli": 9,
}
LOWER = r"condensed\.(files|scores)\b"  # rooms in `condensed/` that others stand on


def module_of(path: Path, root: Path) -> str:
    """Return the dotted name of a file below the package, without the package's own name."""
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    return name or "__init__"


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports_of(path: Path, root: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports: at its top, inside functions, and for types only."""
    package = root.name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room they lead to"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name == package or name.startswith(f"{package}."):
                yield resolved(name, root)


def resolved(name: str, root: Path) -> str:
    """Return the module that a dotted name leads to: itself, or the one that holds a name in it."""
    parts = name.split(".")[1:]
    while parts and not ((root / Path(*parts)).with_suffix(".py").is_file() or (root / Path(*parts)).is_dir()):
        parts.pop()
    return ".".join(parts) or "__init__"


def graph_of(root: Path) -> dict[str, set[str]]:
    """Return for every module the modules of the package that it imports."""
    graph = {module_of(path, root): set(imports_of(path, root)) for path in sorted(root.rglob("*.py"))}
    return {module: targets - {module} for module, targets in graph.items()}


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports between rooms that do not lead to a lower floor."""
    return [
        f"{module} -> {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if room_of(module) != room_of(target) and FLOORS[room_of(target)] >= FLOORS[room_of(module)]
    ]


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or nothing."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in finished:
            return []
        for target in sorted(graph.get(module, ())):
            if circle := visit(target, [*path, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module in graph_of(PACKAGE)} == FLOORS.keys()


def test_rooms_import_lower_floors_only() -> None:
    assert arrows_up(graph_of(PACKAGE)) == []


def test_no_imports_go_in_a_circle() -> None:
    assert circle_in(graph_of(PACKAGE)) == []


def test_files_and_scores_of_a_set_know_no_cards_pages_folders_and_repositories() -> None:
    above = {"card", "page", "hub", "folder", "dataset", "loading"}
    lower = {module: targets for module, targets in graph_of(PACKAGE).items() if re.match(LOWER, module)}
    assert len(lower) > 10
    parts = {target.split(".")[1] for targets in lower.values() for target in targets if re.match("condensed.", target)}
    assert not parts & above


def test_an_import_upwards_is_seen_even_inside_a_function(tmp_path: Path) -> None:
    root = tmp_path / "hf_condense"
    (root / "base").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "api.py").write_text("")
    (root / "base" / "cache.py").write_text("def f():\n    from hf_condense.api import x\n")
    assert arrows_up(graph_of(root)) == ["base.cache -> api"]


def test_a_circle_is_seen_even_among_type_only_imports(tmp_path: Path) -> None:
    root = tmp_path / "hf_condense"
    (root / "base").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "base" / "a.py").write_text("if TYPE_CHECKING:\n    from hf_condense.base.b import B\n")
    (root / "base" / "b.py").write_text("from hf_condense.base import a\n")
    assert circle_in(graph_of(root)) == ["base.a", "base.b"]
