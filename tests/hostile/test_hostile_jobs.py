"""What a script may do to its instance, as the local service takes it: the job ends, nothing outside is touched."""

import os
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from below import contents

from tests.local.local_world import LocalWorld
from tuner.local.market import write_market

FORKING = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                # only its command line is left to find it by
                os.execve("/proc/self/exe", ["python", "-c", "import time; time.sleep(300)", TOKEN], {})
            time.sleep(300)
    print("forked", flush=True)
    while True:
        time.sleep(1)
"""


def left(token: str) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if token.encode() in Path(entry.path, "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("private", [True, False])
def test_nothing_is_left_of_a_script_that_forks_daemonizes_and_ignores_sigterm(
    world: LocalWorld, *, private: bool
) -> None:
    token = f"hostile-{os.getpid()}-{private}"
    world.settings(private_opt_ml=private, grace_s=0.2)
    world.create(script=FORKING.replace("TOKEN", repr(token)))
    world.printed("forked")
    first = world.until(lambda: left(token), lambda found: len(found) == 5)
    started_at = datetime.now(UTC).isoformat()
    market = {"started_at": started_at, "kind": "at", "at_s": [0.1], "down_s": 0.1}
    write_market(world.state_dir, "study-a", market)
    world.until(world.secondary, lambda seen: "Interrupted" in seen)
    assert not {*first} & {*left(token)}  # those of the second run may be there already
    world.printed("forked", run=2)
    world.until(lambda: left(token), lambda found: len(found) == 5)
    world.client.stop_training_job(TrainingJobName="job-1")
    assert world.ended()["TrainingJobStatus"] == "Stopped"
    assert left(token) == []


def test_a_failure_file_that_is_no_file_ends_the_job_all_the_same(world: LocalWorld) -> None:
    world.settings(private_opt_ml=False)
    for name, act in {
        "pipe": "os.mkfifo(path)",
        "link": "os.symlink('/etc/passwd', path)",
        "endless": "os.symlink('/dev/zero', path)",
        "folder": "os.mkdir(path)",
        "elsewhere": "os.rmdir(os.path.dirname(path) + '/data'); os.rmdir(os.path.dirname(path)); "
        "os.mkdir('other'); open('other/failure', 'w').write('not here'); "
        "os.symlink(os.path.abspath('other'), os.path.dirname(path))",
    }.items():
        world.create(
            name, f"import os, sys; path = os.environ['TUNER_ML_ROOT'] + '/output/failure'; {act}; sys.exit(3)"
        )
    for name in ("pipe", "link", "endless", "folder", "elsewhere"):
        seen = world.ended(name)
        assert (seen["TrainingJobStatus"], seen["FailureReason"]) == ("Failed", "AlgorithmError: ExitCode 3"), name


def test_artifacts_hold_files_and_never_what_a_link_leads_to(world: LocalWorld) -> None:
    world.create(
        script="""
        import os, socket
        os.chdir(os.environ["TUNER_ML_ROOT"] + "/model")
        open("weights", "w").write("w")
        os.symlink("/etc/passwd", "link")
        os.symlink("/etc", "folder")
        os.mkfifo("pipe")
        socket.socket(socket.AF_UNIX).bind("socket")
        data = os.path.abspath("../output/data")
        os.rmdir(data)
        os.symlink("/etc", data)
        """
    )
    assert world.ended()["TrainingJobStatus"] == "Completed"
    with tarfile.open(world.object("outputs/job-1/output/model.tar.gz")) as tar:
        kinds = {member.name: (member.isreg(), member.issym()) for member in tar}
    assert kinds == {"weights": (True, False), "link": (False, True), "folder": (False, True)}
    assert not world.object("outputs/job-1/output/output.tar.gz").exists()


def test_a_script_that_closes_its_folders_to_everybody_gets_a_fresh_disk_again(world: LocalWorld) -> None:
    world.create(
        script="""
        import os
        os.makedirs("closed/inside")
        open("closed/inside/file", "w").write("x")
        os.symlink("/etc", "closed/link")
        os.chmod("closed/inside", 0)
        os.chmod("closed", 0)
        """
    )
    before = Path("/etc").stat().st_mode
    assert world.ended()["TrainingJobStatus"] == "Completed"
    job = world.job()
    assert job is not None
    world.until(job.ml.exists, lambda there: not there)
    assert Path("/etc").stat().st_mode == before


def test_secrets_of_whoever_launches_reach_neither_job_nor_state(
    world: LocalWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "TUNER_STORE",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, f"hidden-{name}")
    world.create(
        script="""
        import os, pathlib
        parents = [pathlib.Path(f"/proc/{pid}/environ") for pid in ("self", os.getppid(), 1)]
        print(*(path.read_bytes() for path in parents if os.access(path, os.R_OK)))
        """
    )
    world.ended()
    for path, held in contents(world.state_dir):
        assert b"hidden-" not in held, path
