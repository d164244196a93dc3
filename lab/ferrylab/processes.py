# SPDX-License-Identifier: Apache-2.0
"""Processes by pid and start time, and the search for all those that belong to a lab.

A pid alone names nothing: it is reused. Every process that the lab starts is recorded together with its start time, and
signals go through a pidfd that was opened before that time was compared.

To end a lab, everything that lives in its namespaces is ended. Namespace numbers are reused as well, so they count only
as long as the holder that they were read from lives. What outlived its holder is found by a mount that every host of a
lab has, and that nothing else can have: a tmpfs on /run whose source is the lab's mark with the path of its state.
"""

import os
import select
import signal
import time
from dataclasses import dataclass

NAMESPACE_KINDS = ("net", "mnt", "uts")


def start_time(pid, dead=False):
    """Clock ticks since boot, or None for a process that is gone, or (unless dead) dead and not yet reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" and not dead else int(fields[19])


@dataclass(frozen=True)
class Process:
    pid: int
    start: int

    @classmethod
    def of(cls, pid):
        start = start_time(pid)
        return None if start is None else cls(pid, start)

    @classmethod
    def load(cls, path):
        """The process recorded in a file, or None when there is no such file or it no longer lives."""
        try:
            with open(path, encoding="ascii") as file:
                pid, start = (int(word) for word in file.read().split())
        except (OSError, ValueError):
            return None
        process = cls(pid, start)
        return process if process.alive() else None

    def save(self, path):
        with open(path + ".new", "w", encoding="ascii") as file:
            file.write(f"{self.pid} {self.start}\n")
        os.rename(path + ".new", path)

    def alive(self):
        return start_time(self.pid) == self.start

    def _pidfd(self):
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():
            return descriptor
        os.close(descriptor)
        return None

    def signal(self, number):
        """False when there was nothing left to signal."""
        descriptor = self._pidfd()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)

    def wait(self, timeout):
        """True once it has ended, reaped or not. That its first thread is dead is not the end: as long as another one is
        not, files are open and locks held."""
        ended = True
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        if start_time(self.pid, dead=True) != self.start:
            os.close(descriptor)
        else:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            ended = bool(poll.poll(timeout * 1000))
            os.close(descriptor)
        return ended

    def reap(self):
        """For a process that was given away to live on, and ended while its parent, this program, still ran."""
        try:
            os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pass

    def end(self, patience):
        """Asks, waits, then kills."""
        if self.signal(signal.SIGTERM) and not self.wait(patience):
            self.signal(signal.SIGKILL)
        self.wait(10)


def namespaces(pid):
    """The set of (kind, number) that a process lives in; empty when it is gone."""
    found = set()
    for kind in NAMESPACE_KINDS:
        try:
            found.add((kind, os.stat(f"/proc/{pid}/ns/{kind}").st_ino))
        except OSError:
            pass
    return found


def _carries_mark(pid, mark):
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            return any(mark in line.split(" - ", 1)[-1].split()[1:2] for line in file)
    except OSError:
        return False


def members(holders, marks):
    """All living processes in the namespaces of these holders, or in mount namespaces that carry one of these marks."""
    own = namespaces("self")
    wanted = set()
    for holder in holders:
        spaces = namespaces(holder.pid)
        if holder.alive():
            wanted |= spaces
    wanted -= own
    judged = dict.fromkeys((space for space in own if space[0] == "mnt"), False)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        process = Process.of(int(entry))
        spaces = namespaces(entry)
        if process is None or not spaces:
            continue
        mine = bool(spaces & wanted)
        if not mine:
            for space in spaces:
                if space[0] == "mnt":
                    if space not in judged:
                        judged[space] = any(_carries_mark(entry, mark) for mark in marks)
                    mine = judged[space]
        if mine and process.alive():
            found.append(process)
    return found


def kill_members(holders, marks):
    """Kills all but the holders, until nothing is found any more: a process may fork between the search and the signal."""
    deadline = time.monotonic() + 30
    while True:
        found = [process for process in members(holders, marks) if process not in holders]
        for process in found:
            process.signal(signal.SIGKILL)
        for process in found:
            process.wait(5)
        if not found:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"will not die: {' '.join(str(process.pid) for process in found)}")


def end_members(holders, marks):
    """Kills all. Holders last: as long as they live, their namespaces can be told from others."""
    kill_members(holders, marks)
    for holder in holders:
        holder.signal(signal.SIGKILL)
    for holder in holders:
        holder.wait(5)
        holder.reap()
