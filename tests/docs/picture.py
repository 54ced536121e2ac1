"""The README's picture: `python -m tests.docs.picture` runs the study `digits` and keeps one moment of its display.

Rules: nothing is drawn by hand. The study is run as `tuner launch` runs it, in a temporary directory, and what the
terminal showed when several trials had just resumed is written as SVG. It takes a few minutes.
"""

import os
import tempfile
from collections import deque
from io import StringIO
from pathlib import Path

from rich.console import Console

from tests.docs.pages import ROOT
from tuner.cli import live
from tuner.operations import context, launch
from tuner.operations.records import Signals
from tuner.reports.records import EngineView, EventLine

PICTURE = ROOT / "docs" / "pictures" / "live.svg"
WIDTH, EVENTS_SHOWN = 112, 7


class Camera(live.LiveDisplay):
    """The live display, recorded: of each moment the newest lines and the table."""

    def __init__(self) -> None:
        super().__init__(StringIO())
        self._lines: deque[EventLine] = deque(maxlen=EVENTS_SHOWN)
        self.taken = ""

    def event(self, line: EventLine) -> None:
        self._lines.append(line)

    def tick(self, view: EngineView) -> None:
        if self.taken or not worth_showing(view):
            return
        self._console = Console(
            file=StringIO(), record=True, width=WIDTH, color_system="truecolor", force_terminal=True
        )
        for line in self._lines:
            super().event(line)
        self._console.print(live.picture(view))
        self._console.print()  # room for the descenders of the last row
        self.taken = self._console.export_svg(title="tuner launch studies/digits/study.yaml", unique_id="live")


def worth_showing(view: EngineView) -> bool:
    """Half of the study is done, and several trials go on from a checkpoint."""
    resumed = [row for row in view.live if row.resumed_from and row.step]
    return sum(count for state, count in view.trials.items() if state.terminal) >= 10 and len(resumed) >= 3


def main() -> None:
    camera = Camera()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNER_LOCAL"] = str(Path(folder) / "state")
        store = context.open_store(f"sqlite:///{folder}/tuner.db")
        planned = launch.plan(ROOT / "studies" / "digits" / "study.yaml")
        launch.launch(launch.prepare(planned, store), store, display=camera, signals=Signals())
        store.close()
    PICTURE.write_text(camera.taken, encoding="utf-8")


if __name__ == "__main__":
    main()
