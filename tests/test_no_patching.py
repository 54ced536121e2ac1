"""No test replaces a function, method or class of `tuner`: code is given what it uses, so tests hand in their own.

Read from the syntax of the tests. What may be patched: upper-case constants (limits that a test makes small), whatever
belongs to another package, an object that the test made itself, and the clock. `simulation/mutations.py` is the one
exception, because it breaks the code on purpose.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_ON_PURPOSE = TESTS / "simulation" / "mutations.py"
_CLOCK = "tuner.core.clock."


def patched(source: str) -> list[str]:
    """What a test module replaces of `tuner`, by its full name."""
    tree = ast.parse(source)
    imported = dict(_imports(tree))
    return [name for node in ast.walk(tree) for name in _replaced(node, imported) if not _may_be(name)]


def _may_be(name: str) -> bool:
    constant = name.rpartition(".")[2]
    return not name.startswith("tuner.") or name.startswith(_CLOCK) or constant == constant.upper()


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((each.asname or each.name.partition(".")[0], each.name) for each in node.names if each.asname)
            yield from ((each.name.partition(".")[0],) * 2 for each in node.names if not each.asname)
        elif isinstance(node, ast.ImportFrom):
            yield from ((each.asname or each.name, f"{node.module}.{each.name}") for each in node.names)


def _replaced(node: ast.AST, imported: dict[str, str]) -> Iterator[str]:
    """The full names that this part of a module replaces, of `tuner` and of others."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Attribute):
                yield _full_name(target, imported)
    elif isinstance(node, ast.Call) and node.args:
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("setattr", "delattr", "object", "multiple", "patch"):
            yield from _given(node.args, imported)


def _given(arguments: list[ast.expr], imported: dict[str, str]) -> Iterator[str]:
    """Of `setattr` and `patch`: either a dotted name as text, or an object and the name of its attribute."""
    target, *more = arguments
    if isinstance(target, ast.Constant) and isinstance(target.value, str):
        yield target.value
    elif more and isinstance(more[0], ast.Constant):
        yield f"{_full_name(target, imported)}.{more[0].value}"


def _full_name(node: ast.expr, imported: dict[str, str]) -> str:
    root, _, rest = ast.unparse(node).partition(".")
    return ".".join(part for part in (imported.get(root, "own"), rest) if part)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("monkeypatch.setattr(look, 'check', f)", ["tuner.operations.look.check"]),
        ("monkeypatch.setattr(Store, 'renew', f)", ["tuner.store.store.Store.renew"]),
        ("monkeypatch.setattr('tuner.cli.main._run', f)", ["tuner.cli.main._run"]),
        ("monkeypatch.setattr(look.views, 'best', f)", ["tuner.operations.look.views.best"]),
        ("context.setattr(look, 'check', f)", ["tuner.operations.look.check"]),
        ("mock.patch.object(Store, 'renew', f)", ["tuner.store.store.Store.renew"]),
        ("mock.patch('tuner.operations.look.check', f)", ["tuner.operations.look.check"]),
        ("look.check = f", ["tuner.operations.look.check"]),
        ("monkeypatch.setattr(look, '_TICKS_MISSED_MAX', 1)", []),
        ("monkeypatch.setattr(VirtualClock, 'wait', f)", []),
        ("monkeypatch.setattr(sys, 'stdin', f)", []),
        ("store = Store.open(url)\nmonkeypatch.setattr(store, 'renew', f)", []),
        ("engine.live.halted = 'text'", []),
    ],
)
def test_the_rule_tells_patches_apart(line: str, names: list[str]) -> None:
    head = (
        "import sys\nfrom tuner.operations import look\nfrom tuner.store.store import Store\n"
        "from tuner.core.clock import VirtualClock\n"
    )
    assert patched(head + line) == names


def test_no_test_replaces_a_part_of_the_product() -> None:
    files = [path for path in sorted(TESTS.rglob("*.py")) if path not in (_ON_PURPOSE, Path(__file__))]
    assert len(files) > 100
    found = {path.relative_to(TESTS).as_posix(): patched(path.read_text(encoding="utf-8")) for path in files}
    assert {name: names for name, names in found.items() if names} == {}
