# SPDX-License-Identifier: Apache-2.0
"""Guests that start from a saved state, and what tells that one of them runs twice: shown with one that does.

If a second copy could run unseen, no test of a migration that has gone wrong would mean anything. So here the same state
is started on two hosts on purpose, and everything that is there to notice it has to: the heartbeat client, the guest
itself, by its disk, on both sides, and whoever reads the disk afterwards.
"""

import os
import re
from pathlib import Path

import pytest

from moves import Pair
from ferrylab import LabError
from ferrylab import disk as disks
from ferrylab import processes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture(scope="module")
def pair():
    pair = Pair("test-saved", hosts=3, restore=True)
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def saved(pair):
    """A guest that has been saved and does not run."""
    guest = pair.guest("saved", memory=80, load="8:8", disk_load="1:1")
    guest.passes(1)
    pair.lab.save_guest("host-a", "saved")
    return guest


def image(pair, guest):
    return os.path.join(pair.lab.path, "shared", guest.name + ".load")


def start(pair, guest, host="host-a"):
    pair.ask(f"forget {guest.address}")
    pair.ferry(host, "vm", "start", guest.name)
    pair.wait_beats(guest, 100)
    guest.host = host


def disk_works(guest, passes=1):
    """The guest has gone through its disk so many times more, and ticked."""
    before = guest.report()["total"]
    while (now := guest.report()["total"])["disk_passes"] < before["disk_passes"] + passes:
        guest.beats(now["received"] + 100)
    assert now["disk_ticks"] > before["disk_ticks"]


def test_saved_guest_goes_on_again_and_again(pair, saved):
    assert pair.vms("host-a")["saved"]["state"] == "stopped"
    before = Path(image(pair, saved)).read_bytes()
    for _ in range(2):
        start(pair, saved)
        disk_works(saved)
        pair.healthy(saved)
        seen = saved.report()
        assert (seen["disk_wrong"], seen["disk_foreign"], seen["clock_back"], seen["pages_wrong"]) == (0, 0, 0, 0), seen
        pair.ferry("host-a", "vm", "stop", "saved")
        assert Path(image(pair, saved)).read_bytes() != before
    found = disks.check(image(pair, saved))
    assert found["single"] and len(found["lives"]) == 1, found


def test_saved_guest_moves_and_its_disk_with_it(pair, saved):
    start(pair, saved)
    for target in ("host-b", "host-a"):
        assert pair.migrate(saved, target)["status"] == "completed"
        disk_works(saved)
        pair.settled(saved, target)
        seen = saved.report()
        assert (seen["disk_wrong"], seen["disk_foreign"]) == (0, 0), seen
    pair.ferry("host-a", "vm", "stop", "saved")
    found = disks.check(image(pair, saved))
    assert found["single"], found


def test_disk_that_was_not_put_back_is_noticed(pair, saved):
    """As if all that was written since then had been lost, or written by somebody else: it is."""
    kept = os.path.join(pair.lab.path, "shared/saved", saved.uuid, "disks")
    start(pair, saved)
    disk_works(saved)
    pair.ferry("host-a", "vm", "stop", "saved")
    os.rename(kept, kept + ".away")
    try:
        start(pair, saved)
        disk_works(saved)
        assert saved.report()["disk_foreign"] > 10  # of a clean life: 0
        pair.ferry("host-a", "vm", "stop", "saved")
    finally:
        os.rename(kept + ".away", kept)
    found = disks.check(image(pair, saved))
    assert not found["single"] and found["doubles"] > 10, found


def test_guest_that_runs_twice_is_noticed_by_all(pair, saved):
    """host-c has never heard of it, so nothing keeps it from starting the guest too."""
    names = ("host-a", "host-c")
    consoles = [pair.host(name).outside("/var/lib/ferry/vms/saved.console.log") for name in names]
    kept = os.path.join(pair.lab.path, "shared/saved", saved.uuid, "disks")
    said = [os.path.getsize(path) if os.path.exists(path) else 0 for path in consoles]
    start(pair, saved)
    pair.ferry("host-c", "vm", "define", saved.path)
    os.rename(kept, kept + ".away")  # the second copy finds the disk as the first has left it
    try:
        pair.ferry("host-c", "vm", "start", "saved")
        both = {name: pair.qemus(name).get("saved", []) for name in names}
        assert all(len(pids) == 1 for pids in both.values()), f"it does not run twice: {both}{pair.logs()}"
        pair.another_beats(saved, 1000)
    finally:
        os.rename(kept + ".away", kept)
        for name in names:
            for pid in pair.qemus(name).get("saved", []):
                processes.Process.of(pid).end(1)
    total = saved.report()["total"]
    assert total["two_copies"] > 100 and total["disk_foreign"] > 0, total
    for path, before in zip(consoles, said):
        text = Path(path).read_bytes()[before:].decode(errors="replace")
        assert re.search(r"load: DISK \w+ \d+ is of ANOTHER WRITER", text), f"{path}: {text[-500:]}"
    found = disks.check(image(pair, saved))
    assert not found["single"] and found["doubles"] > 0 and found["forks"] > 0, found


def test_saving_refuses_what_it_cannot_do(pair, saved):
    with pytest.raises(LabError, match="does not run"):
        pair.lab.save_guest("host-b", "saved")
    with pytest.raises(LabError, match="no guest 'nobody'"):
        pair.lab.save_guest("host-a", "nobody")
    assert pair.lab.ferryd_pid("host-a") and pair.lab.ferryd_pid("host-b")
    pair.lab.forget_saved_guest("saved")
    assert not os.path.exists(os.path.join(pair.lab.path, "shared/saved", saved.uuid))
