# SPDX-License-Identifier: Apache-2.0
"""The lab: N hosts on one machine, for tests, demonstrations and benchmarks.

    with Lab("mytest").up(hosts=2, rate="1gbit", delay="20ms", ferryd=False) as lab:
        lab.host("host-a").run(["ip", "address"])

What is where: lab.py (class Lab), hosts.py (one host's namespaces), holder.py (runs inside and keeps them), links.py
(networks, rates, delays, cuts), daemon.py (ferryd, certificates, configuration), probe.py (round trip and TCP rate),
processes.py (finding and ending what is ours), cli.py (the command), guest.py (guests), qemu.py (what these run on).
"""

from .errors import LabError
from .lab import Lab

__all__ = ["Lab", "LabError"]
