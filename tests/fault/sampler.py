# SPDX-License-Identifier: Apache-2.0
"""Watches from outside whether two copies of a guest run at the same time.

The guest's own heartbeats say so as well, but only where they reach the client. This one believes nobody: it finds
every QEMU of the machine in /proc by itself, and reads what the kernel says for how long each virtual CPU's thread has
run (schedstat). A guest that is stopped, or that waits to arrive, uses none.
"""

import os
import re
import threading
import time

PERIOD_S = 0.02
RAN_NS = 300_000  # in one period; a stopped guest's thread is woken at times, for microseconds
PERIODS = 3  # so many in a row in which both ran: a handover falls into one


class Sampler(threading.Thread):
    def __init__(self, places):
        """places: functions that say whether a network namespace's number belongs to the lab."""
        super().__init__(daemon=True)
        self.places = places
        self.known = {}  # pid: (guest, schedstat's path) or None for what is no QEMU of ours
        self.ran = {}  # pid: nanoseconds at the last look
        self.together = {}  # guest: periods in a row
        self.found = []  # what must not be, in words
        self.most = {}  # guest: the most QEMUs that ran in one period, for the report
        self.looks = 0
        self.ending = threading.Event()

    def run(self):
        while not self.ending.wait(PERIOD_S):
            self.look()

    def stop(self):
        self.ending.set()
        self.join()

    def look(self):
        pids = {entry for entry in os.listdir("/proc") if entry.isdigit()}
        self.known = {pid: what for pid, what in self.known.items() if pid in pids}
        running = {}
        for pid in pids:
            if pid not in self.known:
                self.known[pid] = self._judge(pid)
            if not self.known[pid]:
                continue
            guest, path = self.known[pid]
            try:
                with open(path, encoding="ascii") as file:
                    ran = int(file.read().split()[0])
            except (OSError, IndexError):
                continue
            if ran - self.ran.get(pid, ran) > RAN_NS:
                running.setdefault(guest, []).append(pid)
            self.ran[pid] = ran
        self.looks += 1
        for guest, pids in running.items():
            self.most[guest] = max(self.most.get(guest, 0), len(pids))
        for guest in set(self.together) | set(running):
            both = len(running.get(guest, ())) > 1
            self.together[guest] = self.together.get(guest, 0) + 1 if both else 0
            if self.together[guest] == PERIODS:
                self.found.append(f"at {time.time():.3f}: {guest} ran in processes {' and '.join(running[guest])} "
                                  f"at the same time, for {PERIODS * PERIOD_S * 1000:.0f} ms")

    def _judge(self, pid):
        """None also for a process that is still being started: it is asked again, being new, only if it has no thread yet."""
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read(16384).decode(errors="replace").split("\0")
            if "qemu-system" not in " ".join(words[:3]):
                # A shell that is about to become QEMU, or a child of ferryd before its exec, is looked at again.
                return None if words[0] and "ferryd" not in words[0] and "nsenter" not in words[0] else self._again(pid)
            guest = next((match.group(1) for word in words if (match := re.match(r"guest=([^,]+)", word))), None)
            if not guest or not any(place(os.stat(f"/proc/{pid}/ns/net").st_ino) for place in self.places):
                return None if guest else self._again(pid)
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/comm", encoding="utf-8") as file:
                    if file.read().startswith("CPU "):
                        return guest, f"/proc/{pid}/task/{thread}/schedstat"
        except OSError:
            pass
        return self._again(pid)

    def _again(self, pid):
        self.known.pop(pid, None)
        return None
