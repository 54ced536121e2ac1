"""A class name means one thing in the whole package, so nobody has to ask which `Checkpoints` is meant.

Rules: one exception. `tuner.Study`, which users import, and the record of a study describe the same study.
"""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tuner"
# The public handle of a study, and its row.
TWICE = {"Study": ["api.py", "core/records.py"]}


def test_every_class_name_is_defined_once() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(file.relative_to(PACKAGE).as_posix())
    assert {name: files for name, files in found.items() if len(files) > 1} == TWICE
