"""The README in pieces: its sections, tables, fenced blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", _without_fences(), re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {heading!r}"
    return found[1]


def table(first_cell: str) -> list[list[str]]:
    """The rows of the one table whose header begins with this cell; no cell holds a bar."""
    lines = _without_fences().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(f"| {first_cell} |")]
    assert len(starts) == 1, f"{len(starts)} tables begin with {first_cell!r}"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip()[1:-1].split("|")])
    return rows


def code(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def marked(name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    found = re.findall(rf"<!-- {name} -->(.*?)<!-- /{name} -->", TEXT, re.DOTALL)
    assert len(found) == 1, f"the README has {len(found)} blocks marked {name}"
    return found[0]


def blocks(*languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return [
        body
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
        if language in languages
    ]


def commands() -> Iterator[list[str]]:
    """Every call of `tuner` in a shell block, as words without the program's name."""
    typed = [line for block in blocks("sh") for line in block.splitlines()]
    typed += [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    for line in typed:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["tuner"]:
                yield words[1:]


def _without_fences() -> str:
    """The text without fenced blocks, whose comments look like headings."""
    return re.sub(r"^```\w+\n.*?^```$\n", "", TEXT, flags=re.MULTILINE | re.DOTALL)
