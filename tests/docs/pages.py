"""README, CONTRIBUTING and `docs/` in pieces: pages, sections, tables, lists of keys, fenced blocks and commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
TEXT = "\n".join(TEXTS.values())


def section(page: str, heading: str) -> str:
    """What stands under a heading of a page, up to the next one of any level."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", without_fences(TEXTS[page]), re.MULTILINE | re.DOTALL
    )
    assert found, f"{page} has no section {heading!r}"
    return found[1]


def table(first_cell: str) -> list[list[str]]:
    """The rows of the one table, in any page, whose header begins with this cell; no cell holds a bar."""
    lines = without_fences(TEXT).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(f"| {first_cell} |")]
    assert len(starts) == 1, f"{len(starts)} tables begin with {first_cell!r}"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip()[1:-1].split("|")])
    return rows


def entries(page: str) -> dict[str, str]:
    """The entries of a page's lists: "- `key`, `key` (default `x`): text", by what stands before the text."""
    head = r"`[^`]+`(?:, `[^`]+`)*(?: \(.*?\))?"
    found = re.findall(rf"^- ({head}): (.*?)(?=^- |^#|^$|\Z)", TEXTS[page], re.MULTILINE | re.DOTALL)
    return {head: " ".join(body.split()) for head, body in found}


def open_points() -> list[tuple[str, str, str]]:
    """What AWS leaves open: what is assumed, the switch that turns it, and what is found out, of each point."""
    points = re.findall(
        r"^- Assumed: (.*?)^- Switch: (.*?)^- Found out: (.*?)(?=^#|\Z)", marked("open"), re.MULTILINE | re.DOTALL
    )
    return [tuple(" ".join(text.split()) for text in point) for point in points]


def code(text: str) -> list[str]:
    """What stands in backticks, outside of fenced blocks."""
    return re.findall(r"`([^`]+)`", without_fences(text))


def marked(name: str, text: str = TEXT) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    found = re.findall(rf"<!-- {name} -->(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert len(found) == 1, f"{len(found)} blocks are marked {name}"
    return found[0]


def blocks(*languages: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of these languages."""
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands() -> Iterator[list[str]]:
    """Every call of `tuner` in a shell block, as words without the program's name."""
    typed = [line.strip() for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    typed += [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    for line in typed:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words[:1] == ["tuner"]:
                yield words[1 : words.index(">")] if ">" in words else words[1:]


def without_fences(text: str) -> str:
    """The text without fenced blocks, whose comments look like headings."""
    return re.sub(r"^ *```\w+\n.*?^ *```$\n", "", text, flags=re.MULTILINE | re.DOTALL)
