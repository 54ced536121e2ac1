"""The one exception of the simulation: it ends a story, and no engine catches it."""


class Broken(Exception):  # noqa: N818 - it says what is the matter
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
