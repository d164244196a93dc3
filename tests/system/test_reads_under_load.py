# SPDX-License-Identifier: Apache-2.0
"""ferryd answers whoever only wants to read, whatever else it is doing: during every step of a migration, under 200
clients and 20 slow ones; and nobody who takes all the connections that he can get locks the others out.

Latencies are printed, and checked only against what would be no answer at all."""

import collections
import contextlib
import http.client
import json
import os
import socket
import ssl
import threading
import time

import pytest

from moves import CONTROL, PATIENCE, Pair, network_of

CLIENTS, SLOW, WATCHERS = 200, 20, 100
OTHERS_MAX = 320  # src/net/http_server.c
SLOWLY = "delay:400@*"
STEPS = ("before-holds", "check-received", "check-answer", "prepare-received", "incoming-started", "copy-begun", "before-offered",
         "switch-begun", "copy-completed", "before-taken", "after-taken", "before-running", "before-released", "source-released",
         "before-ended", "journal-sync")
READS = ("/v1/vms", "/v1/migrations", "/v1/hosts", "/v1/host", "/v1/vms/r")


@pytest.fixture(scope="module")
def pair():
    pair = Pair("rul", hosts=3, faults=True, config={"migration": {"finish_timeout": "60"}})
    pair.host("host-a").run(["ferry", "pki", "issue", "admin", "--client", "--out", "/etc/ferry/admin"])
    # Addresses that no known host has.
    pair.host("host-c").net("ip", [f"address add 198.18.0.{n}/24 dev eth0" for n in (101, 102, 103)])
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def guest(pair):
    return pair.guest("r")


def tls_context(pair):
    folder = pair.host("host-a").outside("/etc/ferry/admin")
    context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
    context.load_cert_chain(f"{folder}/client.crt", f"{folder}/client.key")
    return context


def plain_tcp(pair, to, source="198.18.0.101", timeout=PATIENCE):
    with network_of(pair.host("host-c")):
        return socket.create_connection((pair.host(to).address, CONTROL), timeout, (source, 0))


def plain_unix(pair, to, timeout=PATIENCE):
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout)
    stream.connect(pair.host(to).outside("/run/ferry/ferryd.sock"))
    return stream


def ask(stream, path):
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    response = http.client.HTTPResponse(stream)
    response.begin()
    body = response.read()
    return response.status, json.loads(body)


def tasks_and_files(pair, name):
    pid = pair.lab.ferryd_pid(name)
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def memory_mib(pair, name, which="VmHWM"):
    with open(f"/proc/{pair.lab.ferryd_pid(name)}/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith(which + ":")).split()[1]) / 1024


def wait_until(condition, timeout=PATIENCE):
    """For what /proc says, which has no event."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


class Readers:
    """Clients on connections that are kept, each asking one thing after the other."""

    def __init__(self, pair, number):
        self.pair = pair
        self.context = tls_context(pair)
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.latencies = collections.defaultdict(list)  # by host and kind
        self.statuses = set()
        self.wrong = []
        self.threads = [threading.Thread(target=self._read, args=(n,)) for n in range(number)]
        for thread in self.threads:
            thread.start()

    def _connect(self, n):
        to = ("host-a", "host-b")[n % 2]
        if n % 4 < 2:
            return to, "unix", plain_unix(self.pair, to)
        return to, "TLS", self.context.wrap_socket(plain_tcp(self.pair, to), server_hostname=to)

    def _read(self, n):
        mine, seen = [], set()
        to = kind = None
        try:
            to, kind, stream = self._connect(n)
            with stream:
                while not self.stop.wait(0.2):
                    path = READS[(n + len(mine)) % (5 if to == "host-a" else 4)]
                    began = time.monotonic()
                    status, answer = ask(stream, path)
                    mine.append(time.monotonic() - began)
                    if path == "/v1/migrations":
                        seen.update((to, m["status"]) for m in answer["migrations"])
                    if status != 200 and not (path == "/v1/vms/r" and status == 404):  # it has moved away by then
                        raise ValueError(f"{path}: {status} {answer}")
        except Exception as error:  # pylint: disable=broad-exception-caught
            with self.lock:
                self.wrong.append(f"client {n} ({kind} to {to}): {error!r} after {len(mine)} answers")
        with self.lock:
            self.latencies[to, kind] += mine
            self.statuses |= seen

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        for (to, kind), took in sorted(self.latencies.items()):
            took.sort()
            print(f"{to} by {kind}: {len(took)} reads, median {took[len(took) // 2] * 1000:.0f} ms, p99 {took[len(took) * 99 // 100] * 1000:.0f} ms, "
                  f"max {took[-1] * 1000:.0f} ms")
        assert self.wrong == []


class SlowClients:
    """A byte a second of a request's head or body, by either way; readers that read nothing; TLS handshakes that do not go on. Those
    that ferryd cuts off begin anew."""

    def __init__(self, pair, number):
        self.pair, self.context = pair, tls_context(pair)
        self.stop = threading.Event()
        self.cut_off = 0
        self.streams = [None] * number
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _begin(self, n):
        to, kind = ("host-a", "host-b")[n % 2], n // 2 % 5
        stream = plain_unix(self.pair, to) if kind in (0, 2) else plain_tcp(self.pair, to)
        if kind in (1, 3):
            stream = self.context.wrap_socket(stream, server_hostname=to)
        if kind in (2, 3):  # many questions, no ear for the answers
            stream.setblocking(False)
            with contextlib.suppress(OSError):
                for _ in range(10000):
                    stream.send(b"GET /v1/migrations HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        return stream

    def _trickle(self, n):
        kind = n // 2 % 5
        if kind in (2, 3):
            return
        self.streams[n].sendall({0: b"G", 1: b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", 4: b"\x16"}[kind]
                                if self.first[n] else {0: b"E", 1: b" ", 4: b"\x03"}[kind])
        self.first[n] = False

    def _run(self):
        self.first = [True] * len(self.streams)
        while not self.stop.wait(1):
            for n in range(len(self.streams)):
                try:
                    if self.streams[n] is None:
                        self.streams[n], self.first[n] = self._begin(n), True
                    self._trickle(n)
                except OSError:
                    self.cut_off += 1
                    if self.streams[n] is not None:
                        self.streams[n].close()
                    self.streams[n] = None
        for stream in self.streams:
            if stream is not None:
                stream.close()

    def end(self):
        self.stop.set()
        self.thread.join()


@pytest.mark.slow
def test_reads_during_every_step(pair, guest):
    idle = {name: tasks_and_files(pair, name) for name in ("host-a", "host-b")}
    slow = SlowClients(pair, SLOW)
    readers = Readers(pair, CLIENTS)
    watched = []
    try:
        for name in ("host-a", "host-b"):
            pair.api(name, "PUT", "/v1/faults", {"faults": ", ".join(f"{step}={SLOWLY}" for step in STEPS)})
        ident = pair.begin(guest, "host-b", max_downtime_ms=60000, bandwidth_bytes_per_s=20_000_000)

        def watch():
            watched.append(pair.ended("host-a", ident, 240)["status"])
        watchers = [threading.Thread(target=watch) for _ in range(WATCHERS)]
        for thread in watchers:
            thread.start()
        ended = pair.ended("host-a", ident, 240)
        for thread in watchers:
            thread.join()
        assert (ended["status"], ended["owner"]) == ("completed", "host-b"), ended
        print(f"total {ended['total_ms']:.0f} ms, downtime {ended['downtime_ms']:.0f} ms, each step made 400 ms longer")
    finally:
        slow.end()
        readers.end()
        for name in ("host-a", "host-b"):
            pair.api(name, "PUT", "/v1/faults", {"faults": ""})
    assert watched == ["completed"] * WATCHERS
    # Each step was seen by somebody who read meanwhile.
    assert {status for to, status in readers.statuses if to == "host-a"} >= {"checking", "preparing", "copying", "switching", "completing"}
    assert sum(map(len, readers.latencies.values())) > 10 * CLIENTS
    for name in ("host-a", "host-b"):
        print(f"{name}: {memory_mib(pair, name):.0f} MiB at most, {memory_mib(pair, name, 'VmRSS'):.0f} now; {slow.cut_off} slow ones cut off")
        assert memory_mib(pair, name) < 256
    guest.host = "host-b"
    pair.settled(guest, "host-b")
    # Idle workers of the migration's QEMU and of kept connections may differ by a few; those of the clients are gone.
    for name, (tasks, files) in idle.items():
        wait_until(lambda name=name, tasks=tasks, files=files: tasks_and_files(pair, name)[0] <= tasks + 4 and
                   tasks_and_files(pair, name)[1] <= files + 12)


def test_reads_do_not_wait_for_the_disk(pair):
    """While a record is being made durable, for as long as a bad disk likes."""
    pair.api("host-a", "PUT", "/v1/faults", {"faults": "journal-sync=delay:10000"})
    done = threading.Event()

    def add():
        pair.api("host-a", "POST", "/v1/hosts", {"name": "host-z", "address": "198.18.0.99"})
        done.set()
    thread = threading.Thread(target=add)
    log = pair.log("host-a")
    thread.start()
    log.expect("fault=journal-sync")
    for path in (*READS[:4], "/v1/hosts/host-b"):
        pair.api("host-a", "GET", path)
    assert pair.peer("host-b", "host-a", "GET", "/v1/peer/hello")[0] == 200
    assert not done.is_set()
    thread.join()
    pair.api("host-a", "DELETE", "/v1/hosts/host-z")


@contextlib.contextmanager
def flood(number, connect):
    """So many connections, or fewer when they are no longer taken. Yields those that were not closed at once."""
    open_ones = []
    try:
        for _ in range(number):
            with contextlib.suppress(OSError):
                open_ones.append(connect())
        yield open_ones
    finally:
        for one in open_ones:
            one.close()


def closed(stream, timeout):
    """Whether the other side has closed it, or does so in time."""
    stream.settimeout(timeout)
    try:
        while stream.recv(4096):  # an alert, perhaps
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def test_strangers_lock_nobody_out(pair, guest):
    """TLS connections from addresses of no known host, more than there are places: hosts and the local root are served."""
    sources = ("198.18.0.101", "198.18.0.102")
    turn = iter(range(10 ** 6))
    with flood(OTHERS_MAX + 60, lambda: plain_tcp(pair, "host-b", sources[next(turn) % 2], 5)) as strangers:
        late = plain_tcp(pair, "host-b", "198.18.0.103")
        assert closed(late, 5)  # no place is left for one of them
        late.close()
        assert pair.peer("host-a", "host-b", "GET", "/v1/peer/hello")[0] == 200
        assert "vms" in pair.api("host-b", "GET", "/v1/vms")
        guest.host = pair.settle(guest)
        pair.migrate(guest, pair.other(guest.host))
        # And they are not kept: none has got as far as a request.
        for stream in strangers:
            assert closed(stream, 30)
    context = tls_context(pair)
    with context.wrap_socket(plain_tcp(pair, "host-b"), server_hostname="host-b") as client:
        assert ask(client, "/v1/vms")[0] == 200


def test_one_known_host_locks_nobody_out(pair):
    def from_c():
        with network_of(pair.host("host-c")):
            return socket.create_connection((pair.host("host-b").address, CONTROL), 5, (pair.host("host-c").address, 0))
    with flood(OTHERS_MAX + 60, from_c):
        assert pair.peer("host-a", "host-b", "GET", "/v1/peer/hello")[0] == 200
        with tls_context(pair).wrap_socket(plain_tcp(pair, "host-b"), server_hostname="host-b") as client:
            assert ask(client, "/v1/vms")[0] == 200
        assert "vms" in pair.api("host-b", "GET", "/v1/vms")


def answered(pair, host):
    """What a local client hears as soon as its place is free: ferryd learns one by one that those before have gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return pair.api(host, "GET", "/v1/vms")
        except ConnectionError:
            assert time.monotonic() < deadline


def test_local_clients_lock_no_host_out(pair):
    with flood(600, lambda: plain_unix(pair, "host-b", 1)) as locals_:
        assert len(locals_) >= 512
        assert pair.peer("host-a", "host-b", "GET", "/v1/peer/hello")[0] == 200
        with tls_context(pair).wrap_socket(plain_tcp(pair, "host-b"), server_hostname="host-b") as client:
            assert ask(client, "/v1/vms")[0] == 200
    assert "vms" in answered(pair, "host-b")


@pytest.mark.slow
def test_a_byte_now_and_then_is_not_enough(pair):
    """Never silent, never done: cut off all the same."""
    context = tls_context(pair)
    for connect in (lambda: plain_unix(pair, "host-b"),
                    lambda: context.wrap_socket(plain_tcp(pair, "host-b"), server_hostname="host-b")):
        began = time.monotonic()
        with connect() as stream:
            stream.sendall(b"GET /v1/vms HTTP/1.1\r\nx: ")
            while not closed(stream, 0.5):
                assert time.monotonic() < began + 60
                with contextlib.suppress(OSError):
                    stream.sendall(b"y")
        print(f"cut off after {time.monotonic() - began:.0f} s")
