# SPDX-License-Identifier: Apache-2.0
"""One host of the lab: its place on disk, its namespaces, and running programs in it.

The switch and the client are hosts as well, with less furniture. A host's namespaces have no names in the file system;
its holder process keeps them, so nothing can stay behind when that has ended.
"""

import json
import os
import shlex
import subprocess
import sys
import uuid

from . import qemu
from .errors import LabError
from .processes import Process

# Directories in which a host may write without the machine seeing it. /var as a whole would be simpler, but a build
# directory below it must stay the machine's own.
OVERLAYS = ("/etc", "/srv", "/var/cache", "/var/lib", "/var/log")

SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/ip_forward": "0",
    # Each address belongs to one of the two networks: no host answers for it on the other.
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/rp_filter": "1",
    "net/bridge/bridge-nf-call-arptables": "0",
    "net/bridge/bridge-nf-call-iptables": "0",
    # The kernel's defaults, whatever the machine has been tuned to, so that figures can be compared (cubic where the
    # machine lets us choose, see holder.py); and no memory of earlier connections, so that the second run of a
    # benchmark starts like the first.
    "net/ipv4/tcp_congestion_control": "cubic",
    "net/ipv4/tcp_rmem": "4096 131072 6291456",
    "net/ipv4/tcp_wmem": "4096 16384 4194304",
    "net/ipv4/tcp_no_metrics_save": "1",
}


def host_name(index):
    """host-a … host-z, host-aa, … for 0, 1, …"""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return "host-" + letters


class Host:
    def __init__(self, lab, name, number=None):
        self.lab = lab
        self.name = name
        self.number = number  # 1… for hosts, None for the switch and the client
        self.path = os.path.join(lab.path, name)
        self._holder = None

    def __repr__(self):
        return f"<{self.name} of lab {self.lab.name}>"

    @property
    def address(self):
        """On the migration network."""
        if self.number is None:
            raise LabError(f"{self.name} is not on the migration network")
        return f"198.18.0.{self.number}"

    @property
    def guests_address(self):
        return "198.18.1.250" if self.number is None else f"198.18.1.{self.number}"

    @property
    def holder(self):
        if self._holder is None or not self._holder.alive():
            self._holder = Process.load(os.path.join(self.path, "holder.pid"))
            if self._holder is None:
                raise LabError(f"{self.name} of lab {self.lab.name!r} is not up")
        return self._holder

    def is_up(self):
        try:
            return self.holder is not None
        except LabError:
            return False

    @property
    def mark(self):
        return "ferry-lab:" + self.path

    # ---- Making it ----

    def _spec(self, names):
        spec = {"title": f"ferry-lab:{self.lab.name}:{self.name}", "hostname": self.name, "mark": self.mark,
                "overlays": [], "binds": [], "files": {}, "sysctls": SYSCTLS}
        if self.name == "sw":
            return spec
        for path in OVERLAYS:
            if os.path.isdir(path):
                place = os.path.join(self.path, "overlay", path.strip("/").replace("/", "-"))
                spec["overlays"].append({"path": path, "upper": place + "/upper", "work": place + "/work"})
        spec["binds"].append({"source": os.path.join(self.lab.path, "shared"), "path": "/srv/shared"})
        if self.number is not None:
            # Straight on the disk that the build directory is on, so that a journal is as durable as it says.
            for source, path in (("etc", "/etc/ferry"), ("lib", "/var/lib/ferry"), ("local", "/srv/local")):
                spec["binds"].append({"source": os.path.join(self.path, source), "path": path})
            if self.lab.qemu and self.lab.qemu.folder:
                spec["binds"].append({"source": self.lab.qemu.folder, "path": qemu.IN_HOSTS})
        spec["files"] = {
            "/etc/hostname": self.name + "\n",
            "/etc/hosts": "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in names),
            "/etc/resolv.conf": "# no name server here\n",
            "/etc/machine-id": uuid.uuid4().hex + "\n",
        }
        return spec

    def start_holder(self, names):
        """First half: returns at once, so that all hosts are furnished at the same time."""
        os.makedirs(self.path)
        self._spawn_holder(self._spec(names))

    def restart_holder(self):
        """The first half once more, for a host that was switched off: what was on its disks is still there."""
        with open(self._spec_path, encoding="utf-8") as file:
            self._spawn_holder(json.load(file))

    @property
    def _spec_path(self):
        return os.path.join(self.path, "spec.json")

    def _spawn_holder(self, spec):
        if not os.path.exists(self._spec_path):
            with open(self._spec_path, "w", encoding="utf-8") as file:
                json.dump(spec, file)
        script = os.path.join(os.path.dirname(__file__), "holder.py")
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True)
        self._child.stdin.write(json.dumps(spec) + "\n")
        self._child.stdin.flush()

    def finish_holder(self):
        child = self._child
        if child.stdout.readline() != "ready\n":
            child.stdin.close()
            why = child.stderr.read().strip().splitlines()
            child.wait()
            raise LabError(f"cannot make {self.name}: {why[-1] if why else 'its holder ended'}")
        self._holder = Process.of(child.pid)
        self._holder.save(os.path.join(self.path, "holder.pid"))
        child.stdin.write("go\n")
        for stream in (child.stdin, child.stdout, child.stderr):
            stream.close()
        child.returncode = 0  # it is meant to outlive this program; down reaps it if it does not

    # ---- Working in it ----

    def enter(self, command, cwd=None):
        """The command line that runs command in this host. It replaces itself, so the pid is the command's."""
        pid = self.holder.pid
        cwd = cwd or os.getcwd()
        if not os.path.isdir(f"/proc/{pid}/root{cwd}"):
            cwd = "/"
        return ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", f"--wdns={cwd}", "--", *map(str, command)]

    def environment(self, extra=None):
        path = f"{self.lab.build}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {**os.environ, "PATH": path, "FERRY_BUILD": self.lab.build, "FERRY_LAB": self.lab.name, **(extra or {})}

    def popen(self, command, cwd=None, env=None, **options):
        """subprocess.Popen in this host; env adds to the environment. What still runs at down is killed."""
        return subprocess.Popen(self.enter(command, cwd), env=self.environment(env), **options)

    def run(self, command, check=True, input=None, timeout=60, cwd=None, env=None, text=True):
        """Runs to the end; subprocess.CompletedProcess with stdout and stderr. With check, failure raises."""
        give = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(self.enter(command, cwd), env=self.environment(env), text=text, timeout=timeout,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **give)
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {shlex.join(map(str, command))} ended with {done.returncode}\n"
                           f"{done.stdout}{done.stderr}".rstrip())
        return done

    def net(self, program, lines):
        """Runs `ip` or `tc` with these lines, as the machine's own program in the host's network namespace only."""
        command = ["nsenter", f"--target={self.holder.pid}", "--net", "--", program, "-batch", "-"]
        done = subprocess.run(command, input="".join(line + "\n" for line in lines), text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment())
        if done.returncode != 0:
            raise LabError(f"{self.name}: {program}: {done.stderr.strip()}")

    def outside(self, path):
        """The same file as seen from the machine: for sockets and files that the lab itself reads or makes."""
        return f"/proc/{self.holder.pid}/root{path}"
