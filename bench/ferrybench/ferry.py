# SPDX-License-Identifier: Apache-2.0
"""Ferry's own side: the `ferry` command, as a user has it."""

import json
import os

from .machine import BenchError

ROLLED_BACK = 1  # exit status, also of a move that failed otherwise


class Ferry:
    """One guest under ferryd."""

    def __init__(self, lab, definition, address, path, encrypted):
        self.lab, self.definition, self.address, self.path = lab, definition, address, path
        self.name = definition["name"]
        self.encrypted = encrypted
        self.host = None

    def _ferry(self, *words, host=None, timeout=60):
        return (host or self.host).run(["ferry", *words], timeout=timeout).stdout

    def start(self, host):
        if self.host is None:
            self._ferry("vm", "define", self.path, host=host)
        self._ferry("vm", "start", self.name, host=host)
        self.host = host

    def prepare(self, hosts):
        """The images of its disks are indexed on all hosts, as on hosts that have been up for a while."""
        for host in hosts:
            for disk in self.definition["disks"]:
                self._ferry("image", "index", disk["path"], "--owner", self.definition["owner"], host=host)

    def stop(self):
        self._ferry("vm", "stop", self.name)

    def pause(self):
        self._ferry("vm", "pause", self.name)

    def resume(self):
        self._ferry("vm", "resume", self.name)

    def qemu_pid(self):
        """Found by its name in its command line, among the processes of its host."""
        name, space = f"guest={self.name},".encode(), os.stat(f"/proc/{self.host.holder.pid}/ns/net").st_ino
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if entry.isdigit() and name in file.read() and os.stat(f"/proc/{entry}/ns/net").st_ino == space:
                        return int(entry)
            except OSError:
                pass
        raise BenchError(f"no QEMU of {self.name} on {self.host.name}")

    def set_max_downtime(self, _milliseconds):
        """ferryd decides by itself."""

    def move_command(self, to, words=()):
        return ["ferry", "migrate", self.name, "--to", to.name, "--output", "json", *words]

    def abort(self):
        moves = json.loads(self._ferry("migration", "list", "--output", "json"))
        for move in moves:
            if move["vm"] == self.name and not move.get("ended"):
                self._ferry("migration", "abort", move["id"])

    @staticmethod
    def stayed(code, stdout, stderr):
        """Why the guest is where it was, if that is what the command says; else None."""
        result = _parse(stdout) if code == ROLLED_BACK else {}
        if result.get("status") != "rolled-back":
            return None
        return (result.get("reason") or {}).get("message") or stderr.strip() or "no reason given"

    def reported(self, stdout, _host, completed):
        result = _parse(stdout)
        if completed and result.get("status") != "completed":
            raise BenchError(f"the move ended with 0 and yet is {result.get('status')}: {stdout[:1000]}")
        if completed and result.get("encrypted") is not None and result["encrypted"] != self.encrypted:
            raise BenchError(f"the move was {'' if result['encrypted'] else 'not '}encrypted, against what is measured")
        return {"qemu": result.get("qemu_total_ms") if completed else None,
                "downtime": result.get("downtime_ms") if completed else None, "reported": result}


def _parse(stdout):
    try:
        return json.loads(stdout)
    except ValueError:
        raise BenchError(f"ferry migrate --output json printed no JSON: {stdout[:300]!r}") from None
