# SPDX-License-Identifier: Apache-2.0
"""ferryd in the lab: certificates, configuration, start with readiness, introduction of the hosts to each other."""

import os
import select
import shutil
import signal
import socket
import subprocess
import time

from . import saved
from .errors import LabError
from .processes import Process

GUEST_USER = "61000:61000"  # guests' programs run as this; no such account is needed
NOTIFY_PATH = "/run/lab/notify"


def configuration(lab, host):
    sections = {
        "host": {"name": host.name},
        "control": {"address": host.address},
        "data": {"address": host.address, "native_ports": "49152-49215"},
        "qemu": {"accelerator": os.environ.get("FERRY_LAB_ACCEL", "tcg"), "user": GUEST_USER},
    }
    if lab.restore:
        sections["qemu"]["binary"] = saved.BINARY
    elif lab.qemu:
        sections["qemu"]["binary"] = lab.qemu.binary
    if lab.trusted:
        sections["data"]["trusted"] = "198.18.0.0/24"
    for section, keys in lab.config.items():
        sections.setdefault(section, {}).update(keys)
    return "".join(f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) + "\n"
                   for section, keys in sections.items())


def _program(lab):
    return "ferryd-faults" if lab.faults else "ferryd"


def prepare(lab):
    """Certificates from one authority, which lives on the first host, and a configuration for each host."""
    for program in (_program(lab), "ferry"):
        if not os.access(os.path.join(lab.build, program), os.X_OK):
            raise LabError(f"{os.path.join(lab.build, program)} is missing: build it first, or use --no-ferryd")
    first = lab.hosts[0]
    first.run(["ferry", "pki", "init"])
    for host in lab.hosts:
        issued = "/etc/ferry/issued-" + host.name
        first.run(["ferry", "pki", "issue", host.name, "--address", host.address, "--out", issued])
        source, target = first.outside(issued), host.outside("/etc/ferry/pki")
        os.makedirs(target, mode=0o755, exist_ok=True)
        for name in ("ca.crt", "host.crt", "host.key"):
            shutil.copy2(os.path.join(source, name), os.path.join(target, name))
        shutil.rmtree(source)
        with open(host.outside("/etc/ferry/ferry.conf"), "w", encoding="utf-8") as file:
            file.write(configuration(lab, host))


def introduce(lab):
    for host in lab.hosts:
        for other in lab.hosts:
            if other is not host:
                host.run(["ferry", "host", "add", other.name, other.address])


def _record(host):
    return os.path.join(host.path, "ferryd.pid")


def log_path(host):
    return os.path.join(host.path, "ferryd.log")


def process(host):
    """The ferryd of this host, or None."""
    return Process.load(_record(host))


def start(host, env=None, wrapper=(), timeout=30, faults=None):
    """Starts ferryd and returns when it has said READY=1. env adds to the environment; wrapper is a command to run it
    under, such as strace; faults is what shall happen, in a lab whose daemon can (src/base/fault.h)."""
    if faults and not host.lab.faults:
        raise LabError(f"lab {host.lab.name!r} was not made with faults")
    env = {**(env or {}), **({"FERRY_FAULT": faults} if faults else {})}
    if process(host):
        raise LabError(f"ferryd runs already on {host.name}")
    log_start = os.path.getsize(log_path(host)) if os.path.exists(log_path(host)) else 0
    # The socket is bound from outside, through the holder's root: the path that counts against sun_path stays short
    # wherever the state is, and ferryd sees it where only this host can.
    outside = host.outside(NOTIFY_PATH)
    if os.path.exists(outside):
        os.unlink(outside)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.bind(outside)
        with open(log_path(host), "ab") as log:
            child = host.popen([*wrapper, os.path.join(host.lab.build, _program(host.lab))], cwd="/",
                               env={"NOTIFY_SOCKET": NOTIFY_PATH, **env}, stdin=subprocess.DEVNULL,
                               stdout=log, stderr=log, start_new_session=True)
        ferryd = Process.of(child.pid)
        if ferryd:
            ferryd.save(_record(host))
        child.returncode = 0  # it is meant to outlive this program; stop reaps it if it does not
        ready = ferryd is not None and _wait_ready(notify, ferryd, timeout)
    os.unlink(outside)
    if not ready:
        if ferryd:
            ferryd.end(2)
            ferryd.reap()
        with open(log_path(host), encoding="utf-8", errors="replace") as log:
            log.seek(log_start)
            raise LabError(f"ferryd on {host.name} did not become ready:\n{log.read()[-4000:]}".rstrip())
    return ferryd.pid


def _wait_ready(notify, ferryd, timeout):
    deadline = time.monotonic() + timeout
    try:
        ended = os.pidfd_open(ferryd.pid)
    except ProcessLookupError:
        return False
    try:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([notify, ended], [], [], left)
            if notify in readable:
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return True
            elif ended in readable:
                return False
        return False
    finally:
        os.close(ended)


def stop(host, number=signal.SIGTERM, timeout=30):
    """Signals ferryd and waits for its end; guests stay. False when none ran."""
    ferryd = process(host)
    if ferryd is None:
        return False
    ferryd.signal(number)
    if not ferryd.wait(timeout):
        raise LabError(f"ferryd on {host.name} does not end on {signal.Signals(number).name}")
    ferryd.reap()
    return True
