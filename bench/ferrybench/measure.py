# SPDX-License-Identifier: Apache-2.0
"""One move, measured from outside.

Both sides are measured by the same hands: the clock around the command, the counters of the source's link, the CPU
time of all processes of the lab, and the heartbeats that the guest sends to the client each millisecond. Only `qemu` and `downtime`
are what the mover itself reports.

`cpu` is what the processes of both hosts (QEMUs, daemons, the command) spent while the command ran, less what they
spent in as much time with the guest just running, measured right before.
"""

import json
import socket
import subprocess
import time

from ferrylab import guest as lab_guest

from .machine import BenchError, GuestLost, spent_seconds

CONTROL = "/run/lab/heartbeat"
STEADY_BEATS = 1000
STEADY_TRIES = 20
STEADY_GAP_MS = 40
AFTER_BEATS, AFTER_S = 200, 30


class Heartbeats:
    """The heartbeat client, in the lab's client."""

    def __init__(self, lab):
        self.lab = lab
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
        what it should. Returns (whether it came to that, CPU seconds a second spent meanwhile)."""
        for _ in range(STEADY_TRIES):
            self.ask("mark")
            spent, clock = spent_seconds(), time.monotonic()
            since = self.wait(address, STEADY_BEATS, timeout)["since_mark"]
            spent, clock = spent_seconds() - spent, time.monotonic() - clock
            rate = since["received"] / max(since["seconds"], 1e-9)
            best = self.rates[address] = max(rate, self.rates.get(address, 0))
            if (rate >= 0.9 * best and since["max_gap_ms"] <= STEADY_GAP_MS
                    and since["dirty_bytes_per_s"] >= 0.9 * dirty_bytes_per_s):
                return True, spent / clock
        return False, spent / clock

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


def move(driver, beats, to, dirty_bytes_per_s, cap_s):
    """Moves the driver's guest to the host `to`, and returns a dictionary with all metrics, `ended`, `dead` and `notes`."""
    notes = []
    steady, cpu_rate = beats.steady(driver.address, dirty_bytes_per_s)
    if not steady:
        notes.append("the guest did not get steady before the move: is the machine busy otherwise?")
    known = beats.report(driver.address)
    source, command = driver.host, driver.move_command(to)
    sent = driver.lab.link_stats(source)["tx_bytes"]
    beats.ask("mark")
    spent, start_ns, clock = spent_seconds(), time.time_ns(), time.monotonic()
    process = source.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        stdout, stderr = process.communicate(timeout=cap_s)
        wall_s, ended = time.monotonic() - clock, True
    except subprocess.TimeoutExpired:
        wall_s, ended = cap_s, False
    end_ns, spent = time.time_ns(), spent_seconds() - spent
    sent = driver.lab.link_stats(source)["tx_bytes"] - sent
    result = {"wall": wall_s * 1000, "bytes": sent, "cpu": spent - cpu_rate * wall_s, "ended": ended, "dead": False, "notes": notes,
              "qemu": None, "overhead": None, "downtime": None, "blackout": None, "from": source.name, "to": to.name}
    if not ended:
        notes.append(f"did not end within {cap_s} s and was aborted")
        driver.abort()
        process.communicate(timeout=60)
        return result
    if process.returncode != 0:
        raise BenchError(f"{' '.join(command)} on {source.name} ended with {process.returncode}:\n{stderr or stdout}".rstrip())
    driver.host = to
    result.update(driver.reported(stdout, to))
    if result["qemu"] is not None:
        result["overhead"] = result["wall"] - result["qemu"]
    try:
        # So many more than there were when the command ended: only then has the guest been heard behind the pause.
        heard = beats.report(driver.address)["since_mark"]["received"]
        heard = beats.wait(driver.address, heard + AFTER_BEATS, AFTER_S)
    except GuestLost:
        notes.append(f"the guest is dead: nothing heard for {AFTER_S} s after the move")
        result["dead"] = True
        return result
    counts = heard["since_mark"]
    gaps = blackouts(counts, start_ns, end_ns)
    result["blackout"] = gaps[0][0] if gaps else counts["max_gap_ms"]
    result["gaps"] = gaps[:10]
    result["guest"] = {key: counts[key] for key in ("received", "lost", "doubled", "two_copies", "reordered",
                                                    "pages_checked", "late_beats")}
    if counts["two_copies"]:
        notes.append(f"{counts['two_copies']} beats from a second copy of the guest")
    # Found in its own time, by the guest: these may be of an earlier move.
    for key, words in (("pages_wrong", "pages with wrong content"), ("clock_back", "times its clock went back")):
        result["guest"][key] = heard[key] - known[key]
        if result["guest"][key]:
            notes.append(f"the guest has found {result['guest'][key]} {words}")
    return result
