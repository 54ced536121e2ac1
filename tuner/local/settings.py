"""What can be switched in a state directory, read from its `settings.json`.

AWS leaves several things undocumented; each of them is a switch here, so that nothing of ours can come to depend on
one reading. The settings that a job lives by are copied into the job when it is created: a later edit changes
neither a running job nor a bill.

Rules: standard library only (the supervisor reads it); unknown keys and wrong types are refused, never ignored.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tuner.local.market import parse_market


class BadSettings(ValueError):  # noqa: N818 - named for what it says to the reader of the message
    """A `settings.json` that cannot be used; the message names the key."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Switches of a local SageMaker; times in seconds."""

    # Between SIGTERM and SIGKILL when a job is stopped; AWS documents 120 s.
    grace_s: float = 120.0
    # The share of the price that spot saves is drawn per job, evenly between these two.
    saving_low: float = 0.6
    saving_high: float = 0.7
    saving_seed: int = 0
    # How long an instance takes to start.
    start_delay_s: float = 0.2
    # The checkpoint agent: how often it looks, whether it leaves its marker files, whether a kill tears the newest
    # upload, and after how long it stops without a word (0: never), as was seen in the field.
    sync_interval_s: float = 0.5
    upload_markers: bool = True
    torn_upload: bool = False
    sync_stops_after_s: float = 0.0
    # Notice before an interruption: seconds from SIGTERM to SIGKILL. The default is no notice: AWS documents none.
    interruption_notice_s: float = 0.0
    # Whether MaxRuntimeInSeconds bounds all runs of a job together, or each of them. AWS does not say.
    max_runtime: Literal["all_runs", "each_run"] = "all_runs"
    # Whether TrainingTimeInSeconds counts the time between two runs; billed it is not. AWS does not say.
    training_time: Literal["up", "elapsed"] = "up"
    # Whether Describe shows the seconds of a job that runs. AWS does not say.
    billable_mid_run: bool = False
    # Whether ResourceInUse explains itself. AWS does not say in which words.
    name_taken: Literal["explained", "bare"] = "explained"
    # What StopTrainingJob says of a job that is stopping already. AWS does not say.
    stop_again: Literal["accept", "reject"] = "accept"
    # How much later than Describe the other two see a change.
    list_lag_s: float = 0.0
    search_lag_s: float = 0.0
    # Instances per type, {"ml.g5.xlarge": 4}; a type that is not named is unlimited.
    spot_quota: Mapping[str, int] = field(default_factory=dict)
    on_demand_quota: Mapping[str, int] = field(default_factory=dict)
    # Calls per second by operation, {"ListTrainingJobs": 2}; an operation that is not named is unlimited.
    rates: Mapping[str, float] = field(default_factory=dict)
    # Whether jobs get a private /opt/ml where the kernel allows it; and with it an empty /tmp, /var/tmp and /dev/shm
    # of their own, and everywhere an empty HOME.
    private_opt_ml: bool = True
    private_tmp: bool = False
    # Spot capacity for jobs of studies that have no market of their own, as the JSON of a market's file; {}: always.
    market: Mapping[str, object] = field(default_factory=dict)
    # Faults of the service: which share of all calls is throttled, or carried out with the answer lost; and whether
    # every caller's credentials have expired.
    throttled_share: float = 0.0
    lost_share: float = 0.0
    credentials_expired: bool = False
    fault_seed: int = 0
    # Events of a served service: for which changes, and which share comes twice, or later than what follows.
    events_of: Literal["every_change", "status_change"] = "every_change"
    events_twice_share: float = 0.0
    events_late_share: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, raw: object) -> "LocalSettings":
        """Check and build; raises `BadSettings`."""
        if not isinstance(raw, dict):
            raise BadSettings("local settings: one JSON object is expected")
        hints = get_type_hints(cls)
        if unknown := sorted(raw.keys() - hints.keys()):
            raise BadSettings(f"local settings: unknown key {unknown[0]!r}; known are {', '.join(sorted(hints))}")
        return cls(**{key: _checked(key, value, hints[key]) for key, value in raw.items()})


def read_settings(state_dir: Path) -> LocalSettings:
    """The settings of a state directory; defaults without a `settings.json`. Raises `BadSettings`."""
    try:
        text = (state_dir / "settings.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return LocalSettings()
    try:
        return LocalSettings.parse(json.loads(text))
    except json.JSONDecodeError as error:
        raise BadSettings(f"local settings: {state_dir / 'settings.json'} is not JSON: {error}") from error


def _checked(key: str, value: Any, hint: Any) -> Any:  # noqa: ANN401 - any JSON value comes in
    if get_origin(hint) is Literal:
        good = value in get_args(hint)
    elif key == "market":
        return _checked_market(value)
    elif get_args(hint):  # the mappings
        good = isinstance(value, dict) and all(_is_amount(amount) for amount in value.values())
    elif hint is bool:
        good = isinstance(value, bool)
    else:
        good = _is_amount(value) and (hint is float or isinstance(value, int))
    if not good:
        raise BadSettings(f"local settings: {key} cannot be {value!r}; expected {getattr(hint, '__name__', hint)}")
    return value


def _checked_market(value: Any) -> Any:  # noqa: ANN401 - as above
    try:
        if value != {}:
            parse_market(value)
    except ValueError as error:
        raise BadSettings(f"local settings: {error}") from error
    return value


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
