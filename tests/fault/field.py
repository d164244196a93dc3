# SPDX-License-Identifier: Apache-2.0
"""A pair of lab hosts on which faults are made to happen, and the questions that are asked afterwards.

The guest is kept alive from one cell to the next: it moves back and forth. Only where a cell has ended it is it started
again, where it is owned.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/system"))

from moves import Pair, PromiseBroken, Refused, network_of  # noqa: E402
from ferrylab import disk  # noqa: E402
from sampler import Sampler  # noqa: E402

# Short, as what is awaited here is mostly a time-out of the other side; not so short that a busy machine runs into them.
TIMEOUTS = {"silence_limit": 1, "finish_timeout": 2, "check_timeout": 5, "prepare_timeout": 10, "refuse_timeout": 2,
            "outcome_timeout": 1, "check_lifetime": 5, "retry_limit": 1}
PATIENCE = 40
POLL_S = 0.003
READS = 3  # of a disk that is being written: a slot may be caught half written, but not again and again
FORGETFUL = "journal-sync=forget"


def time_limits(build):
    """Those of TIMEOUTS that this ferryd has as configuration."""
    known = Path(ROOT / "src/host/config.tbl").read_text()
    return {key: str(value) for key, value in TIMEOUTS.items() if f'"migration", "{key}"' in known}


class Wrong(AssertionError):
    """What a cell finds that must not be."""


class Field(Pair):
    def __init__(self, name, hosts=2):
        build = Path(os.environ.get("FERRY_BUILD") or ROOT / "build").resolve()
        super().__init__(name, hosts=hosts, faults=True, restore=True,
                         config={"migration": time_limits(build), "data": {"native_ports": "49152-49167"}})
        self.sampler = Sampler([self._is_ours])
        self.sampler.start()

    def close(self):
        if hasattr(self, "sampler"):
            self.sampler.stop()
        for name in self.names:  # what stands still cannot end
            self.go_on(name)
        super().close()

    def _is_ours(self, network):
        for host in self.lab.hosts:
            with contextlib.suppress(OSError, Exception):
                if os.stat(f"/proc/{host.holder.pid}/ns/net").st_ino == network:
                    return True
        return False

    def start_guest(self, name="f", host="host-a"):
        """Memory and disk under load; saved, so that it need not be booted again where a cell has ended it."""
        guest = self.guest(name, host, memory=96, load="8:40", disk_load="2:1")
        guest.passes(1)
        self.lab.save_guest(host, name)
        self.start_saved(guest, host)
        return guest

    def start_saved(self, guest, host):
        """From its saved state: the same life once more, so what was heard of it before no longer counts."""
        self.ask(f"forget {guest.address}")
        self.ferry(host, "vm", "start", guest.name)
        self.wait_beats(guest, 200)
        guest.host = host

    # ---- ferryd ----

    def await_ferryd(self, host, stopped, timeout=PATIENCE):
        """Until it has stopped itself, or has ended by itself."""
        pid = self.lab.ferryd_pid(host)
        deadline = time.monotonic() + timeout
        while True:
            seen, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG) if pid else (1, 0)
            if seen and stopped and os.WIFSTOPPED(status):
                return pid
            if seen and not stopped and (not pid or os.WIFSIGNALED(status)):
                return pid
            if seen:
                raise Wrong(f"ferryd of {host} {'ended' if stopped else 'stopped'} instead: status {status:#x}")
            if time.monotonic() > deadline:
                raise Wrong(f"the fault never happened on {host}")
            time.sleep(POLL_S)  # the kernel has no event for this that other children would not take

    def hold(self, host):
        """It stands still from now on."""
        pid = self.lab.ferryd_pid(host)
        os.kill(pid, signal.SIGSTOP)
        return pid

    def go_on(self, host):
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(self.lab.ferryd_pid(host), signal.SIGCONT)

    def kill(self, host):
        if self.lab.ferryd_pid(host):
            self.kill_ferryd(host)

    def alive(self, host):
        return self.lab.ferryd_pid(host) is not None

    def kill_qemu(self, host, guest):
        for pid in self.qemus(host).get(guest.name, []):
            os.kill(pid, signal.SIGKILL)
            self.wait_gone(pid)

    def cut_stream(self, source):
        """As a router that has forgotten the connection: both ends are told so by the kernel."""
        with network_of(self.host(source)):
            subprocess.run(["ss", "-K", "-tn", "state", "established", "( dport >= :49152 )"], check=True, stdout=subprocess.DEVNULL)

    def reboot(self, host):
        self.lab.reboot(host)

    # ---- what is told ----

    def record(self, host, ident):
        """A migration's record, or None where there is none."""
        try:
            return self.migration(host, ident)
        except Refused as refused:
            if refused.code != "migration.not_found":
                raise
            return None

    def records(self, host, guest):
        return [m for m in self.api(host, "GET", "/v1/migrations")["migrations"] if m["vm"] == guest.name]

    def await_record(self, host, ident, condition, timeout=PATIENCE):
        """Until condition holds of the record (None: there is none). Long polls."""
        deadline = time.monotonic() + timeout
        seen = None
        while True:
            query = "" if seen is None else f"?seen={seen}&wait_ms=1000"
            try:
                record = self.api(host, "GET", f"/v1/migrations/{ident}{query}")
            except Refused as refused:
                if refused.code != "migration.not_found":
                    raise
                record = None
            if condition(record):
                return record
            if time.monotonic() > deadline:
                raise Wrong(f"{host} does not get on with it: {json.dumps(record, indent=1)}")
            if record is None:
                time.sleep(POLL_S)
            seen = record and record["change"]

    def quiet(self, guest, timeout=PATIENCE):
        """Until no host works on a migration of the guest any more."""
        for name in self.names:
            for record in self.records(name, guest):
                if not record["ended"] or record["cleanup_pending"]:
                    self.await_record(name, record["id"],
                                      lambda m: m is None or (m["ended"] and not m["cleanup_pending"]), timeout)

    def agree(self, guest):
        """Both journals: who owns it, and in which epoch."""
        known = {name: (vm["owner"], vm["epoch"]) for name in self.names if (vm := self.vms(name).get(guest.name))}
        if len(set(known.values())) != 1:
            raise Wrong(f"the journals do not agree: {known}")
        return next(iter(known.values()))

    def all_is_well(self, guest, owner, running):
        """moves.py's question, the journals, and what the watcher outside has seen."""
        told = self.agree(guest)
        if told[0] != owner:
            raise Wrong(f"owned by {told[0]}, not by {owner}")
        self.settled(guest, owner, running=running)
        self.never_twice()
        self.disk_says_once(guest)

    def never_twice(self):
        if self.sampler.found:
            raise PromiseBroken("; ".join(self.sampler.found))

    def disk_says_once(self, guest):
        """The guest itself, and what it has left on a disk without locks: was there ever a second writer?"""
        seen = guest.report()
        if seen["disk_wrong"] or seen["disk_foreign"]:
            raise PromiseBroken(f"the guest has found {seen['disk_wrong']} wrong blocks on its disk, {seen['disk_foreign']} of another writer")
        for _ in range(READS):
            found = disk.check(os.path.join(self.lab.path, "shared", f"{guest.name}.load"))
            if not (found["doubles"] or found["forks"] or found["overlaps"]):
                return
        raise PromiseBroken(f"two have written to the disk: {found}")

    def start_again(self, guest, owner):
        """Crashed: it can be started where it is owned, and only there."""
        for name in self.names:
            if name != owner:
                started = self.ferry(name, "vm", "start", guest.name, check=False)
                if started.returncode == 0:
                    raise PromiseBroken(f"{guest.name} could be started on {name}, though {owner} owns it")
        self.disk_says_once(guest)
        self.start_saved(guest, owner)

    def move_again(self, guest):
        destination = self.other(guest.host)
        self.migrate(guest, destination)
        self.quiet(guest)
        self.all_is_well(guest, destination, running=True)
