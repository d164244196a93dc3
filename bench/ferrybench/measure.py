# SPDX-License-Identifier: Apache-2.0
"""One move, measured from outside.

Both sides are measured by the same hands: the clock around the command, the counters of the source's link, the CPU
time of all processes of the lab, and the heartbeats that the guest sends to the client each millisecond. Only `qemu` and `downtime`
are what the mover itself reports.

`lost_work` is the time that the guest's load did not work: of each moment, from the command's start until AFTER_S after its
end, the part that the load was slower than right before. Of a guest that was not steady then it is not known.

`cpu` is what the processes of both hosts (QEMUs, daemons, the command) spent while the command ran, less what they
spent in as much time with the guest just running, measured right before.
"""

import json
import socket
import subprocess
import time
from dataclasses import dataclass

from ferrylab import LabError
from ferrylab import guest as lab_guest

from .machine import BenchError, GuestLost, spent_seconds

CONTROL = "/run/lab/heartbeat"
STEADY_BEATS = 1000
STEADY_TRIES = 20
STEADY_GAP_MS = 40
AFTER_BEATS, AFTER_S, SILENT_S = 200, 2, 30

# How a move ends: the guest has moved; nothing had ended when the time was over; the mover has left the guest where it was.
COMPLETED, CAPPED, STAYED = "completed", "capped", "stayed"


@dataclass
class Before:
    """The guest right before a move."""
    steady: bool
    cpu_per_s: float  # spent by everything, with the guest just running
    work_per_s: float  # of its load
    dirty_bytes_per_s: float


@dataclass
class Run:
    """One run of a command."""
    start_ns: int
    end_ns: int = 0
    wall_s: float = 0
    spent_s: float = 0
    sent_bytes: int = 0
    ended: bool = True
    abort_failed: str | None = None
    code: int = 0
    stdout: str = ""
    stderr: str = ""


class Heartbeats:
    """The heartbeat client, in the lab's client."""

    def __init__(self, lab, tries=STEADY_TRIES):
        """tries: how many seconds it may take a guest to get steady; then it is taken as it is."""
        self.lab, self.tries = lab, tries
        self.rates = {}  # address → most beats a second seen of this guest
        program = f"{lab.build}/lab/heartbeat-client"
        self.process = lab.client.popen([program, "--control", CONTROL], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise BenchError(f"{program} does not start; build it first")
        self.control = lab.client.outside(CONTROL)

    def ask(self, question, timeout=30):
        return lab_guest.ask(self.control, question, timeout)

    def wait(self, address, beats, timeout):
        """Until the guest has sent so many beats since the mark; returns what is known of it."""
        try:
            return self._of(self.ask(f"wait {address} {beats}", timeout), address)
        except socket.timeout:
            raise GuestLost(f"the guest at {address} is not heard of within {timeout} s") from None

    def report(self, address):
        return self._of(self.ask("report"), address)

    @staticmethod
    def _of(report, address):
        # A guest that was booted anew is another one at the same address: the last heard of counts.
        found = [guest for guest in report.get("guests", []) if guest["address"] == address]
        if not found:
            raise BenchError(f"the client has heard nothing of {address}: {json.dumps(report)[:300]}")
        return max(found, key=lambda guest: guest["last_ns"])

    def steady(self, address, dirty_bytes_per_s, timeout=60):
        """Until a second has passed in which the guest was heard without a gap, as often as it ever was, and wrote
        what it should."""
        for _ in range(self.tries):
            self.ask("mark")
            spent, clock = spent_seconds(), time.monotonic()
            since = self.wait(address, STEADY_BEATS, timeout)["since_mark"]
            spent, clock = spent_seconds() - spent, time.monotonic() - clock
            rate = since["received"] / max(since["seconds"], 1e-9)
            best = self.rates[address] = max(rate, self.rates.get(address, 0))
            before = Before(rate >= 0.9 * best and since["max_gap_ms"] <= STEADY_GAP_MS
                            and since["dirty_bytes_per_s"] >= 0.9 * dirty_bytes_per_s,
                            spent / clock, since["work_per_s"], since["dirty_bytes_per_s"])
            if before.steady:
                break
        return before

    def order(self, address, load, timeout=300):
        """The guest's load is to be this, MIB:MBPS:MODE; returns when it is, with all of its memory written once."""
        try:
            answer = self.ask(f"load {address} {load}", timeout)
        except socket.timeout:
            raise GuestLost(f"the guest at {address} has not taken the load {load} within {timeout} s") from None
        if "error" in answer:
            raise BenchError(f"the guest at {address} does not take the load {load}: {answer['error']}")

    def close(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


def blackouts(counts, start_ns, end_ns):
    """The times of more than 10 ms without a beat that began or ended while the command ran, longest first: [ms, from
    when to when, in ms after the command's start]."""
    gaps = [[gap["ms"], (gap["start_ns"] - start_ns) / 1e6, (gap["end_ns"] - start_ns) / 1e6]
            for gap in counts["gaps"] if gap["end_ns"] >= start_ns and gap["start_ns"] <= end_ns]
    return sorted(gaps, reverse=True)


def _run(driver, command, cap_s):
    """Runs the command on the driver's host. What does not end is aborted."""
    sent, spent = driver.lab.link_stats(driver.host)["tx_bytes"], spent_seconds()
    run, clock = Run(start_ns=time.time_ns()), time.monotonic()
    process = driver.host.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)
    try:
        run.stdout, run.stderr = process.communicate(timeout=cap_s)
        run.wall_s = time.monotonic() - clock
    except subprocess.TimeoutExpired:
        run.wall_s, run.ended = cap_s, False
    run.end_ns, run.spent_s = time.time_ns(), spent_seconds() - spent
    run.sent_bytes = driver.lab.link_stats(driver.host)["tx_bytes"] - sent
    if not run.ended:
        try:
            driver.abort()
        except LabError as error:
            run.abort_failed = str(error)
        run.stdout, run.stderr = process.communicate(timeout=cap_s)
    run.code = process.returncode
    return run


def _outcome(driver, command, run):
    """How it ended, and why the guest is where it was."""
    if not run.ended:
        return CAPPED, None
    if run.code == 0:
        return COMPLETED, None
    reason = driver.stayed(run.code, run.stdout, run.stderr)
    if reason is None:
        raise BenchError(f"{' '.join(command)} on {driver.host.name} ended with {run.code}:\n"
                         f"{run.stderr or run.stdout}".rstrip())
    return STAYED, reason


def _listen(beats, address, run, before, known):
    """What the guest says for itself, once it has been heard AFTER_S behind the command."""
    # So many more than there were when the command ended: only then has the guest been heard behind the pause.
    heard = beats.report(address)
    while True:
        heard = beats.wait(address, heard["since_mark"]["received"] + AFTER_BEATS, SILENT_S)
        if heard["last_ns"] >= run.end_ns + AFTER_S * 1e9:
            break
    counts = heard["since_mark"]
    gaps = blackouts(counts, run.start_ns, run.end_ns)
    found = {"silent": gaps[0][0] if gaps else counts["max_gap_ms"], "gaps": gaps[:10], "notes": [],
             "guest": {key: counts[key] for key in ("received", "lost", "doubled", "two_copies", "reordered",
                                                    "pages_checked", "late_beats")}}
    if before.steady and before.work_per_s > 0:
        found["lost_work"] = counts["seconds"] - counts["seconds"] * counts["work_per_s"] / before.work_per_s
    if counts["two_copies"]:
        found["notes"].append(f"{counts['two_copies']} beats from a second copy of the guest")
    # Found in its own time, by the guest: these may be of an earlier move.
    for key, words in (("pages_wrong", "pages with wrong content"), ("clock_back", "times its clock went back")):
        found["guest"][key] = heard[key] - known[key]
        if found["guest"][key]:
            found["notes"].append(f"the guest has found {found['guest'][key]} {words}")
    return found


def move(driver, beats, to, dirty_bytes_per_s, cap_s, words=()):
    """Moves the driver's guest to the host `to`, and returns a dictionary with all metrics, `outcome`, `dead` and `notes`.

    What did not end, and what left the guest where it was, counts with the whole of cap_s in `wall`; `took_s` is what
    it was."""
    notes = []
    before = beats.steady(driver.address, dirty_bytes_per_s)
    if not before.steady:
        notes.append("the guest did not get steady before the move: is the machine busy otherwise?")
    known = beats.report(driver.address)
    source, command = driver.host, driver.move_command(to, words)
    beats.ask("mark")
    run = _run(driver, command, cap_s)
    outcome, reason = _outcome(driver, command, run)
    result = {"outcome": outcome, "reason": reason, "wall": (run.wall_s if outcome == COMPLETED else cap_s) * 1000,
              "took_s": run.wall_s, "completed": float(outcome == COMPLETED), "bytes": run.sent_bytes,
              "cpu": run.spent_s - before.cpu_per_s * run.wall_s, "dead": False, "qemu": None, "overhead": None,
              "downtime": None, "blackout": None, "lost_work": None, "silent": None, "reported": None, "before": vars(before),
              "from": source.name, "to": to.name, "notes": notes}
    if outcome == CAPPED:
        notes.append(f"did not end within {cap_s:.0f} s and was aborted"
                     + (f"; that failed: {run.abort_failed}" if run.abort_failed else ""))
    elif outcome == STAYED:
        notes.append(f"has stayed, after {run.wall_s:.1f} s: {reason}")
    if run.code == 0:
        driver.host = to
    if outcome != CAPPED:
        result.update(driver.reported(run.stdout, to if outcome == COMPLETED else source, outcome == COMPLETED))
    if result["qemu"] is not None:
        result["overhead"] = result["wall"] - result["qemu"]
    try:
        found = _listen(beats, driver.address, run, before, known)
    except GuestLost:
        notes.append(f"the guest is dead: nothing heard for {SILENT_S} s after the move")
        result["dead"] = True
        return result
    notes += found.pop("notes")
    result.update(found)
    if outcome == COMPLETED:
        result["blackout"] = result["silent"]
    return result
