# SPDX-License-Identifier: Apache-2.0
"""The cases: which guest moves over which link. The contenders: who moves it, and how."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    rate: str | None  # of each host's link; None: as fast as the machine can
    kind: str  # as in `lab/lab guest`
    guest: dict = field(default_factory=dict)  # more arguments of ferrylab.guest.define()
    dirty_bytes_per_s: float = 0  # what the load is asked to write
    config: dict = field(default_factory=dict)  # more of ferryd's configuration


@dataclass(frozen=True)
class Contender:
    name: str
    side: str  # "ferry" or "virsh"
    words: tuple = ()  # more words for its command
    max_downtime_ms: int | None = None  # virsh only: set before each move; None: QEMU's default
    may_stay: bool = False  # a guest that is left where it was is a result; else it is the benchmark's failure


# ---- bench/compare ----

WARM = {"memory": 2048, "warm": True}
WRITING = {"memory": 1024, "load": "200:20", "disk": True}

COMPARE_CASES = [
    Case("warm/1gbit", "Debian, 2 GiB, page cache full; 1 Gbit/s", "1gbit", "debian", WARM),
    Case("warm/unlimited", "Debian, 2 GiB, page cache full; link as fast as the machine", None, "debian", WARM),
    Case("writing/1gbit", "1 GiB, writing 20 MB/s over 200 MiB; 1 Gbit/s", "1gbit", "tiny", WRITING, 20e6),
    # Not measured unless asked for by name: shows in a minute that everything works.
    Case("smoke/1gbit", "256 MiB, writing 5 MB/s over 32 MiB; 1 Gbit/s", "1gbit", "tiny",
         {"memory": 256, "load": "32:5", "disk": True}, 5e6),
]
COMPARE_ALWAYS = [case for case in COMPARE_CASES if not case.name.startswith("smoke/")]
COMPARE_CONTENDERS = [Contender("ferry", "ferry"), Contender("virsh", "virsh"),
                      Contender("virsh-maxdowntime", "virsh", max_downtime_ms=30)]

# plain: the link is trusted, memory crosses it as it is. tls: it is not, and Ferry encrypts; virsh stays plain.
COMPARE_VARIANTS = ("plain", "tls")

# ---- bench/converge ----


def _writer(name, about, rate, load):
    """A guest of 1 GiB with a load MIB:MBPS:MODE."""
    return Case(name, about, rate, "tiny", {"memory": 1024, "load": load, "disk": True}, float(load.split(":")[1]) * 1e6)


CONVERGE_CASES = [
    _writer("W8b/1gbit", "1 GiB, writing 114 MB/s over 512 MiB; 1 Gbit/s", "1gbit", "512:114"),
    _writer("W8b/100mbit", "the same; 100 Mbit/s", "100mbit", "512:114"),
    _writer("W3/1gbit", "1 GiB, 400 MiB as a key-value store: 60 MB/s, nine tenths of it over 40 MiB; 1 Gbit/s", "1gbit",
            "400:60:skewed"),
    _writer("W4/1gbit", "1 GiB, 64 bytes of each page, 117 MB/s of pages over 200 MiB; 1 Gbit/s", "1gbit",
            "200:117:sparse"),
    _writer("W4/100mbit", "the same with 12 MB/s of pages; 100 Mbit/s", "100mbit", "200:12:sparse"),
]
CONVERGE_QUICK_CASES = CONVERGE_CASES[:1]


def _policy(name):
    return Contender(name, "ferry", ("--policy", name), may_stay=True)


# What a user gets; what a user gets who allows a longer pause, or post-copy; and the policies of other systems on Ferry's machinery.
CONVERGE_VARIANTS = [
    Contender("default", "ferry", may_stay=True),
    Contender("pause", "ferry", ("--converge", "pause=5s"), may_stay=True),
    Contender("postcopy", "ferry", ("--converge", "postcopy"), may_stay=True),
    *map(_policy, ("qemu", "auto-converge", "proxmox", "ovirt", "ovirt-suspend", "kubevirt")),
]
CONVERGE_BASELINES = [
    Contender("virsh", "virsh"),
    Contender("virsh-auto-converge", "virsh", ("--auto-converge",)),
    Contender("virsh-postcopy", "virsh", ("--postcopy", "--postcopy-after-precopy")),
]
CONVERGE_QUICK = ("default", "virsh", "virsh-auto-converge")

# ---- bench/relay ----

RELAY_LINKS = {"100mbit": "100mbit", "1gbit": "1gbit", "unlimited": None}
RELAY_GUESTS = [
    ("W1", "Debian, 1 GiB, idle", "debian", {"memory": 1024, "warm": False}, 0),
    ("W2", "Debian, 2 GiB, page cache full, its image at the destination", "debian", WARM, 0),
    ("W5a", "1 GiB, 700 MiB of text that stands in no image", "tiny", {"memory": 1024, "fill": "text:700"}, 0),
    ("W5b", "1 GiB, 700 MiB that nothing makes smaller", "tiny", {"memory": 1024, "fill": "random:700"}, 0),
]
# A guest that goes back and forth is no sibling of itself: what it has brought the last time must not count.
RELAY_CASES = [Case(f"{name}/{link}", f"{about}; {link}", rate, kind, guest, dirty, {"relay": {"received": "0"}})
               for name, about, kind, guest, dirty in RELAY_GUESTS for link, rate in RELAY_LINKS.items()]
# Pages are written about as fast as the link carries them.
RELAY_CASES += [Case(f"W4/{link}", f"1 GiB, 64 bytes of each page, {rate} MB/s of pages over 200 MiB; {link}", link, "tiny",
                     {"memory": 1024, "load": f"200:{rate}:sparse", "disk": True}, rate * 1e6, {"relay": {"received": "0"}})
                for link, rate in (("100mbit", 12), ("1gbit", 117))]
RELAY_QUICK_CASES = [case for case in RELAY_CASES if case.name in ("W2/1gbit", "W5b/1gbit", "W2/100mbit")]
RELAY_VARIANTS = [
    Contender("relay", "ferry", ("--transport", "relay")),
    Contender("native", "ferry", ("--transport", "native")),
]
RELAY_BASELINES = [
    Contender("virsh", "virsh"),
    Contender("virsh-compressed", "virsh", ("--compressed",)),
    Contender("virsh-parallel", "virsh", ("--parallel", "--parallel-connections", "2")),
    Contender("virsh-tunnelled", "virsh", ("--tunnelled",)),
]
RELAY_QUICK = ("relay", "virsh")
