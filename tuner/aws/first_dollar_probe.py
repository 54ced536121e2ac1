"""The script of the one job of `tuner doctor --first-dollar`: it writes down when, and when it was told to end.

It exists to make visible what AWS does not document: how long a file of the checkpoint folder takes to reach S3, and
whether a SIGTERM reaches a script under our bootstrap. It travels into a container: standard library only, Python 3.8,
no other module of ours. Each start begins its own files, so that an interruption that happens to come is seen, too.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

_now = time.time  # noqa: TID251 - it runs in a container, where nothing of ours is
_sleep = time.sleep  # noqa: TID251 - as above


def write(path: Path, **facts: float) -> None:
    """All of it or nothing: names that end in .sagemaker-ignore are not uploaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".sagemaker-ignore")
    unfinished.write_text(json.dumps(facts), encoding="utf-8")
    unfinished.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--beat", type=float, default=5.0, help="seconds between two files")
    parser.add_argument("--seconds", type=float, default=240.0, help="when to end if nobody says so")
    args = parser.parse_args()
    folder = Path(os.environ.get("TUNER_CHECKPOINT_DIR") or "/opt/ml/checkpoints")
    model = Path(os.environ.get("SM_MODEL_DIR") or "/opt/ml/model")
    started_at = _now()
    run = int(started_at * 1000)

    def told(*_: object) -> None:
        """Both ways out, to see which of them still works: the checkpoint sync and the model's upload."""
        for place in (folder, model):
            write(place / f"sigterm-{run}.json", at=_now(), started_at=started_at)
        sys.exit(0)

    signal.signal(signal.SIGTERM, told)
    sys.stdout.write("probing\n")
    number = 0
    while _now() < started_at + args.seconds:
        number += 1
        write(folder / f"beat-{run}-{number:05d}.json", at=_now(), started_at=started_at)
        _sleep(args.beat)


if __name__ == "__main__":
    main()
