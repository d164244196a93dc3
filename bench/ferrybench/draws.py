# SPDX-License-Identifier: Apache-2.0
"""Moves drawn at random: what a guest does, over which link, and what is promised. Each follows from the seed and its number
alone, so that a run that was interrupted goes on with the same ones."""

import math
import random
from dataclasses import dataclass

from ferrylab import links

# Raised when draws change: moves of before cannot be taken together with those of after.
VERSION = 1
MEMORY_MIB = (256, 512, 1024, 2048)
MEMORY_QUICK_MIB = (256, 512)
RATES = ("100mbit", "200mbit", "500mbit", "1gbit", "1gbit", None)
MODES = ("pages", "pages", "skewed", "sparse")
CONVERGE = (("throttle",), ("throttle",), ("none",), ("pause",), ("throttle", "pause"), ("throttle", "postcopy"))
OWN_MIB = 120  # what a guest needs for itself, and what is not zero of it
GOODPUT = 0.94  # of a link's rate
UNLIMITED_BYTES_PER_S = 75e6  # twice that is about what an emulated guest can write
IDLE_SHARE = 0.1
BEFORE_S = 1.5  # of a move, until the first byte


@dataclass(frozen=True)
class Draw:
    number: int
    memory_mib: int
    rate: str | None  # of the link; None: as fast as the machine can
    working_set_mib: int
    dirty_mb_per_s: float  # what the guest is asked to write
    mode: str
    max_downtime_ms: int
    deadline_ms: int | None
    deadline_kind: str  # none, tight, loose
    converge: tuple
    pause_ms: int | None  # the bound of "pause"

    @property
    def load(self):
        return f"{self.working_set_mib}:{self.dirty_mb_per_s:g}:{self.mode}"

    @property
    def naive_s(self):
        """How long a guest that stands still would take."""
        return _naive_s(self.working_set_mib, self.rate)

    @property
    def longest_pause_ms(self):
        return max(self.max_downtime_ms, self.pause_ms or 0)

    @property
    def words(self):
        """The promise, for `ferry migrate`."""
        means = ",".join(f"pause={self.pause_ms}ms" if means == "pause" else means for means in self.converge)
        return ["--max-downtime", f"{self.max_downtime_ms}ms", "--converge", means,
                *(["--deadline", f"{self.deadline_ms}ms"] if self.deadline_ms else [])]

    def __str__(self):
        return (f"{self.memory_mib} MiB writing {self.load}, {self.rate or 'unlimited'}; pause {self.max_downtime_ms} ms, "
                + (f"deadline {self.deadline_ms / 1000:.1f} s ({self.deadline_kind}), " if self.deadline_ms else "")
                + " ".join(self.words[3:4]))


def _link_bytes_per_s(rate):
    return links.parse_rate(rate) / 8 * GOODPUT if rate else UNLIMITED_BYTES_PER_S


def _naive_s(working_set_mib, rate):
    return BEFORE_S + (working_set_mib + OWN_MIB) * 2**20 / _link_bytes_per_s(rate)


def _log_uniform(dice, low, high):
    return math.exp(dice.uniform(math.log(low), math.log(high)))


def _tens(number):
    return int(round(number, -1))


def draw(seed, number, memory_mib=MEMORY_MIB):
    dice = random.Random(f"{VERSION}/{seed}/{number}")
    memory = dice.choice(memory_mib)
    rate = dice.choice(RATES)
    working_set = round(_log_uniform(dice, 8, 0.6 * (memory - OWN_MIB)))
    times_link = 0 if dice.random() < IDLE_SHARE else dice.uniform(0, 2)
    mode = dice.choice(MODES)
    max_downtime_ms = _tens(_log_uniform(dice, 50, 1000))
    kind = dice.choice(("none", "none", "tight", "loose"))
    converge = dice.choice(CONVERGE)
    pause_ms = _tens(max_downtime_ms * dice.uniform(1.5, 6) + 200) if "pause" in converge else None
    naive_s = _naive_s(working_set, rate)
    deadline_ms = {"none": None, "tight": _tens(1000 * naive_s * dice.uniform(0.5, 1.5)),
                   "loose": _tens(1000 * (naive_s * dice.uniform(3, 8) + 5))}[kind]
    return Draw(number, memory, rate, working_set, round(times_link * _link_bytes_per_s(rate) / 1e6, 1), mode,
                max_downtime_ms, deadline_ms, kind, converge, pause_ms)
