# SPDX-License-Identifier: Apache-2.0
"""The cells of the fault matrix: every moment of a migration that has a name, times everything that can happen then.

The moments come from `ferryd-faults --list-faults`, which prints src/base/fault.tbl; what is known of them here is only
how a migration gets there (its course) and how far it is then (its phase). A point without a phase is an error, so a
new one cannot be forgotten. No cell is dropped: one that makes no sense is listed with its reason.
"""

import fnmatch
import json
import random
import subprocess
from dataclasses import dataclass

# How far a migration is, in the order of a good one. "back" are the phases of one that is called off.
PHASES = {
    "check": "nothing is on disk yet",
    "begun": "the source has opened its journal, the destination knows nothing for certain",
    "prepared": "the destination has recorded it, the source has not heard so",
    "copying": "memory is copied",
    "offered": "the baton is offered, the guest may be stopped",
    "switching": "the guest is stopped, QEMU sends the rest",
    "sent": "the source's QEMU has sent everything, finish has not arrived",
    "asked": "the destination has finish in hand",
    "taken": "the destination has taken the VM, and not let it run",
    "entered": "the guest runs at the destination, which is not recorded",
    "running": "that it runs is recorded, the source has not heard so",
    "heard": "the source has heard that it runs",
    "released": "the source has let go",
    "back-begun": "called off, the baton is still offered",
    "back-held": "the source has taken the baton back",
    "back-asked": "the destination has been told to refuse",
    "back-refused": "the destination has refused",
    "postcopy-begun": "by post-copy: the guest is stopped, QEMU sends the devices' state",
    "postcopy-asked": "by post-copy: the destination has finish in hand, the source serves pages",
    "postcopy-serving": "by post-copy: the guest runs at the destination, which lacks pages",
    "postcopy-mending": "by post-copy: the same, and the stream is broken",
    "postcopy-done": "by post-copy: the destination lacks nothing any more",
}

# point: (phase, course). Courses: "move" is a good one; "abort" is called off once the baton was offered; "slow" copies for
# longer than the destination waits in silence, so that it asks.
WHERE = {
    "probes-placed": ("check", "move"), "check-send": ("check", "move"), "check-received": ("check", "move"),
    "check-answer": ("check", "move"), "check-answered": ("check", "move"), "before-holds": ("check", "move"),
    "after-holds": ("begun", "move"), "prepare-send": ("begun", "move"), "prepare-received": ("begun", "move"),
    "before-prepared": ("begun", "move"),
    "after-prepared": ("prepared", "move"), "incoming-started": ("prepared", "move"), "prepare-answer": ("prepared", "move"),
    "prepare-answered": ("prepared", "move"),
    "copy-begun": ("copying", "move"), "before-offered": ("copying", "move"),
    "outcome-send": ("copying", "slow"), "outcome-received": ("copying", "slow"), "outcome-answer": ("copying", "slow"),
    "outcome-answered": ("copying", "slow"),
    "after-offered": ("offered", "move"), "switch-begun": ("switching", "move"),
    "copy-completed": ("sent", "move"), "finish-send": ("sent", "move"),
    "finish-received": ("asked", "move"), "before-taken": ("asked", "move"),
    "after-taken": ("taken", "move"), "before-running": ("entered", "move"),
    "after-running": ("running", "move"), "finish-answer": ("running", "move"),
    "finish-answered": ("heard", "move"), "before-released": ("heard", "move"),
    "after-released": ("released", "move"), "source-released": ("released", "move"),
    "copy-cancelled": ("back-begun", "abort"), "before-taken-back": ("back-begun", "abort"),
    "after-taken-back": ("back-held", "abort"), "taken-back": ("back-held", "abort"), "refuse-send": ("back-held", "abort"),
    "refuse-received": ("back-asked", "abort"), "before-refused": ("back-asked", "abort"),
    "after-refused": ("back-refused", "abort"), "refuse-answer": ("back-refused", "abort"),
    "refuse-answered": ("back-refused", "abort"),
}

# The same for a move by post-copy; in the course "cut" its stream is cut while pages are served.
POSTCOPY = {
    "postcopy-begun": ("postcopy-begun", "postcopy"), "finish-received": ("postcopy-asked", "postcopy"),
    "postcopy-serving": ("postcopy-serving", "postcopy"), "postcopy-listening": ("postcopy-mending", "cut"),
    "postcopy-mending": ("postcopy-mending", "cut"), "postcopy-done": ("postcopy-done", "postcopy"),
}

# The result is kept by both sides, at the end of either course.
ENDED = {
    ("source", "move"): "released", ("destination", "move"): "running",
    ("source", "abort"): "back-refused", ("destination", "abort"): "back-refused",
}

# What can happen at any moment, and to whom.
VICTIMS = {
    "source-ferryd": "the source's ferryd is killed, and started again at once",
    "source-ferryd-late": "the source's ferryd is killed, and started again when the destination has settled by itself",
    "destination-ferryd": "the destination's ferryd is killed, and started again when the source has noticed",
    "both-ferryds": "both are killed",
    "source-power": "the source's ferryd is killed, and what its journal has not synced is lost",
    "destination-power": "the same at the destination",
    "source-stall": "the source's ferryd stands still until the destination has settled by itself",
    "destination-stall": "the destination's ferryd stands still until the source has noticed",
    "source-qemu": "the source's QEMU is killed",
    "destination-qemu": "the destination's QEMU is killed",
    "source-host": "the source's host is switched off and on",
    "destination-host": "the destination's host is switched off and on",
    "both-hosts": "both hosts are switched off and on",
    "client": "`ferry migrate` is killed",
    "relay": "the relay is killed",
    "link-there": "nothing gets from the source to the destination, until both have noticed",
    "link-back": "nothing gets from the destination to the source, until both have noticed",
    "link-both": "nothing gets through, either way, until both have noticed",
    "link-moment": "nothing gets through for a third of a second",
}

# What is tried of it in post-copy, where each of the two QEMUs has a part of the guest.
POSTCOPY_VICTIMS = ("source-ferryd", "destination-ferryd", "source-qemu", "destination-qemu", "link-there", "link-back", "link-both")

# What can happen to a message, by the kind of the point; "-all": to each of them, until it has been noticed.
MESSAGES = {
    "SEND": ("drop", "drop-all", "cut", "corrupt", "repeat", "old", "delay"),
    "RECEIVED": ("drop", "drop-all", "hold", "delay"),
    "ANSWER": ("drop", "drop-all", "hold", "cut", "corrupt", "delay"),
    "ANSWERED": ("drop", "drop-all", "delay"),
}
STORES = {
    "journal-write": ("error", "full", "short"), "journal-sync": ("error",),
    "file-write": ("error", "full", "short"), "file-sync": ("error",),
}
# How often a move writes and syncs at least; each of them fails once.
STORE_TURNS = {("journal-write", "source"): 12, ("journal-write", "destination"): 16, ("journal-sync", "source"): 4,
               ("journal-sync", "destination"): 4}
JUMPS = {"ahead": 86400, "behind": -86400}


@dataclass(frozen=True)
class Cell:
    point: str
    side: str  # of the point
    course: str
    phase: str
    fault: str
    nonsense: str = ""  # why it makes no sense

    @property
    def name(self):
        return f"{self.point}@{self.side}/{self.course}:{self.fault}"


def list_points(program):
    """[(name, side, kind)]; a point of both sides is two."""
    table = json.loads(subprocess.run([program, "--list-faults"], check=True, stdout=subprocess.PIPE).stdout)
    points = []
    for point in table["points"]:
        sides = ("source", "destination") if point["side"] == "both" else (point["side"],)
        points += [(point["name"], side, point["kind"].upper()) for side in sides]
    return points


def moments(points):
    """(point, side, kind, course, phase) of each moment of a migration; the storage and the clock are none."""
    for name, side, kind in points:
        if kind in ("STORE", "CLOCK"):
            continue
        if name in ("before-ended", "after-ended"):
            for (ended_side, course), phase in ENDED.items():
                if ended_side == side:
                    yield name, side, kind, course, phase
        elif name in WHERE or name in POSTCOPY:
            for where in (WHERE, POSTCOPY):
                if name in where:
                    phase, course = where[name]
                    yield name, side, kind, course, phase
        else:
            raise KeyError(f"nothing is known of the fault point {name!r}: add it to {__file__}")


def _nonsense(victim, point, phase):
    if victim == "relay":
        return "there is no relay: QEMU copies by itself"
    if victim == "destination-qemu":
        if phase in ("check", "begun") or point == "after-prepared":
            return "the destination has no QEMU yet"
        if phase == "back-refused" or point == "before-refused":
            return "the destination has no QEMU any more"
    if victim == "source-qemu" and (phase == "released" and point in ("before-ended", "after-ended")):
        return "the source has no QEMU any more"
    return ""


def generate(points):
    """Every cell, in the table's order."""
    points = list(points)
    cells = []
    for name, side, kind, course, phase in moments(points):
        if phase.startswith("postcopy-"):
            cells += [Cell(name, side, course, phase, victim) for victim in POSTCOPY_VICTIMS]
            continue
        cells += [Cell(name, side, course, phase, victim, _nonsense(victim, name, phase)) for victim in VICTIMS]
        cells += [Cell(name, side, course, phase, action) for action in MESSAGES.get(kind, ())]
        if kind == "RECORD" and name.startswith("before-"):
            cells.append(Cell(name, side, course, phase, "error"))
            if name != "before-ended":  # which nobody waits for
                cells.append(Cell(name, side, course, phase, "error-all"))
    for name, side, kind in points:
        if kind == "STORE":
            if name not in STORES:
                raise KeyError(f"nothing is known of the fault point {name!r}: add it to {__file__}")
            if (name, side) not in STORE_TURNS:
                cells += [Cell(name, side, "move", "storage", f"{action}@1", "only a move that QEMU encrypts writes small "
                               "files, and the network of these hosts is a trusted one") for action in STORES[name]]
            cells += [Cell(name, side, "move", "storage", f"{action}@{turn}") for action in STORES[name]
                      for turn in range(1, STORE_TURNS.get((name, side), 0) + 1)]
        elif kind == "CLOCK":
            cells += [Cell(name, side, course, "clock", way) for course in ("move", "abort") for way in JUMPS]
    return cells


# `make test-faults`: all kills of a ferryd, all lost messages.
DAEMONS = ("source-ferryd", "destination-ferryd", "both-ferryds")
LOST = ("drop", "hold")

# `make test`: a cell of each sort, at the moments that matter most.
FEW = (
    "after-offered@source/move:source-ferryd", "copy-completed@source/move:source-ferryd",
    "after-taken@destination/move:destination-ferryd", "before-released@source/move:both-ferryds",
    "before-running@destination/move:destination-power", "finish-answer@destination/move:drop",
    "finish-send@source/move:old", "before-taken@destination/move:error",
    "after-taken@destination/move:destination-host", "copy-completed@source/move:source-host",
    "finish-received@destination/move:source-qemu", "copy-cancelled@source/abort:source-ferryd",
    "refuse-answer@destination/abort:hold", "finish-answer@destination/move:link-there",
    "postcopy-mending@source/cut:source-ferryd", "postcopy-serving@source/postcopy:source-qemu",
)


def choose(cells, which, pattern=None, seed=None):
    if which == "few":
        chosen = [cell for cell in cells if cell.name in FEW]
        assert len(chosen) == len(FEW), set(FEW) - {cell.name for cell in chosen}
    elif which == "daemons":
        chosen = [cell for cell in cells if cell.fault in DAEMONS or cell.fault in LOST]
    else:
        chosen = list(cells)
    if pattern:
        chosen = [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, part) for part in pattern.split(","))]
    if seed is not None:
        random.Random(seed).shuffle(chosen)
    return chosen
