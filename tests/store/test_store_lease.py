"""There is one writer at a time, and a former writer can no longer write."""

from dataclasses import replace
from datetime import timedelta

import pytest
from store_records import ME, NOW, OTHER, later, study

from tuner.core.records import Holder, Lease
from tuner.store.store import LeaseHeld, LeaseLost, Store, StudyNotFound


def alive(_: Holder) -> bool:
    return False


def dead(_: Holder) -> bool:
    return True


@pytest.fixture
def study_id(store: Store) -> int:
    return store.create_study(study()).id


def test_the_first_takes_it(store: Store, study_id: int) -> None:
    lease = store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)
    assert lease == Lease(study_id=study_id, fence=1, expires_at=later(30))
    found = store.study_by_id(study_id)
    assert (found.holder, found.fence, found.lease_expires_at) == (ME, 1, later(30))


def test_the_second_is_refused_and_learns_the_holder(store: Store, study_id: int) -> None:
    store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)
    with pytest.raises(LeaseHeld, match=r"study digits is driven by pid 11 on here, .* until 12:00:30") as no:
        store.acquire(study_id, OTHER, now=later(29), period_s=30, gone=alive)
    assert (no.value.holder, no.value.expires_at) == (ME, later(30))


@pytest.mark.parametrize(("after_s", "gone"), [(30, alive), (1, dead)])
def test_an_expired_or_dead_holder_is_taken_over(store: Store, study_id: int, after_s: int, gone) -> None:
    old = store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)
    new = store.acquire(study_id, OTHER, now=later(after_s), period_s=30, gone=gone)
    assert new.fence == old.fence + 1
    with pytest.raises(LeaseLost, match=r"study 1 \(fence 1\)"):
        store.renew(old, now=later(after_s), period_s=30)
    store.release(old)  # no error, and the new lease stays
    assert store.study_by_id(study_id).holder == OTHER


def test_a_process_may_take_its_own_lease_again(store: Store, study_id: int) -> None:
    store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)
    assert store.acquire(study_id, ME, now=later(1), period_s=30, gone=alive).fence == 2
    with pytest.raises(LeaseHeld):
        store.acquire(study_id, replace(ME, started="101"), now=later(2), period_s=30, gone=alive)


def test_renewing_extends_the_lease_and_records_a_sign_of_life(store: Store, study_id: int) -> None:
    lease = store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)
    renewed = store.renew(lease, now=later(20), period_s=30)
    assert renewed == replace(lease, expires_at=later(50))
    found = store.study_by_id(study_id)
    assert (found.lease_expires_at, found.last_tick_at, found.fence) == (later(50), later(20), 1)


def test_a_released_lease_is_free_at_once_and_the_fence_goes_on(store: Store, study_id: int) -> None:
    lease = store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)
    store.release(lease)
    found = store.study_by_id(study_id)
    assert (found.holder, found.lease_expires_at, found.fence) == (None, None, 1)
    with pytest.raises(LeaseLost):
        store.renew(lease, now=later(1), period_s=30)
    assert store.acquire(study_id, OTHER, now=later(1), period_s=30, gone=alive).fence == 2


def test_a_holder_that_renews_during_a_takeover_keeps_the_lease(store: Store, study_id: int) -> None:
    """The holder renews after its lease was read as expired and before it is taken: compare-and-set must notice."""
    lease = store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)

    def wakes_up(_: Holder) -> bool:
        if store.study_by_id(study_id).lease_expires_at == later(30):
            store.renew(lease, now=later(10), period_s=300)
            return True
        return False

    with pytest.raises(LeaseHeld) as no:
        store.acquire(study_id, OTHER, now=later(20), period_s=30, gone=wakes_up)
    assert no.value.expires_at == later(10) + timedelta(seconds=300)
    assert store.renew(lease, now=later(21), period_s=30).fence == lease.fence


def test_only_one_of_two_simultaneous_takeovers_succeeds(store: Store, study_id: int) -> None:
    """The other lease may end at the same moment as the expired one: the fence distinguishes them."""
    third = replace(OTHER, pid=33)
    store.acquire(study_id, ME, now=NOW, period_s=30, gone=alive)

    def is_faster(holder: Holder) -> bool:
        if holder == ME:
            store.acquire(study_id, third, now=NOW, period_s=30, gone=dead)
        return holder == ME

    with pytest.raises(LeaseHeld, match="pid 33 on there"):
        store.acquire(study_id, OTHER, now=NOW, period_s=30, gone=is_faster)
    assert store.study_by_id(study_id).fence == 2


def test_a_missing_study_has_no_lease(store: Store) -> None:
    with pytest.raises(StudyNotFound):
        store.acquire(9, ME, now=NOW, period_s=30, gone=alive)
