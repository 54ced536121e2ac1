"""The environment of an account that does not exist: keys that open nothing, and nothing of the user's own."""

from pathlib import Path

import pytest


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, region: str) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": region,
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "TUNER_STORE", "TUNER_LOCAL"):
        monkeypatch.delenv(name, raising=False)
