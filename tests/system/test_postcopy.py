# SPDX-License-Identifier: Apache-2.0
"""Post-copy on real QEMUs: a guest that writes too fast goes on at the destination before everything is there. A stream that
is cut, with ferryds that are restarted, is mended, and every page is right in the end.

FERRY_POSTCOPY_CUTS=N makes N cuts at random moments (two in an ordinary run): connections that are reset, and links that
fall silent and come back; a ferryd or both restarted in every second of either."""

import os
import random
import subprocess

import pytest

from moves import Pair, Refused, network_of

CUTS = int(os.environ.get("FERRY_POSTCOPY_CUTS", "2"))
SEED = int(os.environ.get("FERRY_SEED", "1"))
# A stream counts as broken after 2 s of silence, and a question of ferryd's as unanswered after 5.
IMPATIENT = {"data": {"stream_timeout": 2}, "migration": {"finish_timeout": 5}}
SLOWLY = 12_000_000  # bytes a second: less than the guest dirties, and slow enough to be cut in the middle


@pytest.fixture(scope="module")
def pair():
    pair = Pair("pcp", faults=True, patient=False, config=IMPATIENT)
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def guest(pair):
    return pair.guest("p", disk=True, load="24:80")


def begin_postcopy(pair, guest, **request):
    """Returns when the guest runs at the destination while memory is still missing there."""
    ident = pair.begin(guest, to=pair.other(guest.host), converge=["postcopy"], bandwidth_bytes_per_s=SLOWLY, **request)
    pair.wait(guest.host, ident, lambda m: m["ended"] or (m["postcopy"] and m["status"] == "completing"))
    return ident


def reset_stream(pair, source, _ident, _chance):
    """As a router that has forgotten the connection: both ends are told so by the kernel."""
    with network_of(pair.host(source)):
        subprocess.run(["ss", "-K", "-tn", "state", "established", "( dport >= :49152 )"], check=True,
                       stdout=subprocess.DEVNULL)


def silence_link(pair, source, ident, chance):
    """Nothing gets through, and nobody is told so, until the stream is given up: of memory only, or of everything, so that
    the two ferryds do not hear of each other either."""
    pair.lab.block(source, pair.other(source), chance.choice(["data", "all"]), both=True)
    pair.wait(source, ident, lambda m: m["ended"] or m["status"] == "recovering")


def check_moved(pair, guest, ident, source, destination):
    ended = pair.ended(source, ident)
    assert (ended["status"], ended["owner"]) == ("completed", destination), ended
    assert ended["postcopy"]
    pair.ended(destination, ident)
    guest.passes(2)
    pair.settled(guest, destination)
    return ended


def test_goes_on_at_the_destination(pair, guest):
    source, destination = guest.host, pair.other(guest.host)
    ident = begin_postcopy(pair, guest)
    guest.passes(1)
    ended = check_moved(pair, guest, ident, source, destination)
    assert ended["downtime_ms"] > 0


def test_cannot_be_called_off(pair, guest):
    source, destination = guest.host, pair.other(guest.host)
    ident = begin_postcopy(pair, guest)
    with pytest.raises(Refused) as refused:
        pair.api(source, "POST", f"/v1/migrations/{ident}/abort")
    assert refused.value.code == "migration.too_late"
    with pytest.raises(Refused) as refused:
        pair.api(destination, "POST", f"/v1/vms/{guest.name}/stop")
    assert refused.value.code == "vm.busy"
    with pytest.raises(Refused) as refused:
        pair.api(source, "POST", f"/v1/migrations/{ident}/recover")
    assert refused.value.code == "migration.not_recovering"
    check_moved(pair, guest, ident, source, destination)


@pytest.mark.parametrize("number", range(CUTS))
def test_cut(pair, guest, number):
    chance = random.Random(SEED * 1000 + number)
    source, destination = guest.host, pair.other(guest.host)
    ident = begin_postcopy(pair, guest)
    moved = pair.api(source, "GET", f"/v1/migrations/{ident}")["wire_bytes"]
    further = moved + chance.randrange(0, 6_000_000)
    pair.wait(source, ident, lambda m: m["ended"] or m["wire_bytes"] >= further)
    cut = (reset_stream, silence_link)[number % 2]
    cut(pair, source, ident, chance)
    if number // 2 % 2 == 0:
        for name in chance.choice([[source], [destination], [source, destination]]):
            pair.kill_ferryd(name)
            pair.start_ferryd(name)
    pair.lab.unblock()
    check_moved(pair, guest, ident, source, destination)


def test_refused_where_it_cannot_be(pair, guest):
    for request in ({"channels": 2}, {"converge": ["postcopy", "postcopy"]}):
        with pytest.raises(Refused) as refused:
            pair.begin(guest, to=pair.other(guest.host), **{"converge": ["postcopy"], **request})
        assert refused.value.code == "invalid_argument"
