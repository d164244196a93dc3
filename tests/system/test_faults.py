# SPDX-License-Identifier: Apache-2.0
"""Each side's ferryd is killed at every point that has a name (base/fault.h), and started again. Whatever was going on
then, in the end the VM runs once, where both records say, whole; nothing is left over; and it can be moved again."""

import contextlib
import os
import signal

import pytest

from moves import Pair


@pytest.fixture(scope="module")
def pair():
    pair = Pair("flt", faults=True, config={"migration": {"silence_limit": "3", "finish_timeout": "5"},
                                            "data": {"native_ports": "49152-49167"}})
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def guest(pair):
    return pair.guest("f", disk=True)


def sides(pair, guest):
    return guest.host, pair.other(guest.host)


def move_again(pair, guest):
    destination = pair.other(guest.host)
    pair.migrate(guest, destination)
    pair.settled(guest, destination)


def start_again(pair, guest):
    pair.ferry(guest.host, "vm", "start", guest.name)
    pair.mark()
    pair.wait_beats(guest, 200)
    pair.settled(guest, guest.host)


def kill_qemu(pair, host, guest):
    pid = pair.qemus(host)[guest.name][0]
    os.kill(pid, signal.SIGKILL)
    pair.wait_gone(pid)


def begin_and_forget(pair, guest, **request):
    """The answer may not come: its ferryd is about to die."""
    with contextlib.suppress(OSError, ConnectionError):
        return pair.begin(guest, **request)


# Where the VM is in the end. None: either side, depending on how far QEMU has come by itself.
SOURCE_POINTS = {
    "probes-placed": "source", "before-holds": "source", "after-holds": "source", "prepare-answered": "source",
    "copy-begun": "source", "before-offered": "source", "after-offered": "source", "switch-begun": None,
    "copy-completed": "destination", "before-released": "destination", "after-released": "destination",
    "source-released": "destination",
}


@pytest.mark.parametrize("point", [pytest.param(point, marks=[] if point in ("copy-completed", "after-offered") else
                                                pytest.mark.slow) for point in SOURCE_POINTS])
def test_source_ferryd_killed(pair, guest, point):
    source, destination = sides(pair, guest)
    epoch = pair.vms(source)[guest.name]["epoch"]
    pair.restart_ferryd(source, f"{point}=kill")
    begin_and_forget(pair, guest)
    pair.ferryd_ended(source)
    pair.start_ferryd(source)
    owner = pair.settle(guest)
    expected = {"source": source, "destination": destination, None: owner}[SOURCE_POINTS[point]]
    assert owner == expected, pair.logs()
    pair.settled(guest, expected, epoch=epoch + (owner == destination))
    if SOURCE_POINTS[point] == "destination":  # the ferryd that has seen the guest stop is dead
        newest = pair.api(source, "GET", "/v1/migrations")["migrations"][0]
        assert pair.migration(source, newest["id"])["downtime_ms"] is None
    move_again(pair, guest)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["copy-cancelled", "taken-back"])
def test_source_ferryd_killed_on_the_way_back(pair, guest, point):
    source, destination = sides(pair, guest)
    pair.restart_ferryd(source, f"{point}=kill")
    ident = pair.begin(guest, bandwidth_bytes_per_s=5_000_000)
    pair.wait(source, ident, "copying")
    with contextlib.suppress(OSError):
        pair.api(source, "POST", f"/v1/migrations/{ident}/abort")
    pair.ferryd_ended(source)
    pair.start_ferryd(source)
    assert pair.settle(guest) == source
    pair.settled(guest, source)
    move_again(pair, guest)


DESTINATION_POINTS = {"before-prepared": "source", "after-prepared": "source", "incoming-started": "source",
                      "before-taken": "destination", "after-taken": "destination", "before-running": "destination",
                      "after-running": "destination"}


@pytest.mark.parametrize("point", [pytest.param(point, marks=[] if point in ("after-taken", "after-running") else
                                                pytest.mark.slow) for point in DESTINATION_POINTS])
def test_destination_ferryd_killed(pair, guest, point):
    source, destination = sides(pair, guest)
    epoch = pair.vms(source)[guest.name]["epoch"]
    pair.restart_ferryd(destination, f"{point}=kill")
    ident = pair.begin(guest)
    pair.ferryd_ended(destination)
    if DESTINATION_POINTS[point] == "destination":
        doubt = pair.wait(source, ident, "in-doubt")
        assert doubt["reason"]["code"] == "migration.in_doubt" and destination in doubt["reason"]["message"]
        # Meanwhile nobody may touch it, and it cannot be aborted.
        assert pair.refusal(source, "POST", f"/v1/migrations/{ident}/abort") == "migration.too_late"
        assert pair.refusal(source, "POST", f"/v1/vms/{guest.name}/resume") == "vm.busy"
        pair.start_ferryd(destination)
        ended = pair.ended(source, ident)
        assert (ended["status"], ended["reason"], ended["owner"]) == ("completed", None, destination)
        pair.settled(guest, destination, epoch=epoch + 1)
    else:
        ended = pair.ended(source, ident)
        assert ended["status"] in ("rolled-back", "failed") and ended["owner"] == source
        assert ended["reason"]["code"] not in ("internal",)
        pair.start_ferryd(destination)
        pair.wait(source, ident, lambda m: not m["cleanup_pending"])
        pair.settled(guest, source, epoch=epoch)
    move_again(pair, guest)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before-refused", "after-refused"])
def test_destination_ferryd_killed_on_the_way_back(pair, guest, point):
    source, destination = sides(pair, guest)
    pair.restart_ferryd(destination, f"{point}=kill")
    ident = pair.begin(guest, bandwidth_bytes_per_s=5_000_000)
    pair.wait(source, ident, lambda m: m["status"] == "copying" and m["iterations"])
    pair.api(source, "POST", f"/v1/migrations/{ident}/abort")
    pair.ferryd_ended(destination)
    assert pair.ended(source, ident)["status"] == "cancelled"
    pair.start_ferryd(destination)
    pair.wait(source, ident, lambda m: not m["cleanup_pending"])
    pair.settled(guest, source)
    move_again(pair, guest)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["copy-completed", "before-released"])
def test_both_ferryd_killed(pair, guest, point):
    """The whole control plane at once, at the worst moments."""
    source, destination = sides(pair, guest)
    pair.restart_ferryd(source, f"{point}=kill")
    pair.restart_ferryd(destination, "after-taken=kill" if point == "copy-completed" else None)
    begin_and_forget(pair, guest)
    pair.ferryd_ended(source)
    pair.kill_ferryd(destination)
    pair.start_ferryd(source)
    pair.start_ferryd(destination)
    assert pair.settle(guest) == destination
    pair.settled(guest, destination)
    move_again(pair, guest)


@pytest.mark.slow
def test_source_qemu_dies_after_all_is_sent(pair, guest):
    """The guest is saved: what the destination has is whole."""
    source, destination = sides(pair, guest)
    pair.restart_ferryd(source, "copy-completed=stop")
    ident = begin_and_forget(pair, guest)
    ferryd = pair.ferryd_stopped(source)
    kill_qemu(pair, source, guest)
    os.kill(ferryd, signal.SIGCONT)
    assert pair.ended(source, ident)["status"] == "completed"
    pair.restart_ferryd(source)
    pair.settled(guest, destination)
    move_again(pair, guest)


@pytest.mark.slow
def test_source_host_dies_after_all_is_sent(pair, guest):
    """ferryd and QEMU of the source both. Nobody can tell any more whether QEMU let the guest run on before it ended, so the
    copy at the destination must not run: a guest that crashed with its host, which was its owner."""
    source, destination = sides(pair, guest)
    pair.restart_ferryd(source, "copy-completed=kill")
    begin_and_forget(pair, guest)
    pair.ferryd_ended(source)
    kill_qemu(pair, source, guest)
    pair.start_ferryd(source)
    assert pair.settle(guest) == source
    pair.settled(guest, source, running=None)
    start_again(pair, guest)
    move_again(pair, guest)


@pytest.mark.slow
def test_destination_ferryd_and_qemu_die_before_it_was_taken(pair, guest):
    source, destination = sides(pair, guest)
    pair.restart_ferryd(destination, "before-taken=kill")
    ident = pair.begin(guest)
    pair.ferryd_ended(destination)
    kill_qemu(pair, destination, guest)
    pair.start_ferryd(destination)
    ended = pair.ended(source, ident)
    assert (ended["status"], ended["owner"]) == ("rolled-back", source)
    pair.settled(guest, source)
    move_again(pair, guest)


@pytest.mark.slow
def test_destination_qemu_dies_when_taken(pair, guest):
    """It may have run: the destination owns a VM that crashed, and the source must not bring it back."""
    source, destination = sides(pair, guest)
    pair.restart_ferryd(destination, "before-running=kill")
    ident = pair.begin(guest)
    pair.ferryd_ended(destination)
    kill_qemu(pair, destination, guest)
    pair.start_ferryd(destination)
    ended = pair.ended(source, ident)
    assert (ended["status"], ended["owner"]) == ("completed", destination)
    pair.settled(guest, destination, running=None)
    start_again(pair, guest)
    move_again(pair, guest)
