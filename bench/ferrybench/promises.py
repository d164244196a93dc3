# SPDX-License-Identifier: Apache-2.0
"""Drawn moves, made: guests that are kept from one move to the next, a record of each in a file that can be gone on with."""

import dataclasses
import json
import os
import re
import time

from . import draws, verdicts
from .ferry import Ferry
from .machine import BenchError, GuestLost
from .measure import move
from .stage import Stage

CAP_S = 600
# What ferryd's log at level debug says of the copy: a record has it, so that another policy or predictor can be tried on it.
TOLD = re.compile(r" ((?:options policy=|sample at_us=|pass=\d+ limit_ms=|known memory=|predicted |sampled dirty).*)$")
# A guest is moved when ferryd has looked at it: elsewhere it has all the time in the world for that. Of two looks one began
# after the load had changed; each takes ten seconds.
LOOKS, LOOKS_S, LOOK_POLL_S = 2, 90, 0.2
STEADY_TRIES = 5  # there are many moves, and each says whether its guest was
# A fixed setting that has not come to its end then is not going to.
FIXED_CAP_TIMES, FIXED_CAP_MORE_S = 4, 30
FIXED_PARTS = (1, 0.5)  # of the pause that is allowed: QEMU's limit leaves out what a pause costs beside memory
# Of the moves that Ferry has completed, one in so many is tried with fixed settings as well, to know how many of them do it.
FIXED_SAMPLE_EVERY = 5


class Records:
    """A line of JSON for each move, after one of what it all is of. An interruption costs the move under way only."""

    def __init__(self, path, head):
        self.path, self.found = path, {}
        lines = self._read()
        if lines and {key: lines[0].get(key) for key in head} != head:
            raise BenchError(f"{path} is of something else: {json.dumps(lines[0])[:200]}; go on with that, or name another")
        for line in lines[1:]:
            self.found[line["number"]] = line
        if not lines:
            self._append(head)

    def _read(self):
        """What there is; half a line at the end, of when it was interrupted, is taken away."""
        try:
            with open(self.path, "r+b") as file:
                text = file.read()
                whole = text.rfind(b"\n") + 1
                file.truncate(whole)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[:whole].splitlines()]

    def _append(self, value):
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def add(self, record):
        self._append(record)
        self.found[record["number"]] = record

    def sorted(self, count=None):
        return [self.found[number] for number in sorted(self.found) if count is None or number < count]


def fixed_settings(draw):
    """Words for `ferry migrate` with each fixed setting that is tried, the likeliest first."""
    policies = ["fixed", "fixed-throttle"] if "throttle" in draw.converge else ["fixed"]
    return [["--policy", policy, "--max-downtime", f"{max(1, round(draw.longest_pause_ms * part))}ms"]
            for policy in policies for part in FIXED_PARTS]


class Promises(Stage):
    """The lab, with one guest for each size of memory, booted when it is needed first."""

    def __init__(self, qemu, encrypted, lab_name, say):
        super().__init__(qemu, encrypted, lab_name, say)
        self.guests = {}  # MiB of memory → driver
        self.rate = None

    def __enter__(self):
        try:
            self.up(config={"migration": {"sampling_interval": "1"}, "log": {"level": "debug"}},
                    tries=STEADY_TRIES)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_):
        self.down()

    def _guest(self, memory_mib):
        if memory_mib not in self.guests:
            self.say(f"booting a guest of {memory_mib} MiB")
            driver = self.define(f"promise-{memory_mib}", Ferry, "tiny", {"memory": memory_mib, "load": "8:1"})
            self.rest()
            self.boot(driver)
            self.guests[memory_mib] = driver
        return self.guests[memory_mib]

    def _revive(self, driver, draw):
        self.revive(driver)
        self.beats.order(driver.address, draw.load)

    def _move(self, draw, words, cap_s):
        """One move of this draw's guest; nothing is asked of how fast it really writes, that is recorded."""
        driver = self.guests[draw.memory_mib]
        for attempt in range(2):
            try:
                result = move(driver, self.beats, self.other_host(driver), 0, cap_s, words)
                break
            except GuestLost as error:
                if attempt:
                    raise
                self.say(f"    {error}, before this move")
                self._revive(driver, draw)
        if result["dead"]:
            self._revive(driver, draw)
        return result

    def _log_from(self, host, position=None):
        """The lines of a host's log that tell of copies, from there on; or, with nothing said, where it ends now."""
        with open(self.lab.ferryd_log(host), encoding="utf-8", errors="replace") as log:
            if position is None:
                return log.seek(0, os.SEEK_END)
            log.seek(position)
            return [found[1] for line in log if (found := TOLD.search(line.rstrip()))]

    def _order(self, driver, draw):
        """The guest's load is this draw's, and ferryd has had the time to notice; False if it has not."""
        self.beats.order(driver.address, draw.load)
        sampled = f"sampled vm_uuid={driver.definition['uuid']}".encode()
        with open(self.lab.ferryd_log(driver.host), "rb") as log:
            log.seek(0, os.SEEK_END)
            looks, rest, end = 0, b"", time.monotonic() + LOOKS_S
            while looks < LOOKS and time.monotonic() < end:
                time.sleep(LOOK_POLL_S)
                lines = (rest + log.read()).split(b"\n")
                rest = lines.pop()
                looks += sum(sampled in line for line in lines)
        return looks == LOOKS

    def make(self, draw):
        """The record of one drawn move."""
        driver = self._guest(draw.memory_mib)
        if draw.rate != self.rate:
            self.set_rate(draw.rate)
            self.rate = draw.rate
        self.activate(driver)
        looked_at = self._order(driver, draw)
        source, position = driver.host, self._log_from(driver.host)
        record = {"number": draw.number, "draw": dataclasses.asdict(draw), "looked_at": looked_at,
                  "move": self._move(draw, draw.words, CAP_S), "told": self._log_from(source, position), "fixed": []}
        judged = verdicts.judge(record)
        if judged["completed"] and draw.number % FIXED_SAMPLE_EVERY:
            return record
        cap_s = min(CAP_S, draw.naive_s * FIXED_CAP_TIMES + FIXED_CAP_MORE_S)
        if draw.deadline_ms:
            cap_s = min(cap_s, draw.deadline_ms / 1000 + 1)
        for words in fixed_settings(draw):
            result = self._move(draw, words, cap_s)
            record["fixed"].append({"words": words, "move": result})
            if verdicts.fixed_keeps(record["draw"], result):
                break
        return record


def draw_all(seed, count, quick):
    return [draws.draw(seed, number, draws.MEMORY_QUICK_MIB if quick else draws.MEMORY_MIB) for number in range(count)]
