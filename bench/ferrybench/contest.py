# SPDX-License-Identifier: Apache-2.0
"""The same guest twice (one under ferryd, one under libvirtd), and moves in turn.

Each side's guest is booted once and then moves back and forth. While one side moves, the other's guest is paused, so that
the two do not share the machine. Order: A B C, C B A, …: no contender is always first, and the minutes are shared.
"""

import time

from . import floor as floors
from .ferry import Ferry
from .machine import BenchError, GuestLost
from .measure import CAPPED, COMPLETED, move
from .rows import human
from .stage import Stage
from .virsh import Virsh

SIDES = {"ferry": Ferry, "virsh": Virsh}
SHOWN = (("wall", "ms"), ("qemu", "ms"), ("downtime", "ms"), ("blackout", "ms"), ("bytes", "B"), ("cpu", "s"),
         ("lost_work", "s"))


class Contest(Stage):
    """For cases that differ by their link only."""

    def __init__(self, case, encrypted, contenders, qemu, lab_name="bench", say=print):
        super().__init__(qemu, encrypted, lab_name, say)
        self.case, self.contenders = case, contenders
        self.sides = {}  # "ferry", "virsh" → driver
        self.scanned = None

    def __enter__(self):
        sides = dict.fromkeys(contender.side for contender in self.contenders)
        started = time.monotonic()
        try:
            self.up("ferry" in sides, "virsh" in sides, self.case.config)
            for side in sides:
                self.sides[side] = self.define(f"bench-{side[0]}", SIDES[side], self.case.kind, self.case.guest)
            self.boot(*self.sides.values())
            for driver in self.sides.values():
                driver.prepare(self.lab.hosts)
        except BaseException:
            self.down()
            raise
        self.say(f"guests are up after {time.monotonic() - started:.0f} s")
        return self

    def __exit__(self, *_):
        self.down()

    def floor(self):
        """With the present rate; the pages are scanned once."""
        driver = self.sides.get("virsh") or self.sides["ferry"]
        self.rest()
        if self.scanned is None:
            self.scanned = floors.scan_guest(driver)
            pages = ", ".join(f"{count * 4 >> 10} MiB {kind}" for kind, count in self.scanned["pages"].items())
            self.say(f"scanned memory: {pages} -> {self.scanned['bytes'] / 2**20:.1f} MiB")
        found = {**self.scanned, **floors.link(self.lab)}
        found["wall"] = found["bytes"] / found["rate_bytes_per_s"] * 1000 + found["empty_ms"]
        self.say(f"floor: at {found['rate_bytes_per_s'] / 1e6:.0f} MB/s and with {found['empty_ms']:.0f} ms for an empty "
                 f"guest {found['wall']:.0f} ms")
        return found

    def _move(self, contender, case, cap_s):
        driver = self.sides[contender.side]
        self.activate(driver)
        for attempt in range(2):
            driver.set_max_downtime(contender.max_downtime_ms)
            try:
                return move(driver, self.beats, self.other_host(driver), case.dirty_bytes_per_s, cap_s, contender.words)
            except GuestLost as error:
                if attempt:
                    raise
                self.say(f"    {contender.name}: {error}, before this move")
                self.revive(driver)

    def run(self, case, runs, cap_s):
        """Returns contender's name → list of moves. cap_s: contender's name → seconds, after which it is aborted."""
        moves = {contender.name: [] for contender in self.contenders}
        for number in range(runs):
            for contender in self.contenders if number % 2 == 0 else reversed(self.contenders):
                result = self._move(contender, case, cap_s[contender.name])
                if result["outcome"] not in (COMPLETED, CAPPED) and not contender.may_stay:
                    raise BenchError(f"{contender.name}: the guest has not moved: {result['reason']}")
                moves[contender.name].append(result)
                self.say(f"{number + 1}/{runs} {contender.name:20} {result['from']} -> {result['to']}: "
                         + ", ".join(f"{metric} {human(result[metric], unit)}" for metric, unit in SHOWN))
                for note in result["notes"]:
                    self.say(f"    {contender.name}: {note}")
                if result["dead"]:
                    self.revive(self.sides[contender.side])
        return moves
