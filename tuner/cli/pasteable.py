"""Commands in texts are written without `--store`; printing adds the one of this call, so that they can be pasted."""

import re

# One that names a store, further on, has all it needs.
_COMMAND = re.compile(
    r"\btuner(?= (?:launch|resume|status|trials|show|logs|best|compare|stop|cancel|set|gc|audit|doctor|db|rehearse)\b"
    r"(?![^`;,()\n]* --store ))"
)


class _Call:
    """What this call of the command line was given."""

    store_option = ""


def name_store(option: str) -> None:
    """From now on `pasteable` adds this option; none if it is empty."""
    _Call.store_option = option


def pasteable(text: str) -> str:
    """A text whose commands name the store that this call was given."""
    option = _Call.store_option
    return _COMMAND.sub(lambda _: f"tuner{option}", text) if option else text
