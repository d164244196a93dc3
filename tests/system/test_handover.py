# SPDX-License-Identifier: Apache-2.0
"""The baton, when messages are lost, late, twice, or not from whom they say."""

import copy
import json
import secrets
import ssl
from pathlib import Path

import pytest

from moves import Pair, Proxy

PORTS = range(49152, 49160)


@pytest.fixture(scope="module")
def pair():
    pair = Pair("hnd", faults=True, config={"migration": {"silence_limit": "3", "finish_timeout": "5"},
                               "data": {"native_ports": f"{PORTS[0]}-{PORTS[-1]}"}})
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def way(pair):
    proxy = Proxy(pair, PORTS)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def the_guest(pair):
    return pair.guest("h")


@pytest.fixture
def guest(pair, way, the_guest):
    """On host-a, with the way to host-b open."""
    way.open_all()
    way.saw_shut.clear()
    the_guest.host = pair.settle(the_guest)
    if the_guest.host != "host-a":
        pair.migrate(the_guest, "host-a")
        pair.settled(the_guest, "host-a")
    yield the_guest
    way.open_all()


def moves_again(pair, way, guest):
    way.open_all()
    pair.migrate(guest, "host-b")
    pair.settled(guest, "host-b")


# ---- the data path ----

def test_lost_acknowledgement(pair, way, guest):
    """All has arrived, the destination's word of it is lost: the source's QEMU goes on by itself. It must stay the only one."""
    way.set(shut="swallow")
    pair.mark()
    ident = pair.begin(guest)
    assert way.saw_shut.wait(60)
    way.cut(control=False)
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["owner"], ended["reason"]["code"]) == ("rolled-back", "host-a", "migration.qemu")
    pair.settled(guest, "host-a")
    moves_again(pair, way, guest)


def test_withheld_acknowledgement(pair, way, guest):
    """No end of the connection, just silence: QEMU would wait for ever, with the guest paused."""
    way.set(shut="closed")
    pair.mark()
    ident = pair.begin(guest, max_downtime_ms=500)
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["owner"], ended["reason"]["code"]) == ("rolled-back", "host-a", "migration.max_downtime")
    way.open_all()
    since = guest.beats(100)
    assert since["max_gap_ms"] < 500 + 1000 + 2000
    pair.settled(guest, "host-a")
    moves_again(pair, way, guest)


def test_abort_in_the_switch(pair, way, guest):
    way.set(shut="closed")
    ident = pair.begin(guest, max_downtime_ms=60000)
    assert way.saw_shut.wait(60)
    pair.wait("host-a", ident, "switching")
    pair.api("host-a", "POST", f"/v1/migrations/{ident}/abort")
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["owner"]) == ("cancelled", "host-a")
    way.open_all()
    pair.settled(guest, "host-a")
    moves_again(pair, way, guest)


@pytest.mark.slow
def test_source_ferryd_dies_in_the_switch(pair, way, guest):
    """And QEMU with the guest paused waits for a word that never comes: the first thing a new ferryd looks at."""
    way.set(shut="closed")
    ident = pair.begin(guest, max_downtime_ms=60000)
    assert way.saw_shut.wait(60)
    pair.wait("host-a", ident, "switching")
    pair.kill_ferryd("host-a")
    pair.start_ferryd("host-a")
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["reason"]["code"]) == ("rolled-back", "migration.interrupted")
    way.open_all()
    pair.settled(guest, "host-a")
    moves_again(pair, way, guest)


@pytest.mark.slow
def test_data_path_cut_while_copying(pair, way, guest):
    ident = pair.begin(guest, bandwidth_bytes_per_s=5_000_000)
    pair.wait("host-a", ident, lambda m: m["status"] == "copying" and m["iterations"])
    way.cut(control=False)
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["reason"]["code"]) == ("rolled-back", "migration.qemu")
    pair.settled(guest, "host-a")
    moves_again(pair, way, guest)


def test_abort_while_the_data_path_stands_still(pair, way, guest):
    """QEMU sits in a write that does not return."""
    ident = pair.begin(guest, bandwidth_bytes_per_s=5_000_000)
    pair.wait("host-a", ident, lambda m: m["status"] == "copying" and m["iterations"])
    way.set(forward="closed")
    pair.api("host-a", "POST", f"/v1/migrations/{ident}/abort")
    ended = pair.ended("host-a", ident)
    assert ended["status"] == "cancelled"
    way.open_all()
    pair.settled(guest, "host-a")
    moves_again(pair, way, guest)


@pytest.mark.slow
def test_deadline_while_the_data_path_stands_still(pair, way, guest):
    ident = pair.begin(guest, bandwidth_bytes_per_s=5_000_000, deadline_ms=3000)
    pair.wait("host-a", ident, lambda m: m["status"] == "copying" and m["iterations"])
    way.set(forward="closed")
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["reason"]["code"]) == ("rolled-back", "migration.deadline")
    assert 3000 <= ended["total_ms"] < 10000
    way.open_all()
    pair.settled(guest, "host-a")


# ---- the control path ----

@pytest.mark.parametrize("lost", ["answer", pytest.param("question", marks=pytest.mark.slow)])
def test_finish_is_lost(pair, way, guest, lost):
    log = pair.log("host-b")
    ident = pair.begin(guest, bandwidth_bytes_per_s=40_000_000)
    pair.wait("host-a", ident, "copying")
    if lost == "answer":
        way.set(control_back="swallow")
    else:
        way.set(accept_control=False)
        way.cut(control=True)
    doubt = pair.wait("host-a", ident, "in-doubt", timeout=120)
    assert doubt["reason"]["code"] == "migration.in_doubt" and doubt["owner"] == "host-a"
    if lost == "answer":
        log.expect("handover=running")
        assert pair.vms("host-b")["h"]["owner"] == "host-b"
    # In doubt, a restart of the source's ferryd changes nothing.
    pair.kill_ferryd("host-a")
    pair.start_ferryd("host-a")
    pair.wait("host-a", ident, "in-doubt")
    assert pair.vms("host-a")["h"]["state"] == "paused"
    way.open_all()
    way.cut(control=True)
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["owner"], ended["reason"]) == ("completed", "host-b", None)
    pair.settled(guest, "host-b", definitions={"host-b"})


@pytest.mark.slow
def test_command_line_says_what_is_awaited(pair, way, guest):
    way.set(shut="closed")
    command = pair.host("host-a").popen(["ferry", "migrate", "h", "--to", "host-b", "--output", "json", "--max-downtime",
                                         "60s"], stdout=-1, stderr=-1, text=True)
    assert way.saw_shut.wait(60)
    way.set(accept_control=False)
    way.cut(control=True)
    way.set(shut="open")
    out, errors = command.communicate(timeout=120)
    assert command.returncode == 4, (out, errors)
    told = json.loads(out)
    assert told["status"] == "in-doubt" and "host-b" in told["reason"]["message"]
    way.open_all()
    assert pair.ended("host-a", told["id"])["status"] == "completed"
    pair.settled(guest, "host-b")


# ---- messages, spoken by hand ----

def question(guest, ident, epoch, source="host-a"):
    return {"migration": ident, "vm_uuid": guest.uuid, "source": source, "epoch": epoch}


def offer(pair, guest, ident, epoch, source="host-a"):
    record = json.loads(Path(pair.host(guest.host).outside(f"/run/ferry/vms/{guest.uuid}/actual.json")).read_text())
    definition = copy.deepcopy(record["definition"])
    journal = pair.api(source, "GET", "/v1/host")["journal"]
    return {"protocol": 1, "migration": ident, "source": source, "journal": journal, "epoch": epoch,
            "paused": False, "channels": 1, "definition": definition, "proofs": [],
            "description": {"definition": definition, "qemu_version": "", "accelerator": "tcg", "firmware": [],
                            "memory_bytes": record["memory_bytes"], "blocked_reasons": [], "snapshot_mode": False,
                            "run": "running"}}


def post(pair, message, body, caller="host-a", to="host-b"):
    return pair.peer(caller, to, "POST", f"/v1/peer/{message}", body)


def test_refused_is_for_ever(pair, guest):
    ident = secrets.token_hex(16)
    for _ in range(2):
        status, answer = post(pair, "refuse", question(guest, ident, 9))
        assert (status, answer["state"]) == (200, "refused")
    for restart in (False, True):
        if restart:
            pair.restart_ferryd("host-b")
        status, answer = post(pair, "finish", question(guest, ident, 9))
        assert (status, answer["state"]) == (200, "refused")
    status, answer = post(pair, "prepare", offer(pair, guest, ident, 9))
    assert status >= 400
    assert pair.qemus("host-b") == {}


def test_unknown_migration_is_not_taken(pair, guest):
    status, answer = post(pair, "finish", question(guest, secrets.token_hex(16), 9))
    assert (status, answer["state"]) == (200, "none")
    assert answer["journal"] == pair.peer("host-a", "host-b", "GET", "/v1/peer/hello")[1]["journal"]


def test_prepared_and_left_alone(pair, guest):
    """A source that falls silent, and when asked knows nothing of it: the destination gives up by itself."""
    epoch = pair.vms("host-a")["h"]["epoch"] + 1
    ident = secrets.token_hex(16)
    log = pair.log("host-b")
    status, answer = post(pair, "check", offer(pair, guest, ident, epoch))
    assert (status, answer["failures"]) == (200, []), answer
    status, answer = post(pair, "prepare", offer(pair, guest, ident, epoch))
    assert status == 200, answer
    assert list(pair.qemus("host-b")) == ["h"] and pair.vms("host-b")["h"]["state"] == "incoming"
    # Said twice is said once.
    status, again = post(pair, "prepare", offer(pair, guest, ident, epoch))
    assert (status, again) == (200, answer) and len(pair.qemus("host-b")["h"]) == 1
    # Neither can it be started, resumed, stopped or moved on from there, nor can the VM be defined anew.
    for verb in ("start", "resume", "stop"):
        assert pair.ferry("host-b", "vm", verb, "h", check=False).returncode != 0
    assert pair.ferry("host-b", "vm", "undefine", "h", check=False).returncode != 0
    # A finish that is not the source's is not listened to.
    status, answer = post(pair, "finish", question(guest, ident, epoch), caller="host-b")
    assert status == 403
    status, answer = post(pair, "finish", question(guest, ident, epoch, source="host-b"), caller="host-b")
    assert (status, answer["error"]["code"]) == (409, "peer.stale")
    for wrong in ({"epoch": epoch + 2}, {"epoch": epoch + 1}, {"vm_uuid": "00000000-0000-4000-8000-000000000000"}):
        status, answer = post(pair, "finish", {**question(guest, ident, epoch), **wrong})
        assert (status, answer["error"]["code"]) == (409, "peer.stale")
    log.expect("handover=refused")
    pair.settled(guest, "host-a", epoch=epoch - 1, definitions={"host-a"})
    status, answer = post(pair, "finish", question(guest, ident, epoch))
    assert (status, answer["state"]) == (200, "refused")


@pytest.mark.slow
def test_finish_before_anything_has_arrived(pair, guest):
    """Only a source that is wrong would say so. The destination waits for the memory, and takes nothing."""
    epoch = pair.vms("host-a")["h"]["epoch"] + 1
    ident = secrets.token_hex(16)
    assert post(pair, "check", offer(pair, guest, ident, epoch))[1]["failures"] == []
    assert post(pair, "prepare", offer(pair, guest, ident, epoch))[0] == 200
    status, answer = pair.peer("host-a", "host-b", "POST", "/v1/peer/finish", question(guest, ident, epoch), timeout=60)
    assert status == 504 or answer["state"] == "refused", answer
    status, answer = post(pair, "refuse", question(guest, ident, epoch))
    assert (status, answer["state"]) == (200, "refused")
    pair.settled(guest, "host-a", epoch=epoch - 1, definitions={"host-a"})


def test_older_epoch_is_refused(pair, guest):
    pair.migrate(guest, "host-b")
    pair.settled(guest, "host-b")
    epoch = pair.vms("host-b")["h"]["epoch"]
    for old in (epoch, epoch - 1, epoch + 1):  # the last is not old, but the VM is not host-a's to give
        ident = secrets.token_hex(16)
        answer = post(pair, "check", offer(pair, guest, ident, old))[1]
        assert {failure["code"] for failure in answer["failures"]} & {"dest.vm_exists", "peer.stale"}, answer
        status, answer = post(pair, "prepare", offer(pair, guest, ident, old))
        assert status >= 400, answer
    pair.settled(guest, "host-b", epoch=epoch)


def test_finish_and_refuse_after_the_end(pair, guest):
    result = pair.migrate(guest, "host-b")
    pair.settled(guest, "host-b")
    for restart in (False, True):
        if restart:
            pair.restart_ferryd("host-b")
        for message in ("finish", "refuse", "finish"):
            status, answer = post(pair, message, question(guest, result["id"], result["epoch"]))
            assert (status, answer["state"]) == (200, "running"), answer
    pair.settled(guest, "host-b", epoch=result["epoch"])


def test_certificates(pair, guest):
    body = offer(pair, guest, secrets.token_hex(16), 9)
    status, answer = post(pair, "check", body, caller="host-b")
    assert (status, answer["error"]["code"]) == (403, "permission_denied")
    # None, and one of the right name by another authority.
    pair.lab.client.run(["ferry", "pki", "init"])
    pair.lab.client.run(["ferry", "pki", "issue", "host-a", "--address", "198.18.0.1", "--out", "/etc/ferry/issued"])
    for files in (None, pair.lab.client.outside("/etc/ferry/issued")):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            pair.peer("host-a", "host-b", "GET", "/v1/peer/hello", files=files)
    assert pair.peer("host-a", "host-b", "GET", "/v1/peer/hello")[0] == 200


# ---- a journal that is lost: last, as it cannot be mended ----

@pytest.mark.slow
def test_lost_journal_proves_nothing(pair, way, guest):
    pair.restart_ferryd("host-b", "after-taken=kill")
    ident = pair.begin(guest)
    pair.ferryd_ended("host-b")
    pair.host("host-b").run(["sh", "-c", "rm /var/lib/ferry/journal.db*"])
    pair.start_ferryd("host-b")
    doubt = pair.wait("host-a", ident, lambda m: m["status"] == "in-doubt" and "journal" in m["reason"]["message"])
    assert doubt["owner"] == "host-a"
    pair.kill_ferryd("host-a")
    pair.start_ferryd("host-a")
    pair.wait("host-a", ident, lambda m: m["status"] == "in-doubt" and "journal" in m["reason"]["message"])
    assert pair.vms("host-a")["h"]["state"] == "paused"
