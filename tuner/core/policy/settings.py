"""The part of a study file that rules need, as one record."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the study file says that decisions need."""

    trials: int
    parallel: int
    max_run_s: int
    max_wait_s: int | None
    max_faults: int
    poll_s: float
    stop_within_s: float
    stop_grace_s: float
    upload_allowance_s: float
    spot: bool
    instance_types: tuple[str, ...]
    instance_count: int
    rates_microusd_per_h: tuple[int, ...]  # of the instance types
    budget_microusd: int | None = None
    trial_budget_microusd: int | None = None
    deadline_at: datetime | None = None
    stall_after_s: float | None = None
    retry_exit_codes: frozenset[int] = frozenset()
    retry_logs: tuple[str, ...] = ()
    on_demand_after: int | None = None  # losses of a trial; None: never
    zones: tuple[str | None, ...] = (None,)  # in order of preference; (None,): SageMaker chooses

    @property
    def pools(self) -> int:
        """How many a spot job can choose from."""
        return len(self.instance_types) * len(self.zones)

    def rate_microusd_per_h(self, instance_type: str) -> int:
        """The rate of a listed instance type, both on spot and on demand: the discount is in the billed seconds."""
        return self.rates_microusd_per_h[self.instance_types.index(instance_type)]
