# SPDX-License-Identifier: Apache-2.0
"""What the tests of migrations stand on: a pair of lab hosts with the heartbeat client, guests on them, and the one
question that is asked after everything that was done to a migration: is all as it must be?

`Pair.settled()` is that question. It believes nobody: QEMU processes are counted in /proc, ports and taps in each
host's network namespace, files on disk; and the guest itself says by its heartbeats whether it runs, once, with every
page of its memory as it should be. Only then are the records of both ferryd compared with it.

Nothing here sleeps: waiting is a long poll of ferryd, a question that the heartbeat client holds until enough beats
have come, the log's next line, or the end of a process.
"""

import contextlib
import ctypes
import functools
import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPO / "lab"))

from ferrylab import guest as guests  # noqa: E402
from ferrylab import processes  # noqa: E402
from ferrylab.lab import Lab  # noqa: E402

PATIENCE = 60  # seconds for anything that is awaited; a loaded machine is slow, and a failure is one anyway
ENDED = ("completed", "rolled-back", "cancelled", "failed")


class Refused(Exception):
    """ferryd's answer to a request that it did not do."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body
        self.code = body.get("error", {}).get("code")


class PromiseBroken(AssertionError):
    """A guest ran twice, or its memory or disk is not what it was: nothing excuses that, and such a test is not tried again."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("ferryd", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


@contextlib.contextmanager
def network_of(host):
    """This thread in the host's network namespace: for sockets, which stay in the namespace where they were made."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(f"/proc/{host.holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(other, 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        assert libc.setns(own, 0x40000000) == 0
        os.close(own)
        os.close(other)


class Log:
    """A ferryd's log from here on, line by line."""

    def __init__(self, path):
        self.path = path
        self.file = open(path, encoding="utf-8", errors="replace")
        self.file.seek(0, os.SEEK_END)
        self.line = ""
        self.lines = []

    def expect(self, pattern, timeout=PATIENCE):
        """The next line that has the pattern. (inotify would be no quicker than asking: a write is seen within a
        scheduler's turn.)"""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            more = self.file.readline()
            if not more:
                select.select([], [], [], 0.0005)
                continue
            self.line += more
            if not self.line.endswith("\n"):
                continue
            line, self.line = self.line, ""
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"{self.path}: no {pattern!r} among\n{''.join(self.lines[-30:])}")


class Guest:
    def __init__(self, pair, name, path, definition):
        self.pair = pair
        self.name = name
        self.path = path  # as the hosts see it
        self.definition = definition
        self.uuid = definition["uuid"]
        self.address = guests.guest_address(definition)
        self.host = None  # where it was started, then where it was last seen by settled()

    def beats(self, number):
        """Waits until so many more have come; what has been seen since the last mark()."""
        return self.pair.beats(self, number)

    def passes(self, number=2):
        """Waits until the guest has gone through its whole memory so many times more."""
        before = self.report()["total"]["passes"]
        deadline = time.monotonic() + PATIENCE
        while self.report()["total"]["passes"] < before + number:
            assert time.monotonic() < deadline, f"{self.name} does not get on with its work: {self.report()}"
            self.pair.another_beats(self, 100)

    def report(self):
        mine = [g for g in self.pair.ask("report")["guests"] if g["address"] == self.address]
        assert mine, f"{self.name} was never heard{self.console()}"
        latest = max(mine, key=lambda g: g["last_ns"])
        for counts in (latest["total"], latest["since_mark"]):
            counts.pop("gaps", None)  # hundreds, on a busy machine
        return latest

    def console(self, lines=15):
        """What it has said last, on each host; with what its QEMUs have."""
        text = ""
        for name in self.pair.names:
            for kind in ("console.log", "log"):
                path = self.pair.host(name).outside(f"/var/lib/ferry/vms/{self.name}.{kind}")
                with contextlib.suppress(OSError):
                    said = [line[:300] for line in Path(path).read_text(errors="replace").splitlines()
                            if "ferryd: starting" not in line][-lines:]
                    text += f"\n---- {self.name}.{kind} on {name}\n" + "\n".join(said)
        return text


class Pair:
    """A lab of two (or more) hosts, the heartbeat client, and guests. With faults=True its daemon is ferryd-faults. patient: where
    nothing is said of it, moves may pause for 5 s, since most tests are not about the pause, and a busy machine is slow."""

    def __init__(self, name, config=None, hosts=2, patient=True, **options):
        self.patient = patient
        self.lab = Lab(f"{name}{os.getpid()}")
        if self.lab.exists():
            self.lab.down()
        options.setdefault("trusted", True)
        self.lab.up(hosts=hosts, config=config, **options)
        self.guests = []
        self.names = [host.name for host in self.lab.hosts]
        self.client = None
        try:
            self.beats_path = self.lab.client.outside("/run/beats")
            self.client = self.lab.client.popen([os.path.join(self.lab.build, "lab", "heartbeat-client"), "--control",
                                                 "/run/beats"], stdout=subprocess.PIPE, text=True)
            assert self.client.stdout.readline() == "ready\n"
        except BaseException:
            self.close()
            raise

    def close(self):
        keep = os.environ.get("FERRY_KEEP_LAB")
        if keep:
            print(f"lab {self.lab.name} is kept")
            return
        self.lab.down()
        if self.client:
            self.client.wait(10)
            self.client.stdout.close()

    # ---- asking ----

    def host(self, name):
        return self.lab.host(name)

    def ask(self, question, timeout=PATIENCE):
        return guests.ask(self.beats_path, question, timeout)

    def mark(self):
        self.ask("mark")

    def beats(self, guest, number):
        """`wait` counts from the last mark."""
        self.wait_beats(guest, number)
        return guest.report()["since_mark"]

    def wait_beats(self, guest, number):
        try:
            self.ask(f"wait {guest.address} {number}")
        except TimeoutError:
            raise AssertionError(f"{guest.name} is not heard any more{self.logs()}{guest.console()}") from None

    def another_beats(self, guest, number):
        """As many more than have come, without a mark."""
        have = guest.report()["since_mark"]["received"]
        self.wait_beats(guest, have + number)

    def api(self, host, method, path, body=None, timeout=PATIENCE):
        connection = _UnixConnection(self.host(host).outside("/run/ferry/ferryd.sock"), timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        answer = json.loads(text) if text else {}
        if response.status >= 300:
            raise Refused(response.status, answer)
        return answer

    def refusal(self, host, method, path, body=None):
        """The code that ferryd refuses it with."""
        try:
            answer = self.api(host, method, path, body)
        except Refused as refused:
            return refused.code
        raise AssertionError(f"{method} {path} was not refused: {answer}")

    def ferry(self, host, *words, check=True, timeout=PATIENCE):
        return self.host(host).run(["ferry", *words], check=check, timeout=timeout)

    def vms(self, host):
        return {vm["name"]: vm for vm in self.api(host, "GET", "/v1/vms")["vms"]}

    def other(self, name):
        return self.names[1 - self.names.index(name)]

    # ---- guests ----

    def guest(self, name, host="host-a", memory=128, load="16:20", change=None, start=True, **options):
        """Defined and started, and well into its work."""
        view = guests.define("tiny", name=name, memory=memory, load=load, lab=self.lab.name, **options)
        path = self.host(host).outside(view)
        definition = json.loads(Path(path).read_text())
        if change:
            change(definition)
            Path(path).write_text(json.dumps(definition))
        guest = Guest(self, name, view, definition)
        self.guests.append(guest)
        self.ferry(host, "vm", "define", view)
        if start:
            self.ferry(host, "vm", "start", name)
            guest.host = host
            self.mark()  # else the beats of an earlier guest that had this address count
            self.wait_beats(guest, 200)
        return guest

    def find_guests(self):
        """A test that has failed half way may have left its guest on the other host, or a link cut. The next one is not to fail
        for that. A host without ferryd may be meant to be so, and is left alone."""
        if self.lab.blocks:
            self.lab.unblock()
        running = [name for name in self.names if self.lab.ferryd_pid(name)]
        for guest in self.guests:
            known = {name: vm for name in running if (vm := self.vms(name).get(guest.name))}
            owner = next((vm["owner"] for vm in known.values()), None)
            if guest.host and owner in known:
                guest.host = owner

    def remove(self, guest):
        """Ends a guest wherever it is, and forgets it."""
        for name in self.names:
            vm = self.vms(name).get(guest.name)
            if vm and vm["state"] not in ("stopped", "moved"):
                self.ferry(name, "vm", "stop", guest.name)
        for name in self.names:
            if guest.name in self.vms(name):
                self.ferry(name, "vm", "undefine", guest.name)
        self.guests.remove(guest)
        with contextlib.suppress(OSError):
            os.unlink(self.lab.hosts[0].outside(guest.path))

    # ---- migrations ----

    def migrate(self, guest, to, *words, status=0, check=True):
        """By the command line, to the end; the object that it prints."""
        if self.patient and "--max-downtime" not in words:
            words += ("--max-downtime", "5s")
        done = self.ferry(guest.host, "migrate", guest.name, "--to", to, "--output", "json", *words, check=False)
        if check:
            assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}"
        if done.returncode == 0 and "--dry-run" not in words:
            guest.host = to
        return json.loads(done.stdout) if done.stdout else {"error": done.stderr}

    def begin(self, guest, to=None, **request):
        """By the API, and returns at once; the migration's id."""
        patient = {"max_downtime_ms": 5000} if self.patient else {}
        return self.api(guest.host, "POST", f"/v1/vms/{guest.name}/migrate",
                        {"to": to or self.other(guest.host), **patient, **request})["id"]

    def migration(self, host, ident):
        return self.api(host, "GET", f"/v1/migrations/{ident}")

    def wait(self, host, ident, condition, timeout=PATIENCE):
        """Until condition, a status, several of them, or a function of the migration, holds."""
        if isinstance(condition, str):
            condition = (condition,)
        wanted = condition if callable(condition) else lambda m: m["status"] in condition
        deadline = time.monotonic() + timeout
        seen = None
        while True:
            query = "" if seen is None else f"?seen={seen}&wait_ms=5000"
            migration = self.api(host, "GET", f"/v1/migrations/{ident}{query}")
            if wanted(migration):
                return migration
            final = migration["ended"] and not migration["cleanup_pending"]
            assert not final and time.monotonic() < deadline, \
                f"waited for {condition}, but it is\n{json.dumps(migration, indent=1)}{self.logs()}"
            seen = migration["change"]

    def ended(self, host, ident, timeout=PATIENCE):
        return self.wait(host, ident, lambda m: m["ended"], timeout)

    def log(self, host):
        return Log(self.lab.ferryd_log(host))

    def logs(self, lines=40):
        text = ""
        for name in self.names:
            with open(self.lab.ferryd_log(name), encoding="utf-8", errors="replace") as log:
                text += f"\n---- {name}\n" + "".join(log.readlines()[-lines:])
        return text

    def kill_ferryd(self, host):
        assert self.lab.stop_ferryd(host, signal.SIGKILL)

    def start_ferryd(self, host, faults=None):
        """faults: what is to happen, "POINT=ACTION, ..." (src/base/fault.h); the pair must have been made with faults."""
        return self.lab.start_ferryd(host, faults=faults)

    def restart_ferryd(self, host, faults=None):
        self.lab.stop_ferryd(host)
        return self.start_ferryd(host, faults)

    def set_faults(self, host, faults):
        """As at the start, for a ferryd that runs; replaces what was to happen. "" for nothing."""
        return self.api(host, "PUT", "/v1/faults", {"faults": faults})

    def faults_fired(self, host):
        """["POINT=ACTION"] in the order in which they have happened since they were set."""
        return [f"{fired['point']}={fired['action']}" for fired in self.api(host, "GET", "/v1/faults")["fired"]]

    def ferryd_ended(self, host):
        """Waits until it has ended by itself."""
        pid = self.lab.ferryd_pid(host)
        if pid:
            self.wait_gone(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def ferryd_stopped(self, host):
        """Waits until it has stopped itself (SIGSTOP)."""
        pid = self.lab.ferryd_pid(host)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]), f"ferryd ended instead{self.logs()}"
        return pid

    # ---- what really is ----

    def qemus(self, name):
        """{guest's name: [pid]} of a host, by its processes."""
        found = {}
        host = self.host(name)
        network = os.stat(f"/proc/{host.holder.pid}/ns/net").st_ino
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.stat(f"/proc/{entry}/ns/net").st_ino != network:
                    continue
                words = Path(f"/proc/{entry}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "qemu-system" in words[0] or "qemu-system" in (words[1] if len(words) > 1 else ""):
                named = [match.group(1) for word in words if (match := re.match(r"guest=([^,]+)", word))]
                found.setdefault(named[0] if named else "?", []).append(int(entry))
        return found

    def wait_gone(self, pid):
        """Until a process has ended (not: has been reaped)."""
        process = processes.Process.of(pid)
        assert process is None or process.wait(PATIENCE), f"process {pid} does not end{self.logs()}"

    def taps(self, name):
        """{tap: its bridge or None} of the host."""
        found = {}
        links = json.loads(self.host(name).run(["ip", "-json", "-details", "link"]).stdout)
        for link in links:
            if link.get("linkinfo", {}).get("info_kind") == "tun":
                found[link["ifname"]] = link.get("master") if "UP" in link["flags"] else None
        return found

    def listeners(self, name):
        """Data ports that somebody listens on."""
        lines = self.host(name).run(["ss", "-H", "-l", "-t", "-n"]).stdout.splitlines()
        ends = [line.split()[3].rpartition(":") for line in lines]
        return sorted(int(port) for address, _, port in ends
                      if 49152 <= int(port) <= 49215 and (name, address) != ("host-a", DATA_ADDRESS))

    def await_no_listeners(self, name, told):
        """Until they are gone: a check that was lost on the way may come when its migration has long been given up, and then holds
        a port for check_lifetime (15 s by default)."""
        deadline = time.monotonic() + PATIENCE
        while self.listeners(name):
            assert time.monotonic() < deadline, f"{name} listens on {self.listeners(name)}{told}"
            time.sleep(0.05)

    def leftovers(self, name):
        """Probe files that a host can see."""
        return self.host(name).run(["find", "/srv/shared", "/srv/local", "-name", ".ferry-*"]).stdout.split()

    def settled(self, guest, owner, running=True, epoch=None, definitions=None):
        """The guest is on owner, whole and once, and nothing else of it is anywhere."""
        # The source's user has an answer before the destination has tidied up.
        assert self.settle(guest) == owner
        told = self.logs()
        for name in self.names:
            want = 1 if name == owner and running is not None else 0
            pids = self.qemus(name).get(guest.name, [])
            assert len(pids) == want, f"{name} has QEMU processes {pids} of {guest.name}, the owner is {owner}{told}"
            folders = self.host(name).run(["ls", "/run/ferry/vms"]).stdout.split()
            assert (guest.uuid in folders) == bool(want), f"{name}: {folders}{told}"
            if want:
                left = self.host(name).run(["ls", f"/run/ferry/vms/{guest.uuid}"]).stdout.split()
                assert not {"move", "settings.json", "never-ran"} & set(left), f"{name}: {left}{told}"
            left = self.leftovers(name)
            assert left == [], f"{name}: {left}{told}"
        if not [g for g in self.guests if g is not guest]:
            for name in self.names:
                self.await_no_listeners(name, told)
                want = {None} if running is False else {"br0"}
                taps = self.taps(name)
                if name == owner and running is not None:
                    assert len(taps) == len(guest.definition["nics"]) and set(taps.values()) <= {"br0", None}, taps
                    assert running is False or set(taps.values()) <= {"br0"}, f"{name}: {taps}{told}"
                else:
                    assert taps == {}, f"{name}: {taps}{told}"
        here = self.vms(owner)[guest.name]
        state = {True: "running", False: "paused", None: "stopped"}[running]
        assert (here["state"], here["owner"]) == (state, owner), f"{here}{told}"
        if epoch:
            assert here["epoch"] == epoch, here
        for name in self.names:
            if name != owner:
                there = self.vms(name).get(guest.name)
                if definitions is not None:
                    assert bool(there) == (name in definitions), f"{name}: {there}{told}"
                assert there is None or (there["state"], there["owner"]) == ("moved", owner), f"{name}: {there}{told}"
        guest.host = owner
        if running:
            guest.passes(2)
            self.healthy(guest)
        elif running is False:
            before = guest.report()["last_seq"]
            assert guest.report()["last_seq"] == before

    def healthy(self, guest):
        seen = guest.report()
        total = seen["total"]
        assert seen["silent_ms"] < 5000, f"{seen}{self.logs()}"
        if seen["pages_wrong"] or seen["clock_back"] or total["doubled"] or total["two_copies"]:
            raise PromiseBroken(f"{seen}{self.logs()}")

    def settle(self, guest, timeout=PATIENCE):
        """Waits until no host has an unfinished migration of the guest, and returns its owner."""
        for name in self.names:
            for migration in self.api(name, "GET", "/v1/migrations")["migrations"]:
                if migration["vm"] == guest.name and not migration["ended"]:
                    try:
                        self.ended(name, migration["id"], timeout)
                    except Refused as refused:  # it was only checked there, and is forgotten
                        assert refused.code == "migration.not_found"
        owners = {name: vm["owner"] for name in self.names if (vm := self.vms(name).get(guest.name))}
        assert len(set(owners.values())) == 1, f"{owners}{self.logs()}"
        return next(iter(owners.values()))

    # ---- messages of a host, without its ferryd ----

    def peer(self, caller, to, method, path, body=None, files="", timeout=PATIENCE):
        """What `to` answers when a program with the certificate of `caller` speaks to it: (status, JSON). files: another
        folder with a certificate; None: no certificate."""
        pki = self.host(caller).outside("/etc/ferry/pki")
        context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
        if files is not None:
            context.load_cert_chain(f"{files or pki}/host.crt", f"{files or pki}/host.key")
        target = self.host(to)
        with network_of(self.host(caller)):
            plain = socket.create_connection((target.address, CONTROL), timeout)
        with context.wrap_socket(plain, server_hostname=to) as stream:
            text = b"" if body is None else json.dumps(body).encode()
            stream.sendall(f"{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n"
                           f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
            response = http.client.HTTPResponse(stream)
            try:
                response.begin()
            except http.client.BadStatusLine:
                raise ConnectionError("closed without an answer") from None
            answer = response.read()
            return response.status, json.loads(answer) if answer else {}


# ---- a proxy between two hosts ----

SHUT = bytes.fromhex("0001000400000000")
DATA_ADDRESS = "198.18.0.66"
CONTROL = 4710


class Wire:
    """One proxied connection."""

    def __init__(self, port, near, far):
        self.port, self.near, self.far = port, near, far
        self.backwards = b""  # the last bytes of what the far side has said

    def cut(self):
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Sits on the path from host-a to host-b, and does to it what links and middle boxes do.

    host-a is told that host-b's ferryd is at 127.0.0.1 (the certificate is host-b's all the same), and host-b that its
    data address is one which host-a has as well; so what host-a sends ends here, and is sent on from within host-b's
    network. Gates say what is let through: "open", "closed" (held until it is opened) or "swallow"."""

    def __init__(self, pair, ports):
        self.pair = pair
        self.near, self.far = pair.host("host-a"), pair.host("host-b")
        self.lock = threading.Condition()
        self.wires = []
        self.open_all()
        self.saw_shut = threading.Event()
        self.listeners = []
        self.wake_read, self.wake_write = os.pipe()
        for host in (self.near, self.far):
            host.net("ip", [f"address add {DATA_ADDRESS}/32 dev lo"])
        with network_of(self.near):
            for address, port in [("127.0.0.1", CONTROL), *((DATA_ADDRESS, port) for port in ports)]:
                listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                listener.listen(16)
                self.listeners.append(listener)
        self._spawn(self._accept)
        path = self.far.outside("/etc/ferry/ferry.conf")
        text = Path(path).read_text()
        Path(path).write_text(text.replace(f"[data]\naddress = {self.far.address}", f"[data]\naddress = {DATA_ADDRESS}"))
        pair.restart_ferryd("host-b")
        pair.api("host-a", "POST", "/v1/hosts", {"name": "host-b", "address": "127.0.0.1", "port": CONTROL})

    def _spawn(self, function, *arguments):
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def close(self):
        """Before the lab ends."""
        self.open_all()
        os.write(self.wake_write, b"x")
        for wire in self.wires:
            wire.cut()

    def open_all(self):
        with self.lock:
            self.forward = self.backward = self.control_back = self.shut = "open"
            self.accept_data = self.accept_control = True
            self.lock.notify_all()

    def set(self, **gates):
        with self.lock:
            for key, value in gates.items():
                assert hasattr(self, key)
                setattr(self, key, value)
            self.lock.notify_all()

    def cut(self, control):
        """Connections that stand, of the one kind or the other."""
        with self.lock:
            for wire in self.wires:
                if (wire.port == CONTROL) == control:
                    wire.cut()

    def _accept(self):
        while True:
            ready, _, _ = select.select([*self.listeners, self.wake_read], [], [])
            if self.wake_read in ready:
                break
            for listener in ready:
                near, _ = listener.accept()
                port = listener.getsockname()[1]
                try:
                    if not (self.accept_control if port == CONTROL else self.accept_data):
                        raise OSError("not now")
                    with network_of(self.far):
                        far = socket.create_connection((self.far.address if port == CONTROL else DATA_ADDRESS, port), 10)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire = Wire(port, near, far)
                with self.lock:
                    self.wires.append(wire)
                self._spawn(self._pump, wire, near, far, False)
                self._spawn(self._pump, wire, far, near, True)
        for listener in self.listeners:
            listener.close()

    def _gate(self, wire, back):
        if wire.port == CONTROL:
            return self.control_back if back else "open"
        return self.backward if back else self.forward

    def _pump(self, wire, source, target, back):
        try:
            while data := source.recv(1 << 16):
                if back and wire.port != CONTROL:
                    data = self._look_for_shut(wire, data)
                with self.lock:
                    while (gate := self._gate(wire, back)) == "closed":
                        self.lock.wait()
                if gate == "open" and data:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            wire.cut()

    def _look_for_shut(self, wire, data):
        """The return path's last word, "all loaded", which QEMU sends whole."""
        wire.backwards = (wire.backwards + data)[-64:]
        if not wire.backwards.endswith(SHUT):
            return data
        self.saw_shut.set()
        with self.lock:
            while self.shut == "closed":
                self.lock.wait()
            if self.shut == "swallow":
                return data[:-len(SHUT)] if data.endswith(SHUT) else b""
        return data
