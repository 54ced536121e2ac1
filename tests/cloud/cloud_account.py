"""An account of AWS on this machine, as a user has it: a folder, an environment, and commands."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from served import moto_client

from tuner.local.jobdir import job_names

PATIENCE_S = 240


class Program:
    """A process whose output is read as it comes, so that a test can wait for a line of it."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def until(self, good: Callable[[str], bool]) -> str:
        """The first line from here on that is so. Fails if the program ends before it."""
        while (line := self._lines.get(timeout=PATIENCE_S)) is not None:
            self.said.append(line)
            if good(line):
                return line
        raise AssertionError("".join(self.said))

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        while (line := self._lines.get(timeout=PATIENCE_S)) is not None:
            self.said.append(line)
        self._reader.join()
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@dataclass
class Account:
    """What a user has: a folder, an environment, and commands."""

    folder: Path
    moto_url: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def client(self, service: str):
        return moto_client(service, self.moto_url)

    def switch(self, **settings: object) -> None:
        """How the service behaves from the next call on."""
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        temporary = self.state_dir / "settings.new"
        temporary.write_text(json.dumps(settings))
        temporary.replace(self.state_dir / "settings.json")

    def program(self, *words: str) -> Program:
        return Program([sys.executable, "-m", "tuner", *words], self.folder, self.environment)

    def tuner(self, *words: str, code: int = 0) -> str:
        """One call of the command line; what it printed on standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "tuner", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    def json(self, *words: str):
        return json.loads(self.tuner(*words, "--json"))

    @staticmethod
    def wait_for(condition: Callable[[], bool]) -> None:
        end_at = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_at
            time.sleep(0.1)

    def jobs(self) -> list[str]:
        return job_names(self.state_dir)
