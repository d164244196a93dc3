# SPDX-License-Identifier: Apache-2.0
"""The cases: which guest moves over which link."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    rate: str | None  # of each host's link; None: as fast as the machine can
    kind: str  # as in `lab/lab guest`
    guest: dict = field(default_factory=dict)  # more arguments of ferrylab.guest.define()
    dirty_bytes_per_s: float = 0  # what the load is asked to write


WARM = {"memory": 2048, "warm": True}
WRITING = {"memory": 1024, "load": "200:20", "disk": True}

CASES = [
    Case("warm/1gbit", "Debian, 2 GiB, page cache full; 1 Gbit/s", "1gbit", "debian", WARM),
    Case("warm/unlimited", "Debian, 2 GiB, page cache full; link as fast as the machine", None, "debian", WARM),
    Case("writing/1gbit", "1 GiB, writing 20 MB/s over 200 MiB; 1 Gbit/s", "1gbit", "tiny", WRITING, 20e6),
    # Not measured unless asked for by name: shows in a minute that everything works.
    Case("smoke/1gbit", "256 MiB, writing 5 MB/s over 32 MiB; 1 Gbit/s", "1gbit", "tiny",
         {"memory": 256, "load": "32:5", "disk": True}, 5e6),
]
ALWAYS = [case for case in CASES if not case.name.startswith("smoke/")]

# plain: the link is trusted, memory crosses it as it is. tls: it is not, and Ferry encrypts; virsh stays plain.
VARIANTS = ("plain", "tls")
BASELINES = ("virsh", "virsh-maxdowntime")
