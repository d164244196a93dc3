# SPDX-License-Identifier: Apache-2.0
"""Fifty moves in a row leave nothing behind, in the daemons or around them."""

import os
from pathlib import Path

import pytest

from moves import Pair

MOVES = 50
IDLE_LIMIT_KIB = 20 * 1024
GROWTH_LIMIT_KIB = 1024  # over forty moves; the list of migrations, which is meant to be kept, is a twentieth of that


@pytest.fixture(scope="module")
def pair():
    pair = Pair("lk")
    yield pair
    pair.close()


def resident_kib(pid):
    return next(int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("VmRSS"))


def holdings(pair):
    """What is counted: per host its ferryd's descriptors and threads, its processes, files and network devices."""
    found = {}
    for name in pair.names:
        pid = pair.lab.ferryd_pid(name)
        host = pair.host(name)
        network = os.stat(f"/proc/{host.holder.pid}/ns/net").st_ino
        processes = 0
        for entry in os.listdir("/proc"):
            try:
                processes += entry.isdigit() and os.stat(f"/proc/{entry}/ns/net").st_ino == network
            except OSError:
                pass
        found[name] = {
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
            "processes": processes,
            "files": sorted(host.run(["find", "/run/ferry", "/srv", "-type", "f,s"]).stdout.split()),
            "logs": sorted(os.listdir(host.outside("/var/lib/ferry/vms"))),
            "devices": sorted(os.listdir(f"/proc/{host.holder.pid}/root/sys/class/net")),
            "mounts": len(Path(f"/proc/{host.holder.pid}/mounts").read_text().splitlines()),
        }
    return found


def test_idle_daemon_is_small(pair):
    for name in pair.names:
        assert resident_kib(pair.lab.ferryd_pid(name)) <= IDLE_LIMIT_KIB


@pytest.mark.slow
def test_many_moves(pair):
    guest = pair.guest("l", memory=96, load="1:0")
    namespaces = len({os.stat(f"/proc/{entry}/ns/{kind}").st_ino for entry in os.listdir("/proc") if entry.isdigit()
                      for kind in ("net", "mnt") if os.path.exists(f"/proc/{entry}/ns/{kind}")})
    before, resident = None, None
    for number in range(MOVES):
        source = guest.host
        pair.migrate(guest, pair.other(source))
        if number == 9:  # caches and pools have been filled, on both sides
            pair.settled(guest, guest.host)
            before = holdings(pair)
            resident = {name: resident_kib(pair.lab.ferryd_pid(name)) for name in pair.names}
    pair.settled(guest, guest.host)
    after = holdings(pair)
    now = {name: resident_kib(pair.lab.ferryd_pid(name)) for name in pair.names}
    print(f"resident: {resident} -> {now} KiB")
    assert after == before, f"{before}\n{after}"
    for name in pair.names:
        assert now[name] - resident[name] < GROWTH_LIMIT_KIB, (resident, now)
        assert now[name] <= IDLE_LIMIT_KIB
    assert len({os.stat(f"/proc/{entry}/ns/{kind}").st_ino for entry in os.listdir("/proc") if entry.isdigit()
                for kind in ("net", "mnt") if os.path.exists(f"/proc/{entry}/ns/{kind}")}) <= namespaces + 2
