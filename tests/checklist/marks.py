"""Which tests name which rows, with `@pytest.mark.spec("ID-1", ...)` on a test, its class, its module or a parameter.

Read from the source, not by importing it: fast, and the same wherever the tests themselves cannot run. Ids are
therefore literal text.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from tests.checklist.rows import ChecklistError


@dataclass(frozen=True, slots=True)
class NamedTest:
    """A test function: its file relative to the repository, and its name (`Class::name` in a class)."""

    file: str
    name: str


def files_of_tests(folder: Path) -> list[Path]:
    """Every file that pytest takes tests from."""
    return sorted(folder.rglob("test_*.py"))


def read_marks(files: Iterable[Path], root: Path) -> dict[str, list[NamedTest]]:
    """The tests that show each id, in the order of files and lines. Raises ChecklistError."""
    found: dict[str, list[NamedTest]] = {}
    for file in files:
        name = file.relative_to(root).as_posix()
        for identifier, test in _marks_of(ast.parse(file.read_text(encoding="utf-8"), name), name):
            tests = found.setdefault(identifier, [])
            if test not in tests:
                tests.append(test)
    return found


def _marks_of(module: ast.Module, file: str) -> Iterator[tuple[str, NamedTest]]:
    variables = _variables(module)
    own = [variables["pytestmark"]] if "pytestmark" in variables else []
    used: set[ast.Call] = set()
    for function, names, decorators in _tests(module, (), own):
        for call in _spec_calls(decorators, variables):
            used.add(call)
            for argument in call.args:
                if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
                    raise ChecklistError(f"{file}:{call.lineno}: ids in a spec mark must be literal text")
                yield argument.value, NamedTest(file, "::".join((*names, function.name)))
    for node in ast.walk(module):
        if _is_spec(node) and node not in used:
            raise ChecklistError(f"{file}:{node.lineno}: this spec mark is on no test")


def _variables(body: ast.Module | ast.ClassDef) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in body.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }


def _tests(
    body: ast.Module | ast.ClassDef, names: tuple[str, ...], inherited: Sequence[ast.expr]
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, tuple[str, ...], list[ast.expr]]]:
    """Test functions, the classes that they are in, and the expressions that mark them."""
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield node, names, [*inherited, *node.decorator_list]
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            own = _variables(node).get("pytestmark")
            marks = [*inherited, *node.decorator_list, *([own] if own else [])]
            yield from _tests(node, (*names, node.name), marks)


def _spec_calls(expressions: Iterable[ast.expr], variables: Mapping[str, ast.expr]) -> list[ast.Call]:
    """The spec marks in these expressions, and in the module's variables that they mention."""
    found: list[ast.Call] = []
    mentioned: set[str] = set()
    waiting = list(expressions)
    while waiting:
        for node in ast.walk(waiting.pop(0)):
            if _is_spec(node):
                found.append(node)
            elif isinstance(node, ast.Name) and node.id in variables and node.id not in mentioned:
                mentioned.add(node.id)
                waiting.append(variables[node.id])
    return found


def _is_spec(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.mark.spec", "mark.spec")
