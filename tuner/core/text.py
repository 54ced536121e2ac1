"""How values look as text, on every surface of the command line.

Rules: text that comes from scripts, services or files is shown and never obeyed: what a terminal would act on, or a
reader could not see, is written as an escape. What is not known is a dash. Dollars of local studies carry "simulated".
Nothing but the standard library is imported here, so that errors can be printed without loading a library.
"""

from datetime import datetime

from tuner.core.records import Json

UNKNOWN = "-"
_CENT = 0.01
_KIBI = 1024
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def safe(text: object, keep: str = "") -> str:
    r"""The text with each character that does not print as an escape such as `\x1b`, except those in `keep`."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in words)


def safe_log(text: str) -> str:
    """Log text of a script: line ends and tabs stay."""
    return safe(text.replace("\r\n", "\n"), keep="\n\t")


def number(value: Json) -> str:
    """A metric or a parameter; at most six significant digits unless it is a whole number."""
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else safe(value)


def dollars(value: Json) -> str:
    """Cents for large amounts, more digits for small ones: a local sweep costs fractions of a cent."""
    if not isinstance(value, int | float):
        return UNKNOWN
    size = abs(value)
    digits = 2 if size >= 1 or size == 0 else 4 if size >= _CENT else 6
    return f"${value:,.{digits}f}"


def size(value: Json) -> str:
    """Bytes: `512 B`, `1.5 MiB`."""
    if not isinstance(value, int | float):
        return UNKNOWN
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < _KIBI:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= _KIBI
    return f"{amount:.1f} TiB"


def percent(value: Json) -> str:
    return f"{value:.1f}%" if isinstance(value, int | float) else UNKNOWN


def seconds(value: Json) -> str:
    """A duration: `12.3s`, `4m05s`, `3h07m`, `2d04h`."""
    if not isinstance(value, int | float):
        return UNKNOWN
    if value < _MINUTE_S:
        return f"{value:.1f}s" if value % 1 else f"{value:.0f}s"
    if value < _HOUR_S:
        return f"{value // _MINUTE_S:.0f}m{value % _MINUTE_S // 1:02.0f}s"
    if value < _DAY_S:
        return f"{value // _HOUR_S:.0f}h{value % _HOUR_S // _MINUTE_S:02.0f}m"
    return f"{value // _DAY_S:.0f}d{value % _DAY_S // _HOUR_S:02.0f}h"


def lost_work(known_s: Json, unknown_runs: int) -> str:
    """Lost training: `12.3s`, or `at least 12.3s` if some of it is not known."""
    return f"at least {seconds(known_s)}" if unknown_runs and known_s is not None else seconds(known_s)


def ago(moment: Json, now: datetime) -> str:
    """How long ago an ISO moment was."""
    if not isinstance(moment, str):
        return "never"
    return f"{seconds(max(0, int((now - datetime.fromisoformat(moment)).total_seconds())))} ago"


def clock_time(moment: Json) -> str:
    """An ISO moment to the second, in UTC."""
    return f"{moment[:10]} {moment[11:19]}Z" if isinstance(moment, str) else UNKNOWN


def steps_text(steps: list[int], shown: int = 12) -> str:
    """`4, 9, 12`: each step once, the first few of many."""
    each = sorted(set(steps))
    return ", ".join(str(step) for step in each[:shown]) + (", …" if len(each) > shown else "")


def counted(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
