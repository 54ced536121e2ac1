"""The modules that travel into containers: Python 3.8, standard library, and nothing of ours that does not travel."""

import ast
import sys
from pathlib import Path

import pytest

from tuner.storage.bundle import _TRAVELLERS

TUNER = Path(__file__).parents[2] / "tuner"
TRAVELLERS = ("training.py", "bootstrap.py", *(path.name for path in sorted(TUNER.glob("_job_*.py"))))
# Attributes that came after 3.8, of the modules that these use.
LATER = {
    *("removeprefix", "removesuffix", "is_relative_to", "with_stem", "file_digest", "hardlink_to", "readlink", "walk"),
    *("waitstatus_to_exitcode", "pairwise", "batched", "to_thread", "UTC", "cache", "randbytes", "pidfd_open"),
}
BUILTIN_GENERICS = {"dict", "list", "tuple", "set", "frozenset", "type", "Popen", "PathLike", "Pattern", "deque"}


@pytest.fixture(params=TRAVELLERS)
def tree(request: pytest.FixtureRequest) -> ast.Module:
    return ast.parse((TUNER / request.param).read_text(), feature_version=(3, 8))


def test_the_bundle_has_each_of_them() -> None:
    assert set(_TRAVELLERS) == set(TRAVELLERS)
    assert len(TRAVELLERS) == 4


def test_only_the_standard_library_and_what_travels_is_imported(tree: ast.Module) -> None:
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if node.module not in {f"tuner.{name.removesuffix('.py')}" for name in TRAVELLERS if name[0] == "_"}:
                imported.add(str(node.module).partition(".")[0])
    assert imported <= sys.stdlib_module_names


def test_nothing_newer_than_3_8_is_used(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in LATER, f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Subscript):
            name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            assert name not in BUILTIN_GENERICS, f"line {node.lineno}: {name}[...] is evaluated, and 3.9 brought it"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = {getattr(side, "id", None) for side in (node.left, node.right)}
            assert not sides & {"str", "int", "float", "None"}, f"line {node.lineno}: unions came with 3.10"
        if isinstance(node, ast.With):
            assert not any(isinstance(item.context_expr, ast.Tuple) for item in node.items)
        if isinstance(node, ast.Call):
            assert not {"strict", "slots", "kw_only", "process_group"} & {keyword.arg for keyword in node.keywords}


def test_functions_are_short(tree: ast.Module) -> None:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    sizes = sorted(node.end_lineno - node.lineno + 1 for node in functions)
    assert sizes[-1] <= 60
    assert sizes[len(sizes) // 2] < 12
