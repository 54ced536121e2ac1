"""A command that a text tells the user to run, as a value: the text is written once, and the call's options are added.

It exists so that a printed command can be pasted: it carries the `--store` of the call that printed it. Text of a
script or a service that looks like a command is a plain string, and stays as it is.

Rules: a command is kept as a value up to the place that prints it; there `render` quotes its words for a shell and adds
the options. `str` of a value gives the command without options. What is stored keeps a text and its remedy apart.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from tuner.core.records import Json

# Options of the parsed call that a printed command repeats, as words: `("--store", URL)`.
Options: TypeAlias = tuple[str, ...]

_LEFT_OPEN = "…"  # a value that the user is to fill in; a shell reads it as it is


@dataclass(frozen=True, slots=True, init=False)
class Command:
    """One call of the command line: `Command("resume", name, "--retry-failed")`. Words are not quoted."""

    verb: str
    args: tuple[str, ...]

    def __init__(self, verb: str, *args: str) -> None:
        object.__setattr__(self, "verb", verb)
        object.__setattr__(self, "args", args)

    def __str__(self) -> str:
        return self.line()

    def line(self, options: Options = ()) -> str:
        """The command as it is pasted into a shell."""
        return " ".join(["tuner", *map(_quoted, (*options, self.verb, *self.args))])


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """A text that may hold commands: `Message("go on with it: ", Command("resume", name))`."""

    parts: tuple[str | Command, ...]

    def __init__(self, *parts: "str | Command | Message") -> None:
        flat = [piece for part in parts for piece in (part.parts if isinstance(part, Message) else (part,))]
        object.__setattr__(self, "parts", tuple(flat))

    def __str__(self) -> str:
        return render(self, ())

    @property
    def commands(self) -> tuple[Command, ...]:
        """The commands in it, in order."""
        return tuple(part for part in self.parts if isinstance(part, Command))


def render(text: str | Command | Message, options: Options) -> str:
    """The text as a person reads it; each command in it repeats the options of the call."""
    if isinstance(text, str):
        return text
    parts = text.parts if isinstance(text, Message) else (text,)
    return "".join(part.line(options) if isinstance(part, Command) else part for part in parts)


def stored(what: str, remedy: Command) -> dict[str, Json]:
    """How a store keeps a text and the command to run once what it asks for is done."""
    return {"message": what, "remedy": [remedy.verb, *remedy.args]}


def from_stored(value: "Json | Mapping[str, Json]") -> Message:
    """The text that `stored` kept. Version 0.1.0 kept one string with the command in it, which is shown as it is."""
    if not isinstance(value, Mapping):
        return Message(str(value))
    what, remedy = str(value.get("message")), cast("list[str] | None", value.get("remedy"))
    return Message(what, ", then: ", Command(*remedy)) if remedy else Message(what)


def _quoted(word: str) -> str:
    known = word.removesuffix(_LEFT_OPEN)
    return word if shlex.quote(known) == known else shlex.quote(word)
