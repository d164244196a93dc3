# SPDX-License-Identifier: Apache-2.0
"""The fault engine itself (src/base/fault.h) on real hosts, with TLS between them: what is asked for happens, is reported, and
leaves a VM that can be moved. What each fault must lead to is the fault matrix's matter (tests/fault/)."""

import os
import subprocess

import pytest

from moves import Pair, Refused

BUILD = os.environ.get("FERRY_BUILD") or os.path.join(os.path.dirname(__file__), "../../build")


@pytest.fixture(scope="module")
def pair():
    pair = Pair("fen", faults=True, config={"migration": {"silence_limit": "3", "finish_timeout": "3"}})
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def guest(pair):
    return pair.guest("e", memory=96, load="4:1")


def check_config(folder, program, faults):
    (folder / "ferry.conf").write_text("[qemu]\nuser = 61000:61000\n")
    return subprocess.run([os.path.join(BUILD, program), "--config", folder / "ferry.conf", "--check-config"],
                          env={**os.environ, "FERRY_FAULT": faults}, capture_output=True, text=True, check=False)


def test_the_product_does_not_look(tmp_path):
    assert check_config(tmp_path, "ferryd", "nowhere=kill").returncode == 0
    refused = check_config(tmp_path, "ferryd-faults", "nowhere=kill")
    assert refused.returncode == 2 and "there is no point 'nowhere'" in refused.stderr
    assert check_config(tmp_path, "ferryd-faults", "after-taken=kill").returncode == 0


def test_set_and_report(pair):
    assert pair.set_faults("host-a", "check-send=delay:1@2") == {"faults": "check-send=delay:1@2", "fired": []}
    with pytest.raises(Refused) as refused:
        pair.set_faults("host-a", "check-send=explode")
    assert refused.value.code == "invalid_argument"
    with pytest.raises(Refused):
        pair.set_faults("host-a", "journal-sync=forget")  # only from the start on
    assert pair.api("host-a", "GET", "/v1/faults")["faults"] == "check-send=delay:1@2"
    pair.set_faults("host-a", "")


# (side, fault): one of each action that a message can suffer, at the message that decides.
MESSAGES = [("source", "finish-send=drop"), ("source", "finish-send=cut"), ("source", "finish-send=repeat"),
            ("source", "finish-send=old"), ("source", "finish-send=corrupt:1"), ("source", "finish-answered=drop"),
            ("destination", "finish-received=drop@*"), ("destination", "finish-received=hold"),
            ("destination", "finish-answer=hold"), ("destination", "finish-answer=cut"),
            ("destination", "finish-answer=corrupt:1"), ("destination", "finish-answer=drop")]


@pytest.mark.parametrize("side, fault", [pytest.param(*row, marks=[] if row[1] in ("finish-send=old", "finish-answer=hold") else
                                                      pytest.mark.slow) for row in MESSAGES])
def test_message(pair, guest, side, fault):
    source, destination = guest.host, pair.other(guest.host)
    at = source if side == "source" else destination
    pair.set_faults(at, fault)
    ident = pair.begin(guest)
    if fault.endswith("@*"):
        pair.wait(source, ident, "in-doubt")
        fired = pair.faults_fired(at)
        pair.set_faults(at, "")
    pair.ended(source, ident)
    fired = fired if fault.endswith("@*") else pair.faults_fired(at)
    assert fired and set(fired) == {fault.split(":")[0].split("@")[0]}
    pair.set_faults(at, "")
    pair.settled(guest, destination)


@pytest.mark.slow
def test_forgetful_journal(pair, guest):
    """A host whose journal keeps nothing that it has not synced, killed with kill -9: it knows all that it has said."""
    source, destination = guest.host, pair.other(guest.host)
    for host in (source, destination):
        pair.restart_ferryd(host, "journal-sync=forget:3")
    pair.migrate(guest, destination)
    pair.settled(guest, destination)
    for host in (source, destination):
        pair.kill_ferryd(host)
        pair.start_ferryd(host)
    pair.settled(guest, destination)
