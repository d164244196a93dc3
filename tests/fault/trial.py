# SPDX-License-Identifier: Apache-2.0
"""One cell of the matrix: a migration, one fault at one moment of it, and what came of it.

The ferryd that passes the moment is told so by name (PUT /v1/faults). A fault that is its own death or its own message
happens right there; for one that happens to somebody else it stands still there (SIGSTOP), the fault is made to happen,
and it goes on.
"""

import contextlib
import os
import re
import threading
import time

from field import FORGETFUL, PATIENCE, POLL_S, Refused, Wrong

DELAY_MS = 1500
MOMENT_S = 0.33
LINGER_S = 0.05
MAX_DOWNTIME_MS = 1500  # a busy machine must not fail a move; what is cut is noticed when it is over
DEADLINE_MS = 15000  # of a copy that may stand still; nothing else would end it
ABORT_GAP_MS = 300  # for the request to be made in
# Slower than what the guest dirties with its whole memory to copy: longer than the destination waits in silence.
SLOW_BYTES_PER_S = 20_000_000
# Less than the guest writes, so that it comes to post-copy; what is missing then takes a second or two.
POSTCOPY_BYTES_PER_S, POSTCOPY_DOWNTIME_MS = 6_000_000, 200
UNANSWERED = "no answer from the destination|the destination does not answer|post-copy cannot go on yet"
STANDS_STILL = ("prepared", "copying", "offered", "switching"), ("link-there", "link-back", "link-both", "destination-host")


class Trial:
    def __init__(self, field, guest, cell):
        self.field, self.guest, self.cell = field, guest, cell
        self.source, self.destination = guest.host, field.other(guest.host)
        sides = {"source": self.source, "destination": self.destination}
        self.here = sides[cell.side]  # who passes the moment
        self.victim = sides.get(cell.fault.partition("-")[0])
        self.postcopy = cell.phase.startswith("postcopy-")
        self.ident = None
        self.marks = {name: self._log_size(name) for name in field.names}
        self.asking = None

    # ---- the log ----

    def _log_size(self, name):
        return os.path.getsize(self.field.lab.ferryd_log(name))

    def log_since(self, name):
        with open(self.field.lab.ferryd_log(name), "rb") as file:
            file.seek(self.marks[name])
            return file.read().decode(errors="replace")

    def fired(self, name, point):
        return f"fault={point} action=" in self.log_since(name)

    # ---- the migration ----

    def arm(self, action):
        """The fault, and what the course needs."""
        specs = {name: [] for name in (self.source, self.destination)}
        specs[self.here].append(f"{self.cell.point}={action}")
        if self.cell.course == "abort":
            specs[self.source].append(f"after-offered=delay:{ABORT_GAP_MS}")
        forgetful = {"source-power": (self.source,), "destination-power": (self.destination,), "source-host": (self.source,),
                     "destination-host": (self.destination,), "both-hosts": (self.source, self.destination)}
        for name in forgetful.get(self.cell.fault, ()):
            self.field.restart_ferryd(name, ",".join([FORGETFUL, *specs.pop(name)]))
        for name, spec in specs.items():
            if spec:
                self.field.set_faults(name, ",".join(spec))

    def begin(self):
        request = {"max_downtime_ms": MAX_DOWNTIME_MS}
        if self.cell.course == "slow":
            request["bandwidth_bytes_per_s"] = SLOW_BYTES_PER_S
        if self.postcopy:
            request = {"converge": ["postcopy"], "bandwidth_bytes_per_s": POSTCOPY_BYTES_PER_S,
                       "max_downtime_ms": POSTCOPY_DOWNTIME_MS}
        if self.cell.phase in STANDS_STILL[0] and self.cell.fault in STANDS_STILL[1]:
            request["deadline_ms"] = DEADLINE_MS

        def ask():
            with contextlib.suppress(OSError, Refused):  # whoever answers may be about to die
                self.ident = self.field.begin(self.guest, self.destination, **request)
        # Its answer may have to wait for somebody who stands still.
        self.asking = threading.Thread(target=ask, daemon=True)
        self.asking.start()
        if self.cell.course == "abort":
            self.abort()
        if self.cell.course == "cut":
            self.cut()

    def begin_by_client(self):
        words = ["ferry", "migrate", self.guest.name, "--to", self.destination, "--max-downtime", f"{MAX_DOWNTIME_MS}ms"]
        if self.cell.course == "slow":
            words += ["--bandwidth", f"{SLOW_BYTES_PER_S * 8 // 1_000_000}mbit"]
        client = self.field.host(self.source).popen(words, stdin=-3, stdout=-3, stderr=-3)
        if self.cell.course == "abort":
            self.abort()
        return client

    def abort(self):
        deadline = time.monotonic() + 20
        while not self.fired(self.source, "after-offered"):
            if time.monotonic() > deadline:
                raise Wrong("the baton was never offered")
            time.sleep(0.003)
        with contextlib.suppress(OSError):
            self.field.api(self.source, "POST", f"/v1/migrations/{self.identity()}/abort")

    def cut(self):
        """The stream, once the guest runs at the destination: a QEMU there that has not got as far ends."""
        self.asking.join(20)
        self.field.await_record(self.destination, self.identity(), lambda m: m and m["handover"] == "running")
        self.field.cut_stream(self.source)

    def identity(self):
        """The migration's id; from the log where the answer never came."""
        if not self.ident:
            found = re.search(r"migration=([0-9a-f]{32})", self.log_since(self.source))
            self.ident = found and found.group(1)
        return self.ident

    # ---- faults ----

    def reach(self, stopped):
        self.arm("stop" if stopped else "kill")
        self.begin()
        self.field.await_ferryd(self.here, stopped)
        if stopped:
            time.sleep(LINGER_S)  # a guest that runs too early has the time to be noticed

    def kill_at(self, victim):
        if victim == self.here:
            self.reach(stopped=False)
        else:
            self.reach(stopped=True)
            self.field.kill(victim)
            self.field.go_on(self.here)

    def noticed(self):
        """The source has come to an end, or is in doubt and says what it waits for."""
        if not self.identity():
            return
        if self.postcopy:
            self.noticed_in_postcopy()
            return
        record = self.field.await_record(self.source, self.ident, lambda m: m is None or m["ended"] or m["status"] == "in-doubt")
        if record and record["status"] == "in-doubt" and not self.cell.fault.startswith(("error", "full", "short")):
            if record["reason"]["code"] != "migration.in_doubt" or self.destination not in record["reason"]["message"]:
                raise Wrong(f"in doubt, but it does not say what about: {record['reason']}")

    def noticed_in_postcopy(self):
        """The source has asked and heard nothing, which its record need not show: its QEMU goes on serving, or tries to. One whose
        QEMU has not begun to does not ask; then the destination has noticed."""
        def over(record):
            return record is None or record["ended"]
        deadline = time.monotonic() + PATIENCE
        while not re.search(UNANSWERED, self.log_since(self.source)) and not over(self.field.record(self.source, self.ident)):
            if self.cell.phase == "postcopy-begun" and self.field.alive(self.destination):
                there = self.field.record(self.destination, self.ident)
                if over(there) or there["status"] == "in-doubt":
                    break
            if time.monotonic() > deadline:
                raise Wrong("nobody has noticed")
            time.sleep(POLL_S)

    def settled_there(self):
        """The destination has come to an end by itself, or never knew of it, or has forgotten it; or has everything and says
        that it waits for the source."""
        if self.identity():
            self.field.await_record(self.destination, self.ident, lambda m: m is None or m["ended"] or m["status"] == "in-doubt")

    def happen(self):
        fault = self.cell.fault
        actions = {
            "source-ferryd": self.source_ferryd, "source-power": self.source_ferryd, "source-ferryd-late": self.source_late,
            "destination-ferryd": self.destination_ferryd, "destination-power": self.destination_ferryd,
            "both-ferryds": self.both_ferryds, "source-stall": self.source_stall, "destination-stall": self.destination_stall,
            "source-qemu": self.qemu, "destination-qemu": self.qemu, "source-host": self.source_host,
            "destination-host": self.destination_host, "both-hosts": self.both_hosts, "client": self.client,
            "link-there": self.link, "link-back": self.link, "link-both": self.link, "link-moment": self.link_moment,
            "ahead": self.clock, "behind": self.clock,
        }
        actions.get(fault, self.message)()

    def source_ferryd(self):
        self.kill_at(self.source)
        self.field.start_ferryd(self.source)

    def source_late(self):
        self.kill_at(self.source)
        self.settled_there()
        self.field.start_ferryd(self.source)

    def destination_ferryd(self):
        self.kill_at(self.destination)
        self.noticed()
        self.field.start_ferryd(self.destination)

    def both_ferryds(self):
        """Who died at the moment itself comes back last."""
        self.reach(stopped=False)
        other = self.field.other(self.here)
        self.field.kill(other)
        self.field.start_ferryd(other)
        self.field.start_ferryd(self.here)

    def stand_still(self, victim, until):
        self.reach(stopped=True)
        if victim != self.here:
            self.field.hold(victim)
            self.field.go_on(self.here)
        until()
        self.field.go_on(victim)

    def source_stall(self):
        self.stand_still(self.source, self.settled_there)

    def destination_stall(self):
        self.stand_still(self.destination, self.noticed)

    def qemu(self):
        self.reach(stopped=True)
        self.field.kill_qemu(self.victim, self.guest)
        self.field.go_on(self.here)

    def power_off(self, *victims):
        self.reach(stopped=True)
        for victim in victims:
            self.field.lab.power_off(victim)
        self.field.go_on(self.here)

    def power_on(self, *victims):
        for victim in victims:
            self.field.lab.power_on(victim)

    def source_host(self):
        self.power_off(self.source)
        self.power_on(self.source)

    def destination_host(self):
        self.power_off(self.destination)
        self.noticed()
        self.power_on(self.destination)

    def both_hosts(self):
        self.power_off(self.source, self.destination)
        self.power_on(self.destination, self.source)

    def client(self):
        self.arm("stop")
        client = self.begin_by_client()
        self.field.await_ferryd(self.here, stopped=True)
        client.kill()
        client.wait()
        self.field.go_on(self.here)

    def block(self):
        paths = {"link-there": [(self.source, self.destination)], "link-back": [(self.destination, self.source)]}
        for path in paths.get(self.cell.fault, [(self.source, self.destination), (self.destination, self.source)]):
            self.field.lab.block(*path)

    def link(self):
        self.reach(stopped=True)
        self.block()
        self.field.go_on(self.here)
        self.noticed()
        if not self.postcopy:
            self.settled_there()
        self.field.lab.unblock()

    def link_moment(self):
        self.reach(stopped=True)
        self.block()
        self.field.go_on(self.here)
        time.sleep(MOMENT_S)  # that long is the fault
        self.field.lab.unblock()

    def message(self):
        """Messages, records and storage: all by the point's own name."""
        action, _, turn = self.cell.fault.partition("@")
        always = action.endswith("-all")
        action = action.removesuffix("-all")
        number = f":{DELAY_MS}" if action == "delay" else ""
        self.arm(f"{action}{number}" + ("@*" if always else f"@{turn}" if turn else ""))
        self.begin()
        self.asking.join(20)
        if always or turn:
            self.noticed()
            for name in self.field.names:
                self.field.set_faults(name, "")

    def clock(self):
        self.arm(f"jump:{86400 if self.cell.fault == 'ahead' else -86400}")
        self.begin()

    # ---- and then ----

    def state(self, owner):
        """A process that has ended is tidied up a moment after its migration."""
        deadline = time.monotonic() + PATIENCE
        while (state := self.field.vms(owner)[self.guest.name]["state"]) == "gone" and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return state

    def result(self):
        """What the source's record says, then what the guest does and where."""
        record = self.field.record(self.source, self.identity()) if self.identity() else None
        owner, _ = self.field.agree(self.guest)
        side = "source" if owner == self.source else "destination"
        state = self.state(owner)
        does = {"running": "runs"}.get(state, state)
        return f"{record['status'] if record else 'forgotten'}, {does} at the {side}", owner, state

    def finish(self):
        """Waits until all is quiet; the result, with everything looked at."""
        field, guest = self.field, self.guest
        self.asking and self.asking.join(20)
        if self.identity():
            field.await_record(self.source, self.ident, lambda m: m is None or m["ended"])
        field.quiet(guest)
        if not self.fired(self.here, self.cell.point):
            raise Wrong(f"the fault never happened on {self.here}")
        for name in field.names:
            field.set_faults(name, "")
        result, owner, state = self.result()
        if self.postcopy and state == "stopped" and owner == self.destination and self.cell.phase != "postcopy-done":
            self.said_lost()
        if self.postcopy and state == "paused":
            self.stop_stuck(owner)
            state = "stopped"
        field.all_is_well(guest, owner, {"running": True, "paused": False, "stopped": None}[state])
        return result, owner, state

    def said_lost(self):
        """Its owner says plainly what has become of the guest."""
        reason = self.field.record(self.destination, self.ident).get("reason")
        if not reason or reason["code"] != "qemu.gone" or "the guest is lost" not in reason["message"]:
            raise Wrong(f"the guest is lost, and its owner says {reason}")

    def stop_stuck(self, owner):
        """What a person has to do when QEMU lets a guest run no more that was on its way by post-copy."""
        if self.field.ferry(owner, "vm", "resume", self.guest.name, check=False).returncode == 0:
            raise Wrong("a guest that was on its way by post-copy could be resumed at the source")
        self.field.ferry(owner, "vm", "stop", self.guest.name)

    def afterwards(self, owner, state):
        """Whatever has become of it, it can be moved again."""
        if state == "stopped":
            self.field.start_again(self.guest, owner)
        self.field.move_again(self.guest)
        if self.cell.fault.startswith(("error", "full", "short")):
            # What was not written must not come up again when the VM is somewhere else by now.
            for name in self.field.names:
                self.field.restart_ferryd(name)
            self.field.quiet(self.guest)
            self.field.all_is_well(self.guest, self.guest.host, running=True)


def try_cell(field, guest, cell, expected):
    """Runs one cell; the result, or Wrong."""
    field.mark()
    trial = Trial(field, guest, cell)
    trial.happen()
    result, owner, state = trial.finish()
    if result not in expected:
        raise Wrong(f"it is {result!r}, and must be {' or '.join(map(repr, expected))}")
    trial.afterwards(owner, state)
    return result
