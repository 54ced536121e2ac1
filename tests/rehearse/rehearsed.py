"""Training scripts with one defect each, and a study around them. Each is the good one with a few lines replaced.

No script races with who looks at it, on however slow a machine. Most never end, so that none is over too early. From
its ninth step on a script that is to be interrupted waits for that, after one step at least, until it has been
interrupted as often as it is going to be; it knows by the records of starts that come back with its checkpoints. Those
records, and the metric of a step that it saves, are in the store before it goes on, so that an interruption takes
neither. The run without interruptions goes on when the rehearsal has seen each report and each save (`conftest`): by
when the first one was seen, the moments of the interruptions are drawn.
"""

import os
import textwrap
from pathlib import Path

STEPS, INTERRUPTIONS = 10, 2
ENDS = "LAST = 10\n"

BEFORE = """
    import json, os, random, signal, subprocess, sys, time
    from pathlib import Path

    FOLDER = Path(os.environ["TUNER_CHECKPOINT_DIR"])
    FILE, OLDER, METRICS = FOLDER / "state.json", FOLDER / "older.json", FOLDER / "metrics"
    JOB, RUN = os.environ["TRAINING_JOB_NAME"], os.environ["TUNER_RUN"]
    WATCHED = "-reference-" in JOB
    FRESH = {"epoch": 0, "w": 1.0, "v": 0.0}

    def load():
        for file in (FILE, OLDER):
            try:
                return json.loads(file.read_text())
            except (OSError, ValueError):
                pass
        return dict(FRESH)

    def save(state):
        unfinished = FOLDER / "state.json.sagemaker-ignore"
        unfinished.write_text(json.dumps(state))
        if FILE.exists():
            FILE.replace(OLDER)
        unfinished.replace(FILE)

    def train(state):
        state["epoch"] += 1
        state["v"] = 0.9 * state["v"] - 0.05 * state["w"]
        state["w"] += state["v"]

    said = 0

    def report(state):
        global said
        print(f"epoch={state['epoch']} loss={state['w'] ** 2}", flush=True)
        said += 1
        until(lambda: sum(file.read_bytes().count(b"\\n") for file in METRICS.glob(f"*-{RUN}-*.jsonl")) >= said)
        until_stored()
        if WATCHED:
            until((FOLDER / "runs" / f"heard-{said}").exists)

    def until(condition):
        while not condition():
            time.sleep(0.002)

    # Whatever is in the folder by now. The look of the agent that takes the first probe may have begun before.
    def until_stored():
        for turn in range(2 if "-interrupted-" in JOB else 0):
            probe = METRICS / f"probe-{turn}-{RUN}-{said}"
            probe.touch()
            until(METRICS.joinpath(probe.name + ".sagemaker-uploaded").exists)
            probe.unlink()

    def saves_seen():
        return len(list((FOLDER / "runs").glob("saved-*")))

    def stamp():
        file = FOLDER / "state.json"
        return file.exists() and (file.stat().st_ino, file.stat().st_mtime_ns)

    def wait_to_be_interrupted(state):
        starts = len(list((FOLDER / "runs").glob("*.json")))
        if "-interrupted-" in JOB and state["epoch"] >= 9 and starts <= 2:
            time.sleep(600)

    LAST = 10 ** 6
"""

AFTER = """
    until_stored()
    state = load()
    while state["epoch"] < LAST:
        time.sleep(0.05)
        train(state)
        report(state)
        before, seen = stamp(), saves_seen()
        save(state)
        if WATCHED and stamp() != before:
            until(lambda: saves_seen() > seen)
        wait_to_be_interrupted(state)
"""

GOOD = ""
FORGETS_TO_LOAD = "load = lambda: dict(FRESH)"
RESETS_THE_OPTIMIZER = """
    load_all = load
    load = lambda: load_all() | {"v": 0.0}
"""
SEEDED_BY_THE_CLOCK = """
    random.seed(time.time_ns())
    def train(state):
        state["epoch"] += 1
        state["w"] *= random.uniform(0.8, 1.0)
"""
NEVER_SAVES = ENDS + "save = lambda state: None"
SAVES_AT_ITS_END = """
    LAST = 10
    save_now = save
    save = lambda state: save_now(state) if state["epoch"] == 10 else None
"""
# One write of always the same length: a kill at any moment leaves the file whole, so that only the rehearsal tears it.
IN_PLACE = """
    LENGTH = 100
    def save(state):
        file = os.open(FILE, os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(file, json.dumps(state).ljust(LENGTH).encode(), 0)
        os.close(file)
"""
ONE_FILE = """
    def load():
        return json.loads(FILE.read_text()) if FILE.exists() else dict(FRESH)
    def save(state):
        unfinished = FOLDER / "state.json.sagemaker-ignore"
        unfinished.write_text(json.dumps(state))
        unfinished.replace(FILE)
"""
WRITES_IN_PLACE = (
    IN_PLACE
    + """
    def load():
        return json.loads(FILE.read_text()) if FILE.exists() else dict(FRESH)
"""
)
WRITES_IN_PLACE_BESIDE_A_LOG = (
    WRITES_IN_PLACE
    + """
    LOG = FOLDER / "train.log"
    def report(state):
        with LOG.open("a") as file:
            file.write("a line of a log, and a long one, so that it is the largest of all files\\n" * 9)
        print(f"epoch={state['epoch']} loss={state['w'] ** 2}", flush=True)
"""
)
PADS_ITS_ONE_FILE = WRITES_IN_PLACE + "    LENGTH = 4096\n"
WRITES_IN_PLACE_AND_BEGINS_ANEW = (
    IN_PLACE
    + """
    def load():
        try:
            return json.loads(FILE.read_text())
        except (OSError, ValueError):
            return dict(FRESH)
"""
)
ELSEWHERE = """
    LAST = 10
    FILE = OLDER = Path("state.json")
    def save(state):
        FILE.write_text(json.dumps(state))
"""
HALF_ELSEWHERE_AND_NEEDED = """
    load_all, save_all = load, save
    def load():
        state = load_all()
        if state["epoch"]:
            state["v"] = json.loads(Path("momentum.json").read_text())
        return state
    def save(state):
        Path("momentum.json").write_text(json.dumps(state["v"]))
        save_all(state)
"""
HALF_ELSEWHERE_AND_FORGOTTEN = HALF_ELSEWHERE_AND_NEEDED.replace(
    'if state["epoch"]:', 'state["v"] = 0.0\n        if Path("momentum.json").exists():'
)
OF_THIS_TEST = f"momentum-of-a-rehearsed-script-{os.getpid()}.json"


def needed(path: str) -> str:
    """Half of the state lies in a file that an interruption takes."""
    return HALF_ELSEWHERE_AND_NEEDED.replace('Path("momentum.json")', f'Path("{path}").expanduser()')


FAILS_AT_ONCE = "raise SystemExit('no GPU was found')"
SAYS_NOTHING = ENDS + "report = lambda state: None"
# Other workers run tests that look for it as well, and find their own.
SLEEPER = f"3600.{os.getpid():010}"
FORKS_AND_IGNORES_SIGTERM = f"""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "{SLEEPER}"], start_new_session=True)
"""

STUDY = """
    name: rehearsed
    objective: {metric: loss, direction: minimize}
    space: {lr: {type: float, low: 0.1, high: 0.2}}
    trials: 1
    training:
      entry_point: train.py
      instance_types: [ml.g5.xlarge]
      metrics: [{name: loss, regex: 'loss=([-+0-9.eEnaif]+)', step_regex: 'epoch=([0-9]+)'}]
"""


def write_study(folder: Path, defect: str, study: str = STUDY) -> Path:
    """A study file and its script; the defect replaces what was defined before it."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text("".join(textwrap.dedent(part) for part in (BEFORE, defect, "\n", AFTER)))
    file = folder / "study.yaml"
    file.write_text(textwrap.dedent(study))
    return file
