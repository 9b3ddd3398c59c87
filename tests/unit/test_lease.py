"""One writer per output: what the second one meets, and when it may go on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ray_mlc.errors import LeaseError, ResourceError
from ray_mlc.scoring.lease import (
    LEASE_FILE,
    Owner,
    _start_time,
    check_holder,
    hold_lease,
    read_owner,
)
from ray_mlc.storage import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def elsewhere(owner: Owner) -> Owner:
    """The same owner on a host whose processes cannot be looked at."""
    return replace(owner, host="another-host", token="theirs")


def test_a_lease_is_there_while_held_and_gone_after(storage: Storage) -> None:
    with hold_lease(storage, expiry_s=1):
        owner = read_owner(storage)
        assert owner is not None
        assert owner.pid == psutil.Process().pid
    assert read_owner(storage) is None


def test_the_counter_moves_while_the_lease_is_held(storage: Storage) -> None:
    with hold_lease(storage, expiry_s=1, heartbeat_s=0.01):
        deadline = time.monotonic() + 10
        while (owner := read_owner(storage)) is None or owner.counter < 3:
            assert time.monotonic() < deadline
    assert read_owner(storage) is None


def test_a_second_writer_is_refused_and_told_who_the_first_is(storage: Storage) -> None:
    with (
        hold_lease(storage, expiry_s=30, heartbeat_s=0.05),
        pytest.raises(LeaseError, match=f"process {psutil.Process().pid} on "),
        hold_lease(storage, expiry_s=30),
    ):
        pytest.fail("two writers held the lease")


def test_a_killed_owner_of_this_host_is_replaced_at_once(storage: Storage) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(
        Owner.this_process(), pid=process.pid, started=_start_time(process.pid), token="killed"
    )
    assert not owner.is_dead
    process.kill()
    while not owner.is_dead:  # even before anybody has asked for its exit code
        time.sleep(0.01)
    process.communicate()
    assert owner.is_dead
    storage.put(LEASE_FILE, owner.to_bytes())
    waits: list[str] = []
    with hold_lease(storage, expiry_s=3600, say=waits.append):
        assert not waits


def test_a_pid_that_is_used_again_is_not_taken_for_the_owner(storage: Storage) -> None:
    owner = Owner.this_process()
    assert not owner.is_dead
    assert replace(owner, started=owner.started - 100).is_dead


def test_a_silent_owner_on_another_host_is_replaced_after_the_expiry(storage: Storage) -> None:
    storage.put(LEASE_FILE, elsewhere(Owner.this_process()).to_bytes())
    waits: list[str] = []
    started = time.monotonic()
    with hold_lease(storage, expiry_s=0.5, say=waits.append):
        assert time.monotonic() - started >= 0.5
    assert "another-host" in waits[0]


def test_an_owner_on_another_host_that_lives_is_not_replaced(storage: Storage) -> None:
    owner = elsewhere(Owner.this_process())
    storage.put(LEASE_FILE, owner.to_bytes())
    alive = threading.Event()

    def beat() -> None:
        for counter in range(1, 1000):
            if alive.wait(0.05):
                return
            storage.put(LEASE_FILE, replace(owner, counter=counter).to_bytes())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(LeaseError, match="another-host"), hold_lease(storage, expiry_s=30):
            pytest.fail("a living owner was replaced")
    finally:
        alive.set()
        thread.join()


def test_take_over_does_not_wait_and_the_loser_stops(storage: Storage) -> None:
    with hold_lease(storage, expiry_s=3600, heartbeat_s=0.02) as first:
        first.check()
        with hold_lease(storage, expiry_s=3600, take_over=True, heartbeat_s=3600):
            time.sleep(0.5)
            with pytest.raises(LeaseError, match="taken over"):
                first.check()


def test_a_loser_does_not_release_the_winners_lease(storage: Storage) -> None:
    # no heartbeat: one on its way would put back our own content, as `LocalStorage.update` says
    with hold_lease(storage, expiry_s=3600, heartbeat_s=3600):
        storage.put(LEASE_FILE, elsewhere(Owner.this_process()).to_bytes())
    owner = read_owner(storage)
    assert owner is not None
    assert owner.token == "theirs"


def test_a_damaged_lease_is_replaced_after_the_expiry(storage: Storage) -> None:
    storage.put(LEASE_FILE, b"{not json")
    with hold_lease(storage, expiry_s=0.3):
        assert read_owner(storage) is not None


def test_of_many_newcomers_one_gets_a_dead_owners_lease(storage: Storage) -> None:
    dead = replace(Owner.this_process(), pid=2**22 + 1, token="dead")
    storage.put(LEASE_FILE, dead.to_bytes())
    winners: list[int] = []
    refused: list[int] = []
    done = threading.Event()

    def compete(number: int) -> None:
        try:
            with hold_lease(storage, expiry_s=20, heartbeat_s=0.05):
                winners.append(number)
                done.wait(10)
        except LeaseError:
            refused.append(number)
            if len(refused) == 4:
                done.set()

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(winners) == 1
    assert len(refused) == 4


def test_a_clock_that_is_set_does_not_make_a_living_owner_dead(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Owner.this_process()
    day = 24 * 3600
    real = time.time
    # psutil derives start times from the time of boot, which moves with the clock
    monkeypatch.setattr(time, "time", lambda: real() + day)
    monkeypatch.setattr(psutil, "boot_time", lambda: real() - 10 * day)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: real() + day)
    assert not owner.is_dead
    with (
        hold_lease(storage, expiry_s=30, heartbeat_s=0.05) as lease,
        pytest.raises(LeaseError, match="another command is writing"),
        hold_lease(storage, expiry_s=30),
    ):
        pytest.fail("two writers held the lease")
    lease.check()


def test_a_process_of_another_container_on_the_same_host_is_not_taken_for_dead() -> None:
    owner = replace(Owner.this_process(), pid=2**22 + 1)
    assert owner.is_dead
    assert not replace(owner, pid_namespace="pid:[1]").is_dead


def test_a_writer_that_lost_its_lease_is_refused_before_it_commits(storage: Storage) -> None:
    with hold_lease(storage, expiry_s=3600, heartbeat_s=3600) as first:
        check_holder(storage, first.token)
        with hold_lease(storage, expiry_s=3600, take_over=True, heartbeat_s=3600) as second:
            check_holder(storage, second.token)
            with pytest.raises(LeaseError, match="taken over by process"):
                check_holder(storage, first.token)
    with pytest.raises(LeaseError, match="the lease is gone"):
        check_holder(storage, first.token)


def test_a_lease_that_is_gone_is_lost_and_not_made_again(storage: Storage) -> None:
    # as of a process that stood still while another took over, finished and released
    with hold_lease(storage, expiry_s=3600, heartbeat_s=0.02) as lease:
        storage.delete(LEASE_FILE)
        with pytest.raises(LeaseError, match="the lease is gone"):
            check_holder(storage, lease.token)
        lease._thread.join(timeout=10)
        with pytest.raises(LeaseError, match="the lease is gone"):
            lease.check()
    assert read_owner(storage) is None


def test_a_store_that_ignores_conditions_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(path: str, data: bytes) -> bool:
        storage.put(path, data)
        return True

    monkeypatch.setattr(storage, "create", create)
    with (
        pytest.raises(ResourceError, match=r"ignores conditional writes.*--no-lease"),
        hold_lease(storage, expiry_s=1),
    ):
        pytest.fail("a lease without conditional writes was held")
    assert read_owner(storage) is None
