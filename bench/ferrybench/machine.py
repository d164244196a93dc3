# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on, and the programs that measuring needs."""

import ctypes
import glob
import os
import platform
import re
import shutil
import signal
import subprocess
import time


class BenchError(Exception):
    """What the user is told, in one line."""


class GuestLost(BenchError):
    """A guest is not heard of any more."""


# libvirt's programs only. Without libvirt-daemon-system, which would start a daemon on this machine.
PACKAGES = {"libvirtd": "libvirt-daemon", "virsh": "libvirt-clients",
            "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu"}


def _present(what):
    if what.startswith("/"):
        return bool(glob.glob(what))
    return shutil.which(what, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin") is not None


def provide_libvirt():
    """Installs what is missing of the baseline; on a machine without apt, says what it is."""
    missing = [package for what, package in PACKAGES.items() if not _present(what)]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    if not _present("apt-get"):
        raise BenchError(f"virsh as a baseline needs {' '.join(missing)}; or use --only ferry")
    print(f"installing {' '.join(missing)}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          text=True, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed:\n{done.stdout.strip()[-2000:]}")


def _first(path, pattern):
    try:
        with open(path, encoding="utf-8") as file:
            found = re.search(pattern, file.read(), re.M)
    except OSError:
        return None
    return found.group(1) if found else None


def _version(*command):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    except OSError:
        return "-"
    found = re.search(r"\d+\.\d+[.\d]*", done.stdout)
    return found.group(0) if found else "-"


def describe(qemu):
    """One line for above the table. qemu: which one runs the guests, of both sides."""
    memory = int(_first("/proc/meminfo", r"^MemTotal:\s+(\d+)") or 0) / 2**20
    model = _first("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.machine()
    return (f"{len(os.sched_getaffinity(0))} cores ({model.strip()}), {memory:.0f} GiB, Linux {platform.release()}, "
            f"QEMU {qemu.version} (TCG), libvirt {_version('virsh', '--version')}; "
            "both hosts, their guests and their links (veth) share this one machine")


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def fork_below_reaper(reap_every_s=0):
    """Returns in a child process. The parent becomes the parent of every daemon and orphan that comes from the child,
    reaps them at once (libvirtd waits for processes it killed to be gone), and ends as the child ends. So what they
    all spent can be counted: see spent_seconds(). With reap_every_s it reaps only so often, as some containers' first
    processes do; each move by libvirt then takes up to that much longer."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG if reap_every_s else 0)
        if pid == 0:
            time.sleep(reap_every_s)
        elif pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def spent_seconds():
    """CPU seconds spent up to now by all that this program has started, daemons and dead processes included, and
    itself left out: what a process has spent goes to its parent when that reaps it."""
    stats = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            # Parent; ticks of its own, user and system; ticks of children that it has reaped.
            stats[int(entry)] = (int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]))
    children = {}
    for pid, (parent, _, _) in stats.items():
        children.setdefault(parent, []).append(pid)
    reaper = os.getppid()
    ticks, ahead = stats[reaper][2], list(children[reaper])
    while ahead:
        pid = ahead.pop()
        _, own, reaped = stats[pid]
        ticks += reaped + (own if pid != os.getpid() else 0)
        ahead += children.get(pid, [])
    return ticks / os.sysconf("SC_CLK_TCK")
