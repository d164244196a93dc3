# SPDX-License-Identifier: Apache-2.0
"""A lab, the same guest twice (one under ferryd, one under libvirtd), and moves in turn.

Each side's guest is booted once and then moves back and forth. While one side moves, the other's guest is paused, so that
the two do not share the machine. Order: A B C, C B A, …: no side is always first, and the minutes are shared.
"""

import json
import os
import time

from ferrylab import Lab, links
from ferrylab import guest as lab_guest

from . import floor as floors
from .cases import BASELINES
from .ferry import Ferry
from .machine import GuestLost
from .measure import Heartbeats, move
from .rows import human
from .virsh import Virsh, start_daemon

BOOT_S = 600
MAX_DOWNTIME_MS = 30


class Contest:
    """For cases that differ by their link only."""

    def __init__(self, case, variant, qemu, only=None, lab_name="bench", say=print):
        self.case, self.variant, self.qemu, self.only, self.say = case, variant, qemu, only, say
        self.lab = Lab(lab_name)
        self.sides = {}  # "ferry", "virsh" → driver
        self.active = None
        self.scanned = None
        self.limited = False

    def __enter__(self):
        with_ferry, with_virsh = self.only in (None, "ferry"), self.only in (None, "virsh")
        started = time.monotonic()
        self.lab.up(hosts=2, trusted=self.variant == "plain", ferryd=with_ferry, with_qemu=self.qemu.which)
        try:
            self.beats = Heartbeats(self.lab)
            if with_virsh:
                for host in self.lab.hosts:
                    start_daemon(host)
            if with_ferry:
                self.sides["ferry"] = self._define("bench-f", Ferry)
            if with_virsh:
                self.sides["virsh"] = self._define("bench-v", Virsh)
            self.beats.ask("mark")
            for driver in self.sides.values():
                driver.start(self.lab.hosts[0])
            for driver in self.sides.values():
                self.beats.wait(driver.address, 1, BOOT_S)
            for driver in self.sides.values():
                driver.pause()
        except BaseException:
            self.__exit__()
            raise
        self.say(f"guests are up after {time.monotonic() - started:.0f} s")
        return self

    def __exit__(self, *_):
        self.lab.down()

    def _define(self, name, side):
        path = lab_guest.define(self.case.kind, name=name, lab=self.lab.name, **self.case.guest)
        with open(os.path.join(self.lab.path, "shared", os.path.basename(path)), encoding="utf-8") as file:
            definition = json.load(file)
        address = lab_guest.guest_address(definition)
        if side is Ferry:
            return Ferry(self.lab, definition, address, path, self.variant != "plain")
        return Virsh(self.lab, definition, address)

    def set_rate(self, rate):
        """Of each host's link, both ways; None: as fast as the machine can."""
        ends = [(host, "eth0") for host in self.lab.hosts]
        ends += [(self.lab.switch, f"m{host.number}") for host in self.lab.hosts]
        for host, interface in ends:
            if self.limited:
                host.net("tc", [f"qdisc del dev {interface} root"])
            if rate:
                host.net("tc", [f"qdisc add dev {interface} root {links.token_bucket(links.parse_rate(rate), 0)}"])
        self.limited = bool(rate)

    def floor(self):
        """With the present rate; the pages are scanned once."""
        driver = self.sides.get("virsh") or self.sides["ferry"]
        if self.active is not None:
            self.active.pause()
            self.active = None
        if self.scanned is None:
            self.scanned = floors.scan_guest(driver)
            pages = ", ".join(f"{count * 4 >> 10} MiB {kind}" for kind, count in self.scanned["pages"].items())
            self.say(f"scanned memory: {pages} -> {self.scanned['bytes'] / 2**20:.1f} MiB")
        found = {**self.scanned, **floors.link(self.lab)}
        found["wall"] = found["bytes"] / found["rate_bytes_per_s"] * 1000 + found["empty_ms"]
        self.say(f"floor: at {found['rate_bytes_per_s'] / 1e6:.0f} MB/s and with {found['empty_ms']:.0f} ms for an empty "
                 f"guest {found['wall']:.0f} ms")
        return found

    def _activate(self, driver):
        if self.active is not driver:
            if self.active is not None:
                self.active.pause()
            driver.resume()
            self.active = driver

    def _revive(self, driver):
        """After a move, or its lost memory, has killed the guest: the others' figures are still wanted."""
        self.say("    booting the guest anew")
        driver.stop()
        self.beats.ask("mark")
        driver.start(driver.host)
        self.beats.wait(driver.address, 1, BOOT_S)

    def _move(self, driver, name, case, cap_s):
        for attempt in range(2):
            driver.set_max_downtime(MAX_DOWNTIME_MS if name == "virsh-maxdowntime" else None)
            to = next(host for host in self.lab.hosts if host is not driver.host)
            try:
                return move(driver, self.beats, to, case.dirty_bytes_per_s, cap_s)
            except GuestLost as error:
                if attempt:
                    raise
                self.say(f"    {name}: {error}, before this move")
                self._revive(driver)

    def run(self, case, runs, cap_s, baselines=BASELINES):
        """Returns contender's name → list of moves."""
        names = (["ferry"] if "ferry" in self.sides else []) + (list(baselines) if "virsh" in self.sides else [])
        moves = {name: [] for name in names}
        for number in range(runs):
            for name in names if number % 2 == 0 else reversed(names):
                driver = self.sides["ferry" if name == "ferry" else "virsh"]
                self._activate(driver)
                result = self._move(driver, name, case, cap_s)
                moves[name].append(result)
                self.say(f"{number + 1}/{runs} {name:18} {result['from']} -> {result['to']}: "
                         + ", ".join(f"{metric} {human(result[metric], unit)}" for metric, unit in (
                             ("wall", "ms"), ("qemu", "ms"), ("downtime", "ms"), ("blackout", "ms"), ("bytes", "B"),
                             ("cpu", "s"))))
                for note in result["notes"]:
                    self.say(f"    {name}: {note}")
                if result["dead"]:
                    self._revive(driver)
        return moves
