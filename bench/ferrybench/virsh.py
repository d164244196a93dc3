# SPDX-License-Identifier: Apache-2.0
"""The baseline: `virsh migrate`, between two libvirtd, one in each lab host.

Each host gets its own empty /etc/libvirt, /var/lib/libvirt and so on (tmpfs in its mount namespace), so nothing of a
libvirt that is installed on this machine is read, started or written. libvirtd is configured as little as it needs
in a host without systemd, cgroups of its own and certificates; everything about migrations is left at its default.

The domain is the same machine as Ferry's: QEMU's binary, TCG, machine type, CPU, one virtio disk and one virtio port
without vhost, the same kernel and command line.
"""

import contextlib
import grp
import os
import pwd
import re
import select
import socket
import subprocess
import time
import uuid
from xml.sax.saxutils import quoteattr

from ferrylab.processes import Process

from .machine import BenchError

PRIVATE = ("/etc/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
NOTIFY = "/run/lab/notify-libvirtd"
NO_KVM = "/run/lab/no-kvm"
LIBVIRTS_USER = "libvirt-qemu"
USER = "+61000"  # as ferryd's in the lab, so that both may open the guests' disks

LIBVIRTD_CONF = """\
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
host_uuid = "{uuid}"
"""

QEMU_CONF = """\
user = "{user}"
group = "{user}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_address = "{address}"
migration_host = "{address}"
"""


def _command(host):
    """The daemon. Where the machine has a /dev/kvm that guests' user may not open, libvirtd would take its knowledge of
    QEMU for outdated each time it looks (probed with KVM, now without), and ask QEMU anew twice in each move, for two
    seconds. So it sees none: in a mount namespace of its own, an empty file stands there."""
    command = ["libvirtd", "--listen", "--config", "/etc/libvirt/libvirtd.conf"]
    if not os.path.exists("/dev/kvm"):
        return command
    host.run(["install", "-m", "0", "/dev/null", NO_KVM])
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {NO_KVM} /dev/kvm && exec "$@"', "sh", *command]


def _provide_user(host):
    """libvirtd does not start where its own user is unknown, whoever it is told to use; Debian makes that user with a package that
    also starts a libvirtd on the machine. So the host gets a list of users of its own, with that one in it."""
    for path, find, line in (("/etc/passwd", pwd.getpwnam, "{0}:x:{1}:{1}::/var/lib/libvirt:/usr/sbin/nologin"),
                             ("/etc/group", grp.getgrnam, "{0}:x:{1}:")):
        with contextlib.suppress(KeyError):
            find(LIBVIRTS_USER)
            continue
        own = f"/run/lab/{os.path.basename(path)}"
        with open(path, encoding="utf-8") as old, open(host.outside(own), "w", encoding="utf-8") as new:
            new.write(old.read() + line.format(LIBVIRTS_USER, USER.lstrip("+")) + "\n")
        host.run(["mount", "--bind", own, path])


def start_daemon(host, timeout=60):
    """Starts the host's libvirtd, and returns when it has said that it is ready."""
    _provide_user(host)
    for path in PRIVATE:
        host.run(["mkdir", "-p", path])
        host.run(["mount", "-t", "tmpfs", "-o", "mode=755", "ferry-bench", path])
    for name, text in (("libvirtd.conf", LIBVIRTD_CONF), ("qemu.conf", QEMU_CONF)):
        with open(host.outside(f"/etc/libvirt/{name}"), "w", encoding="utf-8") as file:
            file.write(text.format(address=host.address, uuid=uuid.uuid4(), user=USER))
    log_path = os.path.join(host.path, "libvirtd.log")
    outside = host.outside(NOTIFY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify, open(log_path, "ab") as log:
        notify.bind(outside)
        # It ends with the lab, like everything that runs in a host.
        child = host.popen(_command(host), cwd="/", env={"NOTIFY_SOCKET": NOTIFY}, stdin=subprocess.DEVNULL,
                           stdout=log, stderr=log, start_new_session=True)
        daemon = Process.of(child.pid)
        child.returncode = 0
        ended = os.pidfd_open(child.pid)
        try:
            deadline = time.monotonic() + timeout
            while True:
                readable, _, _ = select.select([notify, ended], [], [], max(0, deadline - time.monotonic()))
                if notify in readable and b"READY=1" in notify.recv(4096).split(b"\n"):
                    break
                if not readable or ended in readable:
                    with open(log_path, encoding="utf-8", errors="replace") as text:
                        raise BenchError(f"libvirtd on {host.name} does not get ready:\n{text.read()[-3000:]}")
        finally:
            os.close(ended)
    os.unlink(outside)
    # It looks at QEMU's binary once and remembers: not in the first measured move.
    host.run(["virsh", "-q", "domcapabilities", "--virttype", "qemu", "--emulatorbin", host.lab.qemu.binary],
             env=ENVIRONMENT)
    return daemon


ENVIRONMENT = {"LIBVIRT_DEFAULT_URI": "qemu:///system", "LC_ALL": "C"}


def domain_xml(definition, emulator):
    """A libvirt domain for a definition of ours; knows the keys that the lab's guests use."""
    d = definition
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type={quoteattr(disk['format'])} "
        f"cache={quoteattr(disk['cache'])} io='threads' discard='unmap'/><source file={quoteattr(disk['path'])}/>"
        f"<target dev={quoteattr(disk['target'])} bus={quoteattr(disk['bus'])}/></disk>" for disk in d["disks"])
    nics = "".join(
        f"<interface type='bridge'><source bridge={quoteattr(nic['bridge'])}/><mac address={quoteattr(nic['mac'])}/>"
        f"<model type={quoteattr(nic['model'])}/><driver name='qemu'/><rom enabled='no'/></interface>"
        for nic in d["nics"])
    features = "".join(f"<feature policy='require' name={quoteattr(name)}/>" for name in d["cpu"]["features"])
    cmdline = quoteattr(d["cmdline"], {'"': "&quot;"})[1:-1]
    return (f"<domain type='qemu'><name>{d['name']}</name><uuid>{d['uuid']}</uuid>"
            f"<memory unit='MiB'>{d['memory_mib']}</memory><vcpu>{d['vcpus']}</vcpu>"
            f"<os><type arch='x86_64' machine={quoteattr(d['machine'])}>hvm</type><kernel>{d['kernel']}</kernel>"
            f"<initrd>{d['initrd']}</initrd><cmdline>{cmdline}</cmdline></os>"
            f"<features><acpi/><apic/></features>"
            f"<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{d['cpu']['model']}</model>"
            f"{features}</cpu><clock offset='utc'/><on_poweroff>destroy</on_poweroff><on_crash>destroy</on_crash>"
            f"<devices><emulator>{emulator}</emulator>{disks}{nics}<controller type='usb' model='none'/>"
            f"<memballoon model='none'/><serial type='pty'/></devices></domain>\n")


class Virsh:
    """One guest under libvirt."""

    def __init__(self, lab, definition, address):
        self.lab, self.definition, self.address = lab, definition, address
        self.name = definition["name"]
        self.host = None

    def _virsh(self, *words, host=None, timeout=60):
        return (host or self.host).run(["virsh", "-q", *words], env=ENVIRONMENT, timeout=timeout).stdout

    def start(self, host):
        path = f"/run/lab/{self.name}.xml"
        with open(host.outside(path), "w", encoding="utf-8") as file:
            file.write(domain_xml(self.definition, self.lab.qemu.binary))
        self._virsh("create", path, host=host)
        self.host = host

    def prepare(self, _hosts):
        """There is nothing of the kind."""

    def stop(self):
        self._virsh("destroy", self.name)

    def pause(self):
        self._virsh("suspend", self.name)

    def resume(self):
        self._virsh("resume", self.name)

    def qemu_pid(self):
        with open(self.host.outside(f"/run/libvirt/qemu/{self.name}.pid"), encoding="ascii") as file:
            return int(file.read())

    def set_max_downtime(self, milliseconds):
        """None: QEMU's default. A move leaves a fresh QEMU, with the default, so this is for the next move only."""
        if milliseconds is not None:
            self._virsh("migrate-setmaxdowntime", self.name, str(milliseconds))
        found = int(re.match(r"\d+", self._virsh("migrate-getmaxdowntime", self.name)).group(0))
        if found != (milliseconds or 300):
            raise BenchError(f"the limit of the pause is {found} ms, not {milliseconds or 300}")

    def move_command(self, to, words=()):
        # --unsafe: libvirt does not take a directory that hosts of a lab share for shared storage. It changes nothing else.
        return ["virsh", "-q", "-c", "qemu:///system", "migrate", "--live", "--p2p", "--unsafe", *words,
                self.name, f"qemu+tcp://{to.address}/system"]

    def abort(self):
        self._virsh("domjobabort", self.name)

    @staticmethod
    def stayed(_code, _stdout, _stderr):
        """Whatever virsh says then, it is no result that is looked for."""
        return None

    def reported(self, _stdout, host, _completed):
        text = self._virsh("domjobinfo", self.name, "--completed", host=host)
        if re.match(r"Job type:\s+None", text):
            return {}  # libvirt 9 has nothing to say of a move that ended as post-copy
        found = dict(re.findall(r"^(Time elapsed|Total downtime):\s+(\d+)\s+ms", text, re.M))
        if len(found) != 2:
            raise BenchError(f"virsh domjobinfo does not say how long it took:\n{text}")
        return {"qemu": float(found["Time elapsed"]), "downtime": float(found["Total downtime"]),
                "reported": dict(re.findall(r"^([A-Z][^:]*):\s+(.*?)\s*$", text, re.M))}
