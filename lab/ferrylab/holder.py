# SPDX-License-Identifier: Apache-2.0
"""Runs as a process of its own: makes one host's namespaces, furnishes them, and then keeps them by staying alive.

Reads one line of JSON from stdin: {title, hostname, mark, overlays:[{path,upper,work}], binds:[{source,path}],
files:{path:text}, sysctls:{name:text}}. Answers "ready" on stdout, and goes on only when told "go": if the lab dies in
between, the end of stdin ends this process too. After that it becomes sleep(1), which needs a twentieth of the memory.
"""

import ctypes
import json
import os
import socket
import stat
import subprocess
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source, target, kind, flags=0, options=""):
    check(libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags),
                     options.encode()), f"mount {source} on {target}")


def allow_post_copy():
    """QEMU's user may open /dev/userfaultfd in this host: a node of its own stands in its place. On a real host the
    package's udev rule allows it."""
    device = "/dev/userfaultfd"
    try:
        number = os.stat(device).st_rdev
    except FileNotFoundError:
        return  # a kernel before 6.1
    own = "/run/lab/userfaultfd"
    os.mknod(own, stat.S_IFCHR | 0o666, number)
    os.chmod(own, 0o666)
    mount(own, device, None, MS_BIND)


def furnish(spec):
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    socket.sethostname(spec["hostname"])

    # /sys/class/net shows the interfaces of the namespace that sysfs was mounted in.
    try:
        cgroups = os.open("/sys/fs/cgroup", os.O_PATH)
    except FileNotFoundError:
        cgroups = None
    mount("sysfs", "/sys", "sysfs")
    if cgroups is not None:
        mount(f"/proc/self/fd/{cgroups}", "/sys/fs/cgroup", None, MS_BIND | MS_REC)
        os.close(cgroups)

    for overlay in spec["overlays"]:
        os.makedirs(overlay["upper"], exist_ok=True)
        os.makedirs(overlay["work"], exist_ok=True)
        mount("overlay", overlay["path"], "overlay", 0,
              f"lowerdir={overlay['path']},upperdir={overlay['upper']},workdir={overlay['work']}")
    mount(spec["mark"], "/run", "tmpfs", 0, "mode=755")
    os.makedirs("/run/lab")
    os.makedirs("/run/lock")
    os.chmod("/run/lock", 0o1777)
    allow_post_copy()
    for bind in spec["binds"]:
        os.makedirs(bind["source"], exist_ok=True)
        os.makedirs(bind["path"], exist_ok=True)
        mount(bind["source"], bind["path"], None, MS_BIND)
    for path, text in spec["files"].items():
        # The machine's own file may be a link to somewhere outside the overlays.
        if os.path.islink(path):
            os.unlink(path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    for name, text in spec["sysctls"].items():
        try:
            with open("/proc/sys/" + name, "w", encoding="ascii") as file:
                file.write(text)
        except FileNotFoundError:
            pass  # a kernel without this feature needs no setting for it
        except PermissionError:
            # Outside the first namespace the kernel takes only the algorithms that the machine allows to anyone.
            if name != "net/ipv4/tcp_congestion_control":
                raise
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def main():
    spec = json.loads(sys.stdin.readline())
    os.chdir("/")
    os.umask(0o022)
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWNET), "unshare")
    furnish(spec)
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        sys.exit(1)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.execvp("sleep", [spec["title"], "infinity"])


if __name__ == "__main__":
    main()
