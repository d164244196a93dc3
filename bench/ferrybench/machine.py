# SPDX-License-Identifier: Apache-2.0
"""What the figures were measured on, and the programs that measuring needs."""

import os
import platform
import re
import shutil
import subprocess


class BenchError(Exception):
    """What the user is told, in one line."""


# libvirt's programs only. Without libvirt-daemon-system, which would start a daemon on this machine.
PACKAGES = {"libvirtd": "libvirt-daemon", "virsh": "libvirt-clients",
            "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so": "libvirt-daemon-driver-qemu"}


def _present(what):
    import glob  # pylint: disable=import-outside-toplevel
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


def describe():
    """One line for above the table."""
    memory = int(_first("/proc/meminfo", r"^MemTotal:\s+(\d+)") or 0) / 2**20
    model = _first("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.machine()
    return (f"{len(os.sched_getaffinity(0))} cores ({model.strip()}), {memory:.0f} GiB, Linux {platform.release()}, "
            f"QEMU {_version('qemu-system-x86_64', '--version')} (TCG), libvirt {_version('virsh', '--version')}; "
            "both hosts, their guests and their links (veth) share this one machine")


def busy_seconds():
    """CPU seconds that this machine has spent since boot on anything, interrupts included, in all cores together."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
