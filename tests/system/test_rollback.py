# SPDX-License-Identifier: Apache-2.0
"""Moves that fail or are called off: the VM runs on at the source, whole and alone, and can be moved again."""

import contextlib
import fcntl
import json
import os
import signal
import struct

import pytest

from moves import Pair

SLOWLY = 5_000_000  # bytes a second: less than the guest dirties, so the copy goes on until something ends it


@pytest.fixture(scope="module")
def pair():
    pair = Pair("rbk", faults=True, config={"migration": {"silence_limit": "3", "finish_timeout": "5"}})
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def guest(pair):
    return pair.guest("r", disk=True)


def begin_copying(pair, guest, **request):
    ident = pair.begin(guest, **{"bandwidth_bytes_per_s": SLOWLY, "max_downtime_ms": 300, **request})
    pair.wait(guest.host, ident, lambda m: m["status"] == "copying" and m["iterations"])
    return ident


def check_rolled_back(pair, guest, ident, status, code, again=True):
    source = guest.host
    ended = pair.ended(source, ident)
    assert (ended["status"], ended["owner"]) == (status, source), ended
    assert ended["reason"]["code"] == code, ended["reason"]
    pair.wait(source, ident, lambda m: not m["cleanup_pending"])
    pair.settled(guest, source, definitions={source})
    if again:
        destination = pair.other(source)
        pair.migrate(guest, destination)
        pair.settled(guest, destination)
    return ended


def abort(pair, guest, ident):
    pair.api(guest.host, "POST", f"/v1/migrations/{ident}/abort")


# ---- called off ----

def test_abort_while_checking(pair, guest):
    destination = pair.other(guest.host)
    pid = pair.lab.ferryd_pid(destination)
    os.kill(pid, signal.SIGSTOP)
    try:
        ident = pair.begin(guest)
        pair.wait(guest.host, ident, "checking")
        abort(pair, guest, ident)
        ended = pair.ended(guest.host, ident)
        assert (ended["status"], ended["reason"]["code"]) == ("cancelled", "cancelled")
    finally:
        os.kill(pid, signal.SIGCONT)
    check_rolled_back(pair, guest, ident, "cancelled", "cancelled")


def test_abort_while_preparing(pair, guest):
    destination = pair.other(guest.host)
    pair.restart_ferryd(destination, "incoming-started=stop")
    ident = pair.begin(guest)
    pid = pair.ferryd_stopped(destination)
    assert pair.migration(guest.host, ident)["status"] == "preparing"
    abort(pair, guest, ident)
    # Until the destination says that it has heard, something may be left of it there.
    ended = pair.ended(guest.host, ident)
    assert ended["status"] == "cancelled" and ended["cleanup_pending"]
    os.kill(pid, signal.SIGCONT)
    check_rolled_back(pair, guest, ident, "cancelled", "cancelled", again=False)
    pair.restart_ferryd(destination)
    pair.migrate(guest, destination)
    pair.settled(guest, destination)


@pytest.mark.parametrize("channels", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_abort_while_copying(pair, guest, channels):
    ident = begin_copying(pair, guest, channels=channels)
    abort(pair, guest, ident)
    check_rolled_back(pair, guest, ident, "cancelled", "cancelled")


def test_interrupted_command(pair, guest):
    """Ctrl-C of `ferry migrate` cancels, waits until the VM is settled, and says so."""
    source = guest.host
    log = pair.log(source)
    command = pair.host(source).popen(["ferry", "migrate", guest.name, "--to", pair.other(source), "--bandwidth", "40mbit",
                                       "--output", "json"], stdout=-1, stderr=-1, text=True)
    ident = log.expect("status=copying").split("migration=")[1].split()[0]
    command.send_signal(signal.SIGINT)
    out, _ = command.communicate(timeout=60)
    assert command.returncode == 5
    assert json.loads(out)["status"] == "cancelled"
    check_rolled_back(pair, guest, ident, "cancelled", "cancelled")


def test_the_command_line_may_go_away(pair, guest):
    """Killed, it cancels nothing."""
    source, destination = guest.host, pair.other(guest.host)
    log = pair.log(source)
    command = pair.host(source).popen(["ferry", "migrate", guest.name, "--to", destination], stdout=-1, stderr=-1)
    ident = log.expect("status=checking").split("migration=")[1].split()[0]
    command.kill()
    command.communicate()
    assert pair.ended(source, ident)["status"] == "completed"
    pair.settled(guest, destination)


# ---- things that die ----

def test_destination_qemu_dies_while_copying(pair, guest):
    ident = begin_copying(pair, guest)
    os.kill(pair.qemus(pair.other(guest.host))[guest.name][0], signal.SIGKILL)
    check_rolled_back(pair, guest, ident, "rolled-back", "migration.qemu")


@pytest.mark.slow
def test_destination_ferryd_dies_while_copying(pair, guest):
    """QEMU copies on; the new ferryd finds its incoming machine again, and the move goes on to its end."""
    source, destination = guest.host, pair.other(guest.host)
    ident = begin_copying(pair, guest, bandwidth_bytes_per_s=40_000_000)
    pair.kill_ferryd(destination)
    pair.start_ferryd(destination)
    assert pair.ended(source, ident)["status"] == "completed"
    pair.settled(guest, destination)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_source_ferryd_ends_while_copying(pair, guest, number):
    ident = begin_copying(pair, guest)
    source = guest.host
    pair.lab.stop_ferryd(source, number)
    pair.start_ferryd(source)
    check_rolled_back(pair, guest, ident, "rolled-back", "migration.interrupted")


@pytest.mark.slow
def test_source_qemu_dies_while_copying(pair, guest):
    """Then there is no guest any more, as without a move; its owner is who it was."""
    source = guest.host
    ident = begin_copying(pair, guest)
    os.kill(pair.qemus(source)[guest.name][0], signal.SIGKILL)
    ended = pair.ended(source, ident)
    assert (ended["status"], ended["owner"], ended["reason"]["code"]) == ("rolled-back", source, "qemu.gone")
    pair.wait(source, ident, lambda m: not m["cleanup_pending"])
    pair.settled(guest, source, running=None)
    pair.ferry(source, "vm", "start", guest.name)
    pair.mark()
    pair.wait_beats(guest, 200)
    pair.settled(guest, source)


# ---- the link ----

@pytest.mark.slow
def test_link_is_cut_while_copying(pair, guest):
    """Both daemons lose each other as well. The destination gives up by itself, the source when it has waited enough."""
    source, destination = guest.host, pair.other(guest.host)
    log = pair.log(destination)
    ident = begin_copying(pair, guest, deadline_ms=15000)
    pair.lab.cut(source)
    try:
        ended = pair.ended(source, ident, timeout=120)
        assert (ended["status"], ended["reason"]["code"]) in (("rolled-back", "migration.deadline"),
                                                              ("rolled-back", "migration.qemu"))
        log.expect("handover=refused")
        pair.settled(guest, source)  # while they cannot speak to each other
    finally:
        pair.lab.heal(source)
    pair.wait(source, ident, lambda m: not m["cleanup_pending"])
    pair.migrate(guest, destination)
    pair.settled(guest, destination)


@pytest.mark.slow
def test_link_is_cut_for_a_moment(pair, guest):
    """TCP brings all of it later: nothing of the move need notice."""
    source, destination = guest.host, pair.other(guest.host)
    ident = begin_copying(pair, guest, bandwidth_bytes_per_s=40_000_000)
    pair.lab.cut(source)
    pair.wait_beats(guest, guest.report()["since_mark"]["received"] + 500)
    pair.lab.heal(source)
    assert pair.ended(source, ident)["status"] == "completed"
    pair.settled(guest, destination)


# ---- what was promised ----

def test_deadline(pair, guest):
    ident = pair.begin(guest, bandwidth_bytes_per_s=SLOWLY, max_downtime_ms=300, deadline_ms=2000)
    ended = check_rolled_back(pair, guest, ident, "rolled-back", "migration.deadline")
    assert 2000 <= ended["total_ms"] < 10000


@pytest.mark.slow
def test_never_converges(pair, guest):
    """5 MB/s of link, 20 MB/s dirtied: no pause below the promised one will do. It is told with figures."""
    pair.mark()
    ident = pair.begin(guest, bandwidth_bytes_per_s=SLOWLY, max_downtime_ms=100)
    ended = pair.ended(guest.host, ident, timeout=300)
    assert (ended["status"], ended["reason"]["code"]) in (("rolled-back", "migration.not_converging"),
                                                          ("rolled-back", "migration.max_downtime")), ended
    assert "MB/s" in ended["reason"]["message"] or "ms" in ended["reason"]["message"]
    pair.settled(guest, guest.host)


# ---- the destination cannot ----

# QEMU's lock bytes of an image file: 100 + n says "I use permission n", and write is 1.
WRITE_IN_USE = 100 + 1


@contextlib.contextmanager
def foreign_writer(path):
    """A program that writes to the image, as QEMU's locks say it. Yields the way to end it."""
    with open(path, "rb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, WRITE_IN_USE, 1, 0)
        fcntl.fcntl(file, 37, lock)  # F_OFD_SETLK, as QEMU's are
        yield file.close


def test_destination_cannot_take_the_disk(pair, guest):
    """All has arrived, but `cont` is refused there: proof that the guest never ran, so the source goes on."""
    source, destination = guest.host, pair.other(guest.host)
    log = pair.log(destination)
    with foreign_writer(pair.host(source).outside(guest.definition["disks"][0]["path"])) as end:
        ident = pair.begin(guest)
        line = log.expect("refusing:")
        end()
    assert "lock" in line
    ended = check_rolled_back(pair, guest, ident, "rolled-back", "peer.refused")
    assert "lock" in ended["reason"]["message"]
