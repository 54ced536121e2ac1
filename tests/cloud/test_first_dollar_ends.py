"""The one job of `doctor --first-dollar`, whose process is told to end: a scheduler, a logout, a shutdown."""

import signal

import yaml
from cloud_account import Account, Program

from tests.cloud.test_sweep_over_http import STUDY
from tuner.local.jobdir import open_job


def test_sigterm_stops_the_job_before_the_process_ends(account: Account, service: Program) -> None:
    account.switch(start_delay_s=600.0)
    code = account.folder / "code"
    code.mkdir()
    (code / "train.py").write_text("print('not run')\n")
    (account.folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    verb = account.program("doctor", "study.yaml", "--first-dollar", "--yes")
    try:
        verb.until(lambda line: line.endswith(": Starting\n"))
        verb.process.send_signal(signal.SIGTERM)
        assert verb.end() == 143, "".join(verb.said)
    finally:
        verb.kill()
    assert verb.said[-1].endswith(": asked to stop\n")
    [job] = account.jobs()
    account.wait_for(lambda: open_job(account.state_dir, job).rows()[-1].status == "Stopped")
    assert account.client("s3").list_objects_v2(Bucket="sweeps")["KeyCount"] == 0, "what it wrote is deleted"
