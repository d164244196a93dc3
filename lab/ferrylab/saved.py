# SPDX-License-Identifier: Apache-2.0
"""Guests that start from a saved state instead of booting, without ferryd knowing.

A lab that was brought up with restore=True gives ferryd another program for QEMU: a script that looks for a saved state
of the guest whose UUID it is told, puts that guest's disks in /srv/shared back to what they were when it was saved, and
lets QEMU load the state before anything else. Where there is none, or where a guest arrives by a migration, it only
becomes QEMU. Booting a small guest takes some seconds, this a fraction of one.

    write_wrapper(lab)       the script, BINARY in ferryd's configuration
    save(lab, host, name)    ends a running guest, whose ferryd is away, and keeps its state for all further starts
    forget(lab, name)        from now on it boots again

A restored guest goes on at the moment at which it was saved: same boot id, same numbers, same clocks, which are late from
then on and so never go back. To whoever has heard it before, that looks like a second copy of it: the heartbeat client is
told with `forget ADDRESS`, once the life before is known to have ended.

The guest is saved running: a `cont` that comes while QEMU still loads is then done when it has loaded, as ferryd's is on a
busy machine. (Of a guest that was saved paused, QEMU forgets it.)
"""

import array
import json
import os
import shutil
import socket
import time

from . import qemu
from .errors import LabError
from .guest import QEMU_USER
from .processes import Process

IN_HOSTS = "/srv/shared/saved"
BINARY = IN_HOSTS + "/qemu-system-x86_64"
WRAPPER = """\
#!/bin/sh
# QEMU, but a guest that was saved starts from its saved state. Written by lab/ferrylab/saved.py.
set -e
uuid= last= arrives=
for word; do
	[ "$last" != -uuid ] || uuid=$word
	[ "$word" != -incoming ] || arrives=1
	last=$word
done
saved={saved}/$uuid
if [ "$uuid" ] && [ ! "$arrives" ] && [ -e "$saved/state" ]; then
	for disk in "$saved"/disks/*; do
		[ ! -e "$disk" ] || cat "$disk" > "/srv/shared/${{disk##*/}}"
	done
	exec {binary} "$@" {incoming}
fi
exec {binary} "$@"
"""


def _folder(lab):
    return os.path.join(lab.path, "shared", "saved")


def _knows_files(lab):
    """Whether its QEMU migrates to and from files by name; fd: to a file is deprecated from 9.1 on."""
    return lab.qemu is not None and lab.qemu.numbers >= (8, 2)


def write_wrapper(lab):
    os.makedirs(_folder(lab), mode=0o755, exist_ok=True)
    path = os.path.join(_folder(lab), os.path.basename(BINARY))
    with open(path, "w", encoding="ascii") as file:
        file.write(WRAPPER.format(
            saved=IN_HOSTS, binary=lab.qemu.binary if lab.qemu else qemu.SYSTEM_BINARY,
            incoming='-incoming "file:$saved/state"' if _knows_files(lab) else '-incoming fd:0 < "$saved/state"'))
    os.chmod(path, 0o755)


class _Monitor:
    """The monitor of a QEMU whose ferryd is away."""

    def __init__(self, path, timeout=60):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.execute("qmp_capabilities")

    def close(self):
        self.lines.close()
        self.socket.close()

    def execute(self, command, arguments=None, fd=None):
        text = json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        self.socket.sendmsg([text], rights)
        for line in self.lines:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"QEMU does not {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise LabError(f"QEMU ended on {command}")


def _definition(lab, name):
    try:
        with open(os.path.join(lab.path, "shared", name + ".json"), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise LabError(f"there is no guest {name!r} in lab {lab.name!r}") from None


def _disks(lab, definition):
    """The names of its files in the lab's shared folder that it may write."""
    paths = [disk["path"] for disk in definition["disks"] if not disk.get("readonly")]
    names = [os.path.basename(path) for path in paths if os.path.dirname(path) == "/srv/shared"]
    if len(names) != len(paths):
        raise LabError(f"{definition['name']} has disks elsewhere than in /srv/shared: {' '.join(paths)}")
    load = definition["name"] + ".load"
    return names + ([load] if os.path.exists(os.path.join(lab.path, "shared", load)) else [])


def _write_state(lab, monitor, folder):
    """In one go: with so long a pause allowed, the guest stops after the first pass over its memory."""
    monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40, "downtime-limit": 2000000})
    if _knows_files(lab):
        os.chown(folder, *QEMU_USER)
        monitor.execute("migrate", {"uri": f"file:{IN_HOSTS}/{os.path.basename(folder)}/state"})
    else:
        with open(os.path.join(folder, "state"), "wb") as file:
            monitor.execute("getfd", {"fdname": "saved"}, file.fileno())
        monitor.execute("migrate", {"uri": "fd:saved"})
    deadline = time.monotonic() + 60
    while (status := monitor.execute("query-migrate")["status"]) != "completed":
        if status in ("failed", "cancelled") or time.monotonic() > deadline:
            raise LabError(f"the guest's state cannot be saved: {status}")
        time.sleep(0.005)
    os.chmod(os.path.join(folder, "state"), 0o644)


def save(lab, host, name):
    definition = _definition(lab, name)
    if not lab.restore:
        raise LabError(f"lab {lab.name!r} was not brought up with restore=True")
    folder = host.outside(f"/run/ferry/vms/{definition['uuid']}")
    target = os.path.join(_folder(lab), definition["uuid"])
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree(target + ".new", ignore_errors=True)
    os.makedirs(target + ".new/disks")
    try:
        with open(os.path.join(folder, "pid"), encoding="ascii") as file:
            process = Process.of(int(file.read().split()[0]))
    except FileNotFoundError:
        raise LabError(f"{name} does not run on {host.name}") from None
    monitor = _Monitor(os.path.join(folder, "qmp.sock"))
    try:
        _write_state(lab, monitor, target + ".new")
        for disk in _disks(lab, definition):
            shutil.copyfile(os.path.join(lab.path, "shared", disk), os.path.join(target + ".new/disks", disk))
            os.chmod(os.path.join(target + ".new/disks", disk), 0o644)
        monitor.execute("quit")
    finally:
        monitor.close()
    if process and not process.wait(30):
        raise LabError(f"QEMU of {name} does not end")
    os.rename(target + ".new", target)


def forget(lab, name):
    shutil.rmtree(os.path.join(_folder(lab), _definition(lab, name)["uuid"]), ignore_errors=True)
