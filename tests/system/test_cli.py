# SPDX-License-Identifier: Apache-2.0
"""The command line against a stand-in for ferryd: every verb, exit statuses, JSON, Ctrl-C, progress, bad input."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)

from fake_ferryd import ApiError, FakeFerryd  # noqa: E402

FERRY = os.path.join(os.environ.get("FERRY_BUILD", os.path.join(REPOSITORY, "build")), "ferry")


@pytest.fixture
def fake():
    # Not in tmp_path: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ferry-") as folder, FakeFerryd(os.path.join(folder, "ferryd.sock")) as fake:
        fake.add_vm("web1")
        yield fake


def environment(path, **more):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FERRY_")}
    return {**clean, "FERRY_SOCKET": path, "TERM": "xterm", "LC_ALL": "C", **more}


def ferry(fake, *arguments, input=None, env=None, timeout=20):
    return subprocess.run([FERRY, *arguments], text=True, capture_output=True, input=input, timeout=timeout,
                          env={**environment(fake.path), **(env or {})})


def start(fake, *arguments, **options):
    return subprocess.Popen([FERRY, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment(fake.path), **options)


def finish(process, timeout=20):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def started(fake, *arguments):
    """`ferry migrate` under way, and the id of its migration."""
    process = start(fake, "migrate", "web1", "--to", "host-b", *arguments)
    id = fake.wait_migration()
    fake.wait_request("GET", id)
    return process, id


COMPLETED = {"status": "completed", "total_ms": 5712.3, "downtime_ms": 7.9, "wire_bytes": 614 << 20, "iterations": 5}


# ---- migrate ----

def test_migrate_completes(fake):
    process, id = started(fake)
    for status in ("checking", "preparing", "copying", "switching", "completing"):
        fake.update(id, status=status)
    fake.update(id, **COMPLETED)
    status, out, err = finish(process)
    assert status == 0
    assert out.splitlines()[0] == "web1 moved from host-a to host-b, which owns it now."
    for words in ("5.7 s", "7.9 ms", "614 MiB in 5 iterations", "native, encrypted", id):
        assert words in out
    # One line a phase where stderr is no terminal, also for phases that passed between two looks.
    assert [line.split()[-1] for line in err.splitlines()] == ["checking", "preparing", "copying", "switching", "completing"]


def test_guest_that_is_lost(fake):
    """In post-copy, by a QEMU that ended: the VM has gone over, and that is no success."""
    process, id = started(fake)
    why = "the guest is lost: the source's QEMU ended before host-b had all of the memory"
    fake.update(id, **COMPLETED, reason={"code": "qemu.gone", "message": why})
    status, out, err = finish(process)
    assert status == 1
    assert out.splitlines()[0] == "web1 stopped, and is host-b's now; start it there."
    assert why in err and "did not succeed" in err


WILL = {"at_ms": 12.0, "total_ms": 14000.0, "downtime_ms": 45.0, "wire_bytes": 780 << 20, "verdict": "converges",
        "throttle_percent": 0, "words": "converges"}
SLOWED = {**WILL, "at_ms": 25.0, "total_ms": 21000.0, "verdict": "needs-throttling", "words": "converges with the guest throttled to 60 %"}
WILL_SAID = "14.0 s, a pause of 45.0 ms, 780 MiB to send"
SLOWED_SAID = "21.0 s, a pause of 45.0 ms, 780 MiB to send; it converges with the guest throttled to 60 %"


@pytest.mark.parametrize("first_pass, said", [(None, []), ({**WILL, "at_ms": 25.0}, []), (SLOWED, [SLOWED_SAID])])
def test_prediction_among_the_phases(fake, first_pass, said):
    """Each is said once, in its place, however late it is heard of; after the first pass only if it is something else."""
    process, id = started(fake)
    for status in ("checking", "preparing"):  # from 10 ms on, and from 20 ms
        fake.update(id, status=status)
    fake.update(id, status="copying", predicted=WILL, predicted_first_pass=first_pass)
    fake.update(id, status="switching")
    fake.update(id, **COMPLETED)
    status, out, err = finish(process)
    assert status == 0
    told = [line.split("s  ", 1)[1] for line in err.splitlines() if "predicted" in line]
    assert told == [f"predicted  {words}" for words in [WILL_SAID, *said]]
    later = f"             after the first pass: {SLOWED_SAID if said else WILL_SAID}\n" if first_pass else ""
    assert f"\n  sent       614 MiB in 5 iterations, native, encrypted\n  predicted  {WILL_SAID}\n{later}  migration  " in out


def test_predictions_in_their_order(fake):
    id = fake.add_migration("web1", "host-b")
    for status in ("checking", "preparing", "copying", "switching"):
        fake.update(id, status=status)
    fake.update(id, **COMPLETED, predicted=WILL, predicted_first_pass=SLOWED)
    err = ferry(fake, "migration", "watch", id).stderr
    assert [line.split()[2] for line in err.splitlines()] == ["checking", "predicted", "preparing", "predicted", "copying", "switching"]
    assert err.splitlines()[1] == f"   0.012 s  predicted  {WILL_SAID}"


def test_migrate_answers_at_once(fake):
    process, id = started(fake)
    before = time.monotonic()
    fake.update(id, **COMPLETED)
    assert finish(process)[0] == 0
    assert time.monotonic() - before < 0.5  # the poll would have lasted 20 s


def test_migrate_json(fake):
    process, id = started(fake, "--output", "json")
    fake.update(id, status="copying", predicted=WILL)
    fake.update(id, **COMPLETED)
    status, out, err = finish(process)
    result = json.loads(out)
    assert status == 0 and err == ""
    assert result == fake.migrations[id] and result["predicted"] == WILL
    assert result["owner"] == "host-b" and result["downtime_ms"] == 7.9


def test_migrate_request(fake):
    status, out, err = finish(start(
        fake, "migrate", "web1", "--to=host-b", "--transport", "native", "--max-downtime", "1.5s", "--deadline", "2m",
        "--bandwidth", "1Gbit", "--channels", "4", "--map", "bridge:br0=br1", "--map", "disk:/a/x=/b/x", "--paused",
        "--keep-source-definition", "--detach"))
    assert (status, err) == (0, "")
    assert "migration watch" in out
    assert fake.requests == [("POST", "/v1/vms/web1/migrate", {
        "to": "host-b", "transport": "native", "max_downtime_ms": 1500, "deadline_ms": 120000,
        "bandwidth_bytes_per_s": 125000000, "channels": 4, "maps": ["bridge:br0=br1", "disk:/a/x=/b/x"], "paused": True,
        "keep_source_definition": True})]


def test_migrate_leaves_defaults_to_the_daemon(fake):
    assert ferry(fake, "migrate", "web1", "--to", "host-b", "--detach").returncode == 0
    assert fake.requests == [("POST", "/v1/vms/web1/migrate", {"to": "host-b"})]


def test_migrate_detach_json(fake):
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--detach", "--output", "json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["status"] == "queued"


@pytest.mark.parametrize("text, value", [("100MiB", 100 << 20), ("500Mbit", 62500000), ("64kib", 65536), ("2.5gbit", 312500000),
                                         ("1GiB", 1 << 30), ("8Kbit", None), ("0Gbit", None), ("1G", None), ("100", None),
                                         ("-1Gbit", None), ("Gbit", None), ("1e3Mbit", None), ("", None), ("1.Gbit", None)])
def test_bandwidth(fake, text, value):
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--detach", "--bandwidth", text)
    if value is None:
        assert result.returncode == 2 and not fake.requests
        assert "--bandwidth" in result.stderr and f"'{text}'" in result.stderr
    else:
        assert result.returncode == 0
        assert fake.requests[0][2]["bandwidth_bytes_per_s"] == value


@pytest.mark.parametrize("text, value", [("300ms", 300), ("2s", 2000), ("2m", 120000), ("0.5s", 500), ("1h", None),
                                         ("300", None), ("0ms", None), ("2 s", None), ("inf", None), ("1d", None), ("nans", None)])
def test_duration(fake, text, value):
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--detach", "--max-downtime", text)
    if value is None:
        assert result.returncode == 2 and "--max-downtime" in result.stderr and not fake.requests
    else:
        assert result.returncode == 0 and fake.requests[0][2]["max_downtime_ms"] == value


@pytest.mark.parametrize("arguments, words", [
    (["migrate", "web1"], "needs --to HOST"),
    (["migrate", "--to", "host-b"], "needs VM"),
    (["migrate", "web1", "web2", "--to", "host-b"], "'web2' is one argument too many"),
    (["migrate", "web1", "--to"], "needs a value"),
    (["migrate", "web1", "--to", ""], "needs --to HOST"),
    (["migrate", "web1", "--to", "host-b", "--channels", "0"], "from 1 to 64"),
    (["migrate", "web1", "--to", "host-b", "--channels", "65"], "from 1 to 64"),
    (["migrate", "web1", "--to", "host-b", "--channels", "two"], "from 1 to 64"),
    (["migrate", "web1", "--to", "host-b", "--transport", "pigeon"], "there are auto, native and relay"),
    (["migrate", "web1", "--to", "host-b", "--map", "br0=br1"], "bridge:br0=br1"),
    (["migrate", "web1", "--to", "host-b", "--map", "bridge:=br1"], "bridge:br0=br1"),
    (["migrate", "web1", "--to", "host-b", "--bandwith", "1Gbit"], "did you mean '--bandwidth'?"),
    (["migrate", "web1", "--to", "host-b", "--dryrun"], "did you mean '--dry-run'?"),
    (["migrate", "web1", "--to", "host-b", "--output", "yaml"], "there are json and text"),
    (["migrate", "web1", "--to", "host-b", "-x"], "there is no option '-x'"),
    (["migrat", "web1"], "did you mean 'ferry migrate'?"),
    (["vm", "strat", "web1"], "did you mean 'ferry vm start'?"),
    (["start", "web1"], "did you mean 'ferry vm start'?"),
    (["mv", "list"], "did you mean 'ferry vm list'?"),
    (["vm"], "'ferry vm' needs a verb"),
    (["frobnicate"], "there is no verb 'frobnicate'"),
    (["--frob"], "there is no option '--frob'"),
    (["-H"], "needs a value"),
    ([], "a verb is missing"),
    (["vm", "start", ""], "is empty"),
    (["host", "add", "host-b", "198.18.0.2:70000"], "from 1 to 65535"),
    (["host", "add", "host-b", "[198.18.0.2"], "is not an address"),
])
def test_usage_errors(fake, arguments, words):
    result = ferry(fake, *arguments)
    assert result.returncode == 2
    assert words in result.stderr and "--help'." in result.stderr
    assert result.stdout == "" and not fake.requests


@pytest.mark.parametrize("arguments, words", [
    (["--output", "json", "frobnicate"], "there is no verb 'frobnicate'"),
    (["migrate", "web1", "--output=json"], "needs --to HOST"),
    (["migrate", "web1", "--to", "host-b", "--output", "json", "--frob"], "there is no option '--frob'"),
    (["migrate", "web1", "--to", "host-b", "--output", "json", "--deadline", "soon"], "'soon' is not a duration"),
])
def test_usage_errors_in_json(fake, arguments, words):
    result = ferry(fake, *arguments)
    assert result.returncode == 2 and words in result.stderr
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "invalid_argument" and words in error["message"]


def test_usage_error_json_is_utf8_whatever_was_typed(fake):
    result = subprocess.run([FERRY.encode(), b"vm", b"st\xffart", b"x", b"--output", b"json"], capture_output=True,
                            env=environment(fake.path), timeout=20)
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["code"] == "invalid_argument"


REASON = {"code": "migration.not_converging", "message": "the guest writes 114 MB/s, the link carries 100 MB/s"}


@pytest.mark.parametrize("changes, status, words", [
    ({"status": "rolled-back", "reason": REASON}, 1, ["did not succeed", "migration.not_converging", "114 MB/s"]),
    ({"status": "cancelled", "reason": {"code": "cancelled", "message": "by somebody else"}}, 5, ["was cancelled", "by somebody else"]),
    ({"status": "failed", "reason": {"code": "qemu.start", "message": "no memory"}}, 1, ["qemu.start"]),
    ({"status": "failed", "refused": True, "reason": {"code": "dest.memory", "message": "too little"},
      "failures": [{"code": "dest.memory", "side": "destination", "message": "too little"},
                   {"code": "dest.bridge_missing", "side": "destination", "message": "no bridge br0"}]}, 3,
     ["2 checks failed", "dest.memory", "no bridge br0 (dest.bridge_missing)", "--map bridge:A=B"]),
    ({"status": "failed", "reason": {"code": "vm.blocked", "message": "a device"}}, 3, ["vm.blocked"]),
    ({"status": "in-doubt", "reason": {"code": "migration.in_doubt", "message": "host-b must answer"}}, 4, ["is not settled", "host-b must answer"]),
    ({"status": "recovering", "reason": None}, 4, ["is not settled"]),
])
@pytest.mark.parametrize("output", ["text", "json"])
def test_migrate_other_ends(fake, changes, status, words, output):
    process, id = started(fake, "--output", output)
    fake.update(id, **changes)
    code, out, err = finish(process)
    assert code == status
    for word in words:
        assert word in err
    if output == "json":
        assert json.loads(out) == fake.migrations[id]
    elif status != 4:
        assert out.splitlines()[0] == "web1 stays on host-a, which owns it."


@pytest.mark.parametrize("http, code, status", [(404, "vm.not_found", 1), (409, "vm.busy", 1), (409, "vm.not_running", 3),
                                                (409, "dest.same_host", 3), (502, "peer.unreachable", 3), (409, "vm.not_owner", 3),
                                                (400, "invalid_argument", 2), (409, "disk.cache", 3), (500, "something.new", 1)])
def test_migrate_refused_at_once(fake, http, code, status):
    fake.errors["POST", "/v1/vms/web1/migrate"] = ApiError(http, code, "because of this")
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--output", "json")
    assert result.returncode == status
    assert "because of this" in result.stderr and code in result.stderr
    error = json.loads(result.stdout)["error"]
    assert "because of this" in error["message"]


def test_dry_run(fake):
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--dry-run")
    assert (result.returncode, result.stdout) == (0, "web1 can move to host-b: all checks passed.\n")
    fake.dry_run_failures = [{"code": "vm.blocked", "side": "source", "message": "a device"}]
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--dry-run")
    assert result.returncode == 3 and "source: a device (vm.blocked)" in result.stderr and result.stdout == ""
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--dry-run", "--output", "json")
    assert result.returncode == 3 and json.loads(result.stdout) == {"ok": False, "failures": fake.dry_run_failures}
    assert not fake.migrations


# ---- Ctrl-C ----

@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_aborts_and_waits(fake, number):
    fake.abort_ends = False
    process, id = started(fake, "--output", "json")
    fake.update(id, status="copying")
    process.send_signal(number)
    fake.wait_request("POST", f"{id}/abort")
    fake.update(id, progress={"elapsed_ms": 100})
    time.sleep(0.1)
    assert process.poll() is None  # the rollback goes on, so we wait
    fake.update(id, status="cancelled", reason={"code": "cancelled", "message": "on request"})
    status, out, _ = finish(process)
    assert status == 5
    assert json.loads(out)["status"] == "cancelled"
    assert sum(method == "POST" for method, _, _ in fake.requests) == 2


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_second_interrupt_leaves(fake, number, status):
    fake.abort_ends = False
    process, id = started(fake)
    process.send_signal(number)
    fake.wait_request("POST", f"{id}/abort")
    time.sleep(0.05)
    process.send_signal(number)
    code, out, err = finish(process, 5)
    assert code == status
    assert f"ferry migration watch {id}" in err and "goes on" in err
    assert out == ""


def test_interrupt_too_late(fake):
    fake.refuse_abort = ApiError(409, "migration.too_late", "the destination has been asked to take over")
    process, id = started(fake)
    process.send_signal(signal.SIGINT)
    fake.wait_request("POST", f"{id}/abort")
    fake.update(id, **COMPLETED)
    status, out, err = finish(process)
    assert status == 0 and "can no longer be cancelled" in err and "moved" in out


def test_interrupt_before_the_request_is_answered(fake):
    """Only the answer says what is to be cancelled, so it is awaited."""
    hold = threading.Event()
    accept = fake._migrate

    def slow(name, body):
        hold.wait(10)
        return accept(name, body)

    fake._migrate = slow
    process = start(fake, "migrate", "web1", "--to", "host-b")
    fake.wait_request("POST", "/migrate")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert process.poll() is None
    hold.set()
    status, _, err = finish(process)
    assert status == 5 and "was cancelled" in err
    assert next(iter(fake.migrations.values()))["status"] == "cancelled"


def test_two_interrupts_before_the_request_is_answered(fake):
    hold = threading.Event()
    accept = fake._migrate
    fake._migrate = lambda name, body: (hold.wait(10), accept(name, body))[1]
    process = start(fake, "migrate", "web1", "--to", "host-b", "--output", "json")
    fake.wait_request("POST", "/migrate")
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process, 5)
    hold.set()
    assert status == 130 and "ferry migration list" in err
    assert json.loads(out)["error"]["code"] == "cancelled"


def test_interrupted_dry_run(fake):
    hold = threading.Event()
    fake._migrate = lambda name, body: (hold.wait(10), (200, {"ok": True, "failures": []}))[1]
    process = start(fake, "migrate", "web1", "--to", "host-b", "--dry-run")
    fake.wait_request("POST", "/migrate")
    process.send_signal(signal.SIGINT)
    assert finish(process, 5)[0] == 5
    hold.set()


# ---- ferryd goes away and comes back ----

def test_restart_during_a_migration(fake):
    process, id = started(fake)
    fake.update(id, status="copying")
    fake.stop()
    time.sleep(0.3)
    # The new daemon counts changes anew, and may reach the same number.
    fake.migrations[id].update(COMPLETED, ended=True, owner="host-b")
    fake.start()
    status, out, err = finish(process)
    assert status == 0 and "moved" in out
    assert "does not answer" in err and "answers again" in err


def test_daemon_that_is_shutting_down(fake):
    process, id = started(fake)
    fake.errors["GET", f"/v1/migrations/{id}"] = ApiError(503, "shutting_down", "ferryd is stopping")
    fake.update(id, status="copying")
    time.sleep(0.2)
    assert process.poll() is None
    fake.errors.clear()
    fake.update(id, **COMPLETED)
    assert finish(process)[0] == 0


def test_abort_reaches_a_restarted_daemon(fake):
    process, id = started(fake)
    fake.update(id, status="copying")
    fake.stop()
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    fake.start()
    status, _, _ = finish(process)
    assert status == 5
    assert ("POST", f"/v1/migrations/{id}/abort", None) in fake.requests


def test_lost_answer_is_not_asked_twice(fake):
    """The request was carried out, but the daemon died before it answered: the migration is found, not started again."""
    fake.drop.add(("POST", "/v1/vms/web1/migrate"))
    process, id = started(fake)
    fake.update(id, **COMPLETED)
    assert finish(process)[0] == 0
    assert [path for method, path, _ in fake.requests if method == "POST"] == ["/v1/vms/web1/migrate"]


def test_request_that_never_arrived(fake):
    # An earlier, ended migration to the same place is not taken for ours.
    fake.update(fake.add_migration("web1", "host-b", started_at_ms=1000), **COMPLETED)
    fake.drop_before.add(("POST", "/v1/vms/web1/migrate"))
    result = ferry(fake, "migrate", "web1", "--to", "host-b")
    assert result.returncode == 1 and "nothing was started" in result.stderr


def test_nobody_there(fake):
    fake.stop()
    result = ferry(fake, "migrate", "web1", "--to", "host-b", "--output", "json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["code"] == "daemon.unreachable"
    assert result.stderr.startswith("ferry: ") and "(daemon.unreachable)" in result.stderr and "systemctl" in result.stderr


def test_migration_forgotten_by_the_daemon(fake):
    process, id = started(fake)
    fake.errors["GET", f"/v1/migrations/{id}"] = ApiError(404, "migration.not_found", "there is no such migration")
    fake.update(id, status="copying")
    status, _, err = finish(process)
    assert status == 1 and "migration.not_found" in err


# ---- terminal ----

def on_terminal(fake, *arguments, columns=100):
    """Run with stdin, stdout and stderr on a terminal; gives the process and the master side."""
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def on_the_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it, and that is inherited

    process = subprocess.Popen([FERRY, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment(fake.path),
                               start_new_session=True, preexec_fn=on_the_terminal)
    os.close(slave)
    return process, master


def read_until(master, pattern, timeout=10):
    seen = b""
    end = time.monotonic() + timeout
    while not re.search(pattern, seen.decode(errors="replace")):
        ready, _, _ = select.select([master], [], [], max(0, end - time.monotonic()))
        assert ready, f"no {pattern!r} in {seen!r}"
        try:
            data = os.read(master, 4096)
        except OSError:
            data = b""
        assert data, f"no {pattern!r} in {seen!r}"
        seen += data
    return seen.decode(errors="replace")


PROGRESS = {"ram_total_bytes": 1 << 30, "ram_remaining_bytes": 256 << 20, "rate_bytes_per_s": 112 << 20,
            "dirty_bytes_per_s": 20 << 20, "iteration": 2, "elapsed_ms": 4100, "predicted_ms": 2800}


def test_progress_on_a_terminal(fake):
    process, master = on_terminal(fake, "migrate", "web1", "--to", "host-b", columns=140)
    id = fake.wait_migration()
    fake.update(id, status="copying", wire_bytes=700 << 20, progress=PROGRESS)
    seen = read_until(master, "iteration 2")
    line = seen.split("\r")[-1]
    for words in ("web1: copying", "75 %", "700 MiB sent, 112 MiB/s", "guest writes 20.0 MiB/s", "iteration 2", "4.1 s", "about 2.8 s left"):
        assert words in line
    fake.update(id, **COMPLETED)
    rest = read_until(master, f"migration  {id}")
    assert rest.startswith("\r\x1b[K")  # the line goes before the report comes
    assert process.wait(5) == 0
    os.close(master)


def test_prediction_on_a_terminal(fake):
    """A line that stays, above the one that is renewed."""
    process, master = on_terminal(fake, "migrate", "web1", "--to", "host-b", columns=140)
    id = fake.wait_migration()
    fake.update(id, status="checking")
    fake.update(id, status="copying", progress=PROGRESS, predicted=WILL)
    seen = read_until(master, "iteration 2")
    fake.update(id, predicted_first_pass=FAILS)
    seen += read_until(master, r"dirties[^\r]*\r\n[^\r]*\rweb1: copying")
    assert seen.count(f"\x1b[Kpredicted  {WILL_SAID}\r\n") == 1
    assert seen.count("\x1b[Kpredicted  will not converge: the guest? dirties 120 MB/s\r\n") == 1
    fake.update(id, **COMPLETED)
    read_until(master, id)
    assert process.wait(5) == 0
    os.close(master)


def test_progress_fits_a_narrow_terminal(fake):
    process, master = on_terminal(fake, "migrate", "web1", "--to", "host-b", columns=40)
    id = fake.wait_migration()
    fake.update(id, status="copying", wire_bytes=700 << 20, progress=PROGRESS)
    seen = read_until(master, r"copying[^\r]*\x1b\[K")
    assert all(len(line.replace("\x1b[K", "")) < 40 for line in seen.split("\r"))
    fake.update(id, **COMPLETED)
    read_until(master, id)
    assert process.wait(5) == 0
    os.close(master)


def test_progress_moves_without_news(fake):
    """The elapsed time goes on on the screen although nothing changes at the daemon: polls end after half a second."""
    process, master = on_terminal(fake, "migrate", "web1", "--to", "host-b")
    id = fake.wait_migration()
    fake.update(id, status="copying", progress=PROGRESS)
    read_until(master, "4.1 s")
    fake.migrations[id]["progress"]["elapsed_ms"] = 4700
    read_until(master, "4.7 s", 3)
    fake.update(id, **COMPLETED)
    read_until(master, id)
    assert process.wait(5) == 0
    os.close(master)


def test_ctrl_c_on_a_terminal(fake):
    process, master = on_terminal(fake, "migrate", "web1", "--to", "host-b")
    id = fake.wait_migration()
    fake.update(id, status="copying", progress=PROGRESS)
    read_until(master, "copying")
    os.write(master, b"\x03")
    seen = read_until(master, f"migration  {id}")
    assert "Cancelling" in seen and "was cancelled" in seen
    assert process.wait(5) == 5
    os.close(master)


def test_dumb_terminal_gets_plain_lines(fake):
    process, id = None, None
    master, slave = pty.openpty()
    process = subprocess.Popen([FERRY, "migrate", "web1", "--to", "host-b"], stdin=slave, stdout=slave, stderr=slave,
                               env=environment(fake.path, TERM="dumb"))
    os.close(slave)
    id = fake.wait_migration()
    fake.update(id, status="copying", progress=PROGRESS)
    fake.update(id, **COMPLETED)
    seen = read_until(master, id)
    assert "\x1b" not in seen and re.search(r"s  copying\r\n", seen)
    assert process.wait(5) == 0
    os.close(master)


def test_names_cannot_write_to_the_terminal(fake):
    fake.add_vm("evil", owner="\x1b[2Jhost")
    result = ferry(fake, "vm", "list")
    assert "\x1b" not in result.stdout and re.search(r"^evil +running +\? ", result.stdout, re.M)
    fake.errors["GET", "/v1/vms"] = ApiError(500, "internal", "a\x1b[2Jb\nc")
    result = ferry(fake, "vm", "list")
    assert "a?[2Jb?c" in result.stderr


# ---- migration ----

def test_migration_list(fake):
    first = fake.add_migration("web1", "host-b")
    fake.update(first, **COMPLETED)
    second = fake.add_migration("web1", "host-c")
    result = ferry(fake, "migration", "list")
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert lines[0].split() == ["ID", "VM", "FROM", "TO", "STATUS", "OWNER", "STARTED", "TOTAL", "PAUSE", "WAITING"]
    assert lines[1].startswith(second[:12]) and lines[2].startswith(first[:12])
    assert lines[2].split()[1:6] == ["web1", "host-a", "host-b", "completed", "host-b"]
    listed = json.loads(ferry(fake, "migration", "list", "--output", "json").stdout)
    assert [one["id"] for one in listed] == [second, first]


def test_migration_show(fake):
    id = fake.add_migration("web1", "host-b")
    fake.update(id, status="copying")
    fake.update(id, **COMPLETED)
    result = ferry(fake, "migration", "show", id[:6])
    assert result.returncode == 0
    for words in (id, "completed", "owner        host-b", "5.7 s", "7.9 ms", "copying"):
        assert words in result.stdout
    assert json.loads(ferry(fake, "migration", "show", id, "--output=json").stdout) == fake.migrations[id]
    result = ferry(fake, "migration", "show", "abcdef")
    assert result.returncode == 1 and "migration.not_found" in result.stderr


PROMISE = {"max_downtime_ms": 300, "deadline_ms": 120000, "converge": ["throttle", "pause"], "pause_ms": 4000, "policy": "ferry",
           "kept": None, "words": None}
PROMISED = "a pause of 300 ms at most, within 2 m 00 s; may throttle, then pause for 4.0 s"


@pytest.mark.parametrize("kept, words, said", [(None, None, PROMISED), (True, None, PROMISED + "; kept"),
                                               (False, "it took\x1b 3 m", PROMISED + "; not kept: it took? 3 m")])
def test_promise_is_shown(fake, kept, words, said):
    id = fake.add_migration("web1", "host-b", promise={**PROMISE, "kept": kept, "words": words})
    assert f"\npromise      {said}\n" in ferry(fake, "migration", "show", id).stdout


def test_promise_of_the_least(fake):
    id = fake.add_migration("web1", "host-b", promise={**PROMISE, "deadline_ms": None, "converge": []})
    assert "\npromise      a pause of 300 ms at most\n" in ferry(fake, "migration", "show", id).stdout


FAILS = {**WILL, "downtime_ms": 0.0, "verdict": "will-not-converge", "words": "will not converge: the guest\x1b dirties 120 MB/s"}


@pytest.mark.parametrize("changes, said", [
    ({"predicted": WILL}, [f"predicted    {WILL_SAID}"]),
    ({"predicted": WILL, "predicted_first_pass": SLOWED},
     [f"predicted    {WILL_SAID}", f"             after the first pass: {SLOWED_SAID}"]),
    ({"predicted": None, "predicted_first_pass": SLOWED}, [f"predicted    after the first pass: {SLOWED_SAID}"]),
    ({"predicted": {**WILL, "downtime_ms": 0.0}}, ["predicted    14.0 s, no pause, 780 MiB to send"]),
    ({"predicted": {**WILL, "words": "converges, but pauses for longer than promised"}},
     [f"predicted    {WILL_SAID}; it converges, but pauses for longer than promised"]),
    ({"predicted": FAILS}, ["predicted    will not converge: the guest? dirties 120 MB/s"]),
    ({"predicted": None, "predicted_first_pass": None}, []),
    ({"predicted": WILL, "progress": PROGRESS}, [f"predicted    {WILL_SAID}", "left         about 2.8 s"]),
])
def test_prediction_is_shown(fake, changes, said):
    id = fake.add_migration("web1", "host-b", **changes)
    shown = ferry(fake, "migration", "show", id).stdout
    begins = shown.index("\npause ") + 1
    assert shown[begins:shown.index("\nsent ")].splitlines()[1:] == said


def test_phases_are_shown_with_what_they_waited_for(fake):
    phases = [{"name": "checking", "start_ms": 0, "end_ms": 12.5, "waited_for": "the checks\nof both sides"},
              {"name": "copying", "start_ms": 12.5, "end_ms": None}]  # of a ferryd that did not say it yet
    id = fake.add_migration("web1", "host-b", phases=phases)
    shown = ferry(fake, "migration", "show", id).stdout
    assert "\nphases       checking   from 0.000 s: 12.5 ms, waiting for the checks?of both sides\n" in shown
    assert "\n             copying    from 0.013 s: goes on\n" in shown


def test_migration_watch(fake):
    id = fake.add_migration("web1", "host-b")
    process = start(fake, "migration", "watch", id[:8])
    fake.wait_request("GET", id[:8])
    # In doubt is an end for `migrate`, but what one wants to watch here.
    fake.update(id, status="in-doubt", reason={"code": "migration.in_doubt", "message": "host-b must answer"})
    time.sleep(0.1)
    assert process.poll() is None
    fake.update(id, **COMPLETED, reason=None)
    status, out, _ = finish(process)
    assert status == 0 and "moved" in out


def test_interrupted_watch_does_not_abort(fake):
    id = fake.add_migration("web1", "host-b")
    process = start(fake, "migration", "watch", id)
    fake.wait_request("GET", id)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 5)
    assert status == 130 and "goes on" in err
    assert not any(method == "POST" for method, _, _ in fake.requests)


def test_migration_abort(fake):
    id = fake.add_migration("web1", "host-b")
    result = ferry(fake, "migration", "abort", id[:8])
    assert result.returncode == 0 and "web1 stays on host-a" in result.stdout
    fake.refuse_abort = ApiError(409, "migration.ended", "it has ended")
    result = ferry(fake, "migration", "abort", id, "--output", "json")
    assert result.returncode == 1 and json.loads(result.stdout)["error"]["code"] == "migration.ended"


def test_migration_abort_that_came_too_late(fake):
    fake.abort_ends = False
    id = fake.add_migration("web1", "host-b")
    process = start(fake, "migration", "abort", id)
    fake.wait_request("POST", "/abort")
    fake.update(id, **COMPLETED)
    assert finish(process)[0] == 1


# ---- in doubt, and settled by a person ----

WAITING = "for host-b to say whether it has taken the VM, for 3 m 20 s (asked 41 times; last: connection refused)"


def resolve_words(id, **more):
    return ["migration", "resolve", id, "--owner", more.get("owner", "host-a"), "--fenced", more.get("fenced", "host-b")]


@pytest.fixture
def doubt(fake):
    """The id of a migration that waits for host-b."""
    id = fake.add_migration("web1", "host-b")
    fake.update(id, status="switching")
    fake.doubt(id)
    return id


@pytest.mark.parametrize("output", ["text", "json"])
def test_migrate_in_doubt_says_what_to_do(fake, output):
    process, id = started(fake, "--output", output)
    fake.doubt(id)
    status, out, err = finish(process)
    assert status == 4
    assert f"is not settled: waiting {WAITING} (migration.in_doubt)" in err
    assert "Nothing needs to be done" in err
    assert f"  ferry migration resolve {id} --owner host-a --fenced host-b\n" in err
    if output == "json":
        assert json.loads(out) == fake.migrations[id]


def test_pause_that_nobody_has_seen(fake):
    """A ferryd that was started in the middle of the switch."""
    process, id = started(fake)
    fake.update(id, **{**COMPLETED, "downtime_ms": None})
    _, out, _ = finish(process)
    assert "5.7 s; nobody has seen for how long the guest was paused\n" in out
    assert "\npause        not known\n" in ferry(fake, "migration", "show", id).stdout
    assert ferry(fake, "migration", "list").returncode == 0


@pytest.mark.parametrize("more, words", [
    ({"asked": 0, "last": None}, "(not asked yet)"),
    ({"asked": 1, "last": None}, "(asked once)"),
    ({"asked": 2, "last": "a\x1b[2Jb", "for_ms": 1500}, "for 1.5 s (asked 2 times; last: a?[2Jb)"),
])
def test_waiting_in_words(fake, doubt, more, words):
    fake.doubt(doubt, **more)
    assert words in ferry(fake, "migration", "show", doubt).stdout


def test_waiting_is_shown(fake, doubt):
    shown = ferry(fake, "migration", "show", doubt).stdout
    assert f"\nwaiting      {WAITING}\n" in shown
    assert f"ferry migration resolve {doubt} --owner host-a --fenced host-b\n" in shown
    assert "\nhandover     offered (source)\n" in shown and "\nreason" not in shown
    lines = ferry(fake, "migration", "list").stdout.splitlines()
    assert lines[1].endswith("  for host-b, 3 m 20 s")
    fake.update(doubt, waiting=None, reason=None, **COMPLETED)
    shown = ferry(fake, "migration", "show", doubt).stdout
    assert "waiting" not in shown and "resolve" not in shown
    assert ferry(fake, "migration", "list").stdout.splitlines()[1].endswith(" -")


def test_waiting_of_a_destination(fake):
    """It holds a complete copy and hears nothing of the source: then that is the host to fence."""
    id = fake.add_migration("web1", "host-a", role="destination", source="host-b")
    fake.doubt(id)
    shown = ferry(fake, "migration", "show", id).stdout
    assert f"ferry migration resolve {id} --owner host-a --fenced host-b\n" in shown


def test_what_has_ended_does_not_wait(fake, doubt):
    fake.update(doubt, status="rolled-back", reason={"code": "migration.resolved", "message": "it was settled"})
    shown = ferry(fake, "migration", "show", doubt).stdout
    assert "waiting" not in shown and "reason       it was settled (migration.resolved)" in shown
    assert ferry(fake, "migration", "list").stdout.splitlines()[1].endswith(" -")


def test_destination_measures_nothing(fake):
    id = fake.add_migration("web1", "host-a", role="destination", source="host-b")
    fake.doubt(id)
    fake.update(id, status="completed", cleanup_pending=True, waiting=None,
                resolved={"owner": "host-a", "fenced": "host-b", "at_ms": 1, "epoch": 2},
                reason={"code": "migration.resolved", "message": "it is paused"})
    result = ferry(fake, "migration", "watch", id)
    assert result.returncode == 0 and "settled by a person: it is paused" in result.stderr
    assert "not paused" not in result.stdout and "sent" not in result.stdout
    assert "fenced; host-b is told as soon as it answers" in result.stdout


def test_waiting_while_watched(fake, doubt):
    process = start(fake, "migration", "watch", doubt)
    fake.wait_request("GET", doubt)
    fake.update(doubt, waiting=None, reason=None, **COMPLETED)
    status, _, err = finish(process)
    assert status == 0 and f"in-doubt: waiting {WAITING}\n" in err


def test_waiting_on_a_terminal(fake, doubt):
    process, master = on_terminal(fake, "migration", "watch", doubt, columns=160)
    seen = read_until(master, "connection refused")
    assert f"web1: in-doubt  waiting {WAITING}" in seen
    # The time goes on on the screen, without news.
    fake.migrations[doubt]["waiting"]["for_ms"] = 201300
    read_until(master, "for 3 m 21 s", 3)
    fake.update(doubt, waiting=None, reason=None, **COMPLETED)
    read_until(master, f"migration  {doubt}")
    assert process.wait(5) == 0
    os.close(master)


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize("owner, fenced, words", [("host-a", "host-b", "web1 stays on host-a, which owns it."),
                                                  ("host-b", "host-a", "web1 moved from host-a to host-b, which owns it now.")])
def test_resolve(fake, doubt, owner, fenced, words, output):
    result = ferry(fake, *resolve_words(doubt[:8], owner=owner, fenced=fenced), "--output", output)
    assert result.returncode == 0, result.stderr
    assert fake.requests == [("POST", f"/v1/migrations/{doubt[:8]}/resolve", {"owner": owner, "fenced": fenced})]
    if output == "json":
        assert json.loads(result.stdout) == fake.migrations[doubt]
        return
    assert result.stdout.splitlines()[0] == words
    settled = f"by a person: {owner} owns it, {fenced} was stated to be fenced; host-b is told as soon as it answers"
    assert f"  resolved   {settled}\n" in result.stdout
    assert "not paused" not in result.stdout  # it was, and still is
    if owner == "host-a":
        assert "was settled by a person" in result.stderr and "did not succeed" not in result.stderr
    assert f"\nresolved     {settled} (" in ferry(fake, "migration", "show", doubt).stdout


def test_resolve_follows_to_the_end(fake, doubt):
    fake.resolve_ends = False
    process = start(fake, *resolve_words(doubt), "--output", "json")
    fake.wait_request("GET", doubt)  # it is still called in doubt, and yet followed
    fake.end_resolved(doubt, fake.migrations[doubt]["resolved"])
    status, out, _ = finish(process)
    assert status == 0 and json.loads(out)["status"] == "rolled-back"


@pytest.mark.slow
def test_resolve_does_not_wait_for_ever(fake, doubt):
    """A daemon that has accepted it and cannot act on it, since its journal cannot be written, say."""
    fake.resolve_ends = False
    result = ferry(fake, *resolve_words(doubt), timeout=60)
    assert result.returncode == 4 and "is not settled" in result.stderr


def test_resolve_interrupted(fake, doubt):
    fake.resolve_ends = False
    process = start(fake, *resolve_words(doubt))
    fake.wait_request("GET", doubt)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 5)
    assert status == 130 and "goes on" in err
    assert not any(path.endswith("/abort") for _, path, _ in fake.requests)


def test_resolve_ends_otherwise(fake, doubt):
    """The other host answered while its fencing was being stated."""
    fake.resolve_ends = False
    process = start(fake, *resolve_words(doubt))
    fake.wait_request("GET", doubt)
    fake.update(doubt, waiting=None, reason=None, **COMPLETED)
    status, out, _ = finish(process)
    assert status == 1 and "host-b, which owns it now" in out


@pytest.mark.parametrize("arguments, words", [
    (["--fenced", "host-b"], "needs --owner HOST"),
    (["--owner", "host-a"], "needs --fenced HOST"),
    (["--owner", "host-a", "--yes"], "needs --fenced HOST"),
    (["--owner", "host-a", "--fenced", ""], "needs --fenced HOST"),
    (["--owner", "host-a", "--fenced", "host-a"], "cannot own the VM and be fenced"),
])
def test_resolve_needs_both_hosts(fake, doubt, arguments, words):
    result = ferry(fake, "migration", "resolve", doubt, *arguments)
    assert result.returncode == 2 and words in result.stderr and result.stdout == "" and not fake.requests
    if "--fenced HOST" in words:
        for explained in ("cannot write to its disks", "powered off", "two copies of the VM run and destroy its disks"):
            assert explained in result.stderr
    result = ferry(fake, "migration", "resolve", doubt, *arguments, "--output", "json")
    assert result.returncode == 2 and words in json.loads(result.stdout)["error"]["message"]


def test_resolve_host_that_json_cannot_hold(fake, doubt):
    result = subprocess.run([FERRY.encode(), *(word.encode() for word in resolve_words(doubt)[:-1]), b"host-\xff"],
                            capture_output=True, env=environment(fake.path), timeout=20)
    assert result.returncode == 2 and not fake.requests


@pytest.mark.parametrize("more, code, status", [
    ({"owner": "host-c"}, "invalid_argument", 2),
    ({"fenced": "host-c"}, "migration.not_fenced", 2),
])
def test_resolve_wrong_hosts(fake, doubt, more, code, status):
    result = ferry(fake, *resolve_words(doubt, **more), "--output", "json")
    assert result.returncode == status and json.loads(result.stdout)["error"]["code"] == code
    assert fake.migrations[doubt]["resolved"] is None


def test_resolve_what_does_not_wait(fake):
    id = fake.add_migration("web1", "host-b")
    fake.update(id, status="copying")
    result = ferry(fake, *resolve_words(id))
    assert result.returncode == 1 and "migration.not_in_doubt" in result.stderr
    result = ferry(fake, *resolve_words("abcdef"))
    assert result.returncode == 1 and "migration.not_found" in result.stderr


def test_resolve_what_has_ended(fake):
    id = fake.add_migration("web1", "host-b")
    fake.update(id, **COMPLETED)
    result = ferry(fake, *resolve_words(id), "--output", "json")
    assert result.returncode == 1 and json.loads(result.stdout)["error"]["code"] == "migration.ended"
    # It ended as was wanted: a script that says it twice need not care.
    result = ferry(fake, *resolve_words(id, owner="host-b", fenced="host-a"), "--output", "json")
    assert result.returncode == 0 and json.loads(result.stdout) == fake.migrations[id]


def test_resolve_answer_is_lost(fake, doubt):
    fake.drop.add(("POST", f"/v1/migrations/{doubt}/resolve"))
    result = ferry(fake, *resolve_words(doubt))
    assert result.returncode == 0 and "by a person: host-a owns it" in result.stdout


def test_resolve_request_never_arrives(fake, doubt):
    """It is not said again by itself: it is a person's statement, and things may have changed."""
    fake.drop_before.add(("POST", f"/v1/migrations/{doubt}/resolve"))
    result = ferry(fake, *resolve_words(doubt))
    assert result.returncode == 1 and "nothing was done" in result.stderr
    assert sum(method == "POST" for method, _, _ in fake.requests) == 1 and fake.migrations[doubt]["resolved"] is None


@pytest.mark.parametrize("typed, status", [("host-b\n", 0), ("host-a\n", 5), ("yes\n", 5), ("\n", 5), ("\x04", 5), ("\x03", -2)])
def test_resolve_asks_on_a_terminal(fake, doubt, typed, status):
    process, master = on_terminal(fake, *resolve_words(doubt))
    seen = read_until(master, "Type the name of the fenced host to go on: ")
    for words in (f"waiting {WAITING}", "From now on host-a owns web1", "It is left paused", "cannot be taken back",
                  "two copies of the VM run"):
        assert words in seen
    assert [method for method, _, _ in fake.requests] == ["GET"]
    os.write(master, typed.encode())
    if status == 0:
        assert "by a person: host-a owns it" in read_until(master, f"migration  {doubt}")
    elif status == 5:
        read_until(master, "not confirmed; nothing was done")
    assert process.wait(5) == status
    assert (fake.migrations[doubt]["resolved"] is not None) == (status == 0)
    os.close(master)


@pytest.mark.parametrize("role, owner, fenced, words", [
    ("source", "host-b", "host-a", "the copy on host-a is ended"),
    ("destination", "host-b", "host-a", "It is left paused"),
    ("destination", "host-a", "host-b", "the copy on host-b is ended"),
])
def test_resolve_says_what_will_happen(fake, doubt, role, owner, fenced, words):
    fake.update(doubt, role=role)
    process, master = on_terminal(fake, *resolve_words(doubt, owner=owner, fenced=fenced))
    seen = read_until(master, "Type the name")
    assert words in seen and f"You state that {fenced} is fenced" in seen and "post-copy" not in seen
    os.write(master, b"no\n")
    assert process.wait(5) == 5
    os.close(master)


def test_resolve_in_postcopy_loses_the_guest(fake, doubt):
    fake.update(doubt, postcopy=True)
    assert "\nhandover     offered (source), post-copy\n" in ferry(fake, "migration", "show", doubt).stdout
    process, master = on_terminal(fake, *resolve_words(doubt))
    seen = read_until(master, "Type the name")
    assert "It is in post-copy" in seen and "started anew on host-a" in seen
    os.write(master, b"no\n")
    assert process.wait(5) == 5
    os.close(master)


@pytest.mark.parametrize("words", [["--yes"], ["--output", "json"]])
def test_resolve_does_not_ask(fake, doubt, words):
    process, master = on_terminal(fake, *resolve_words(doubt), *words)
    seen = read_until(master, "a person: host-a" if words == ["--yes"] else r'"resolved": \{')
    assert "Type the name" not in seen
    assert process.wait(5) == 0
    os.close(master)


@pytest.mark.parametrize("change, more, code", [
    ({"status": "copying", "waiting": None}, {}, "migration.not_in_doubt"),
    ({"status": "completed"}, {}, "migration.ended"),
    ({}, {"owner": "host-c"}, "invalid_argument"),
    ({}, {"fenced": "host-c"}, "migration.not_fenced"),
])
def test_resolve_does_not_ask_what_it_cannot_describe(fake, doubt, change, more, code):
    fake.update(doubt, **change)
    process, master = on_terminal(fake, *resolve_words(doubt, **more))
    seen = read_until(master, rf"\({code}\)")
    assert "Type the name" not in seen
    assert process.wait(5) in (1, 2)
    assert [method for method, _, _ in fake.requests] == ["GET"]
    os.close(master)


# ---- vm, host ----

@pytest.mark.parametrize("verb, state", [("start", "running"), ("shutdown", "running"), ("stop", "stopped"), ("reboot", "running"),
                                         ("pause", "paused"), ("resume", "running")])
def test_vm_changes(fake, verb, state):
    result = ferry(fake, "vm", verb, "web1")
    assert (result.returncode, result.stdout) == (0, f"web1: {state}\n")
    assert fake.requests == [("POST", f"/v1/vms/web1/{verb}", None)]
    result = ferry(fake, "vm", verb, "web1", "--output", "json")
    assert json.loads(result.stdout)["state"] == state


def test_vm_define_show_list_undefine(fake, tmp_path):
    definition = {"name": "db", "memory_mib": 256}
    path = tmp_path / "db.json"
    path.write_text(json.dumps(definition))
    result = ferry(fake, "vm", "define", str(path))
    assert result.returncode == 0 and result.stdout.startswith("db is defined (")
    assert fake.requests[-1] == ("POST", "/v1/vms", definition)
    result = ferry(fake, "vm", "define", "-", "--output", "json", input=json.dumps({"name": "db2"}))
    assert json.loads(result.stdout)["name"] == "db2"
    assert ferry(fake, "vm", "define", str(path)).returncode == 1  # vm.exists
    shown = ferry(fake, "vm", "show", "db").stdout
    assert "state      stopped" in shown and "owner      host-a (epoch 1)" in shown
    assert {vm["name"] for vm in json.loads(ferry(fake, "vm", "list", "--output", "json").stdout)} == {"web1", "db", "db2"}
    result = ferry(fake, "vm", "undefine", "db")
    assert (result.returncode, result.stdout) == (0, "db is no longer defined.\n")
    assert json.loads(ferry(fake, "vm", "undefine", "db2", "--output", "json").stdout) == {}
    assert set(fake.vms) == {"web1"}


@pytest.mark.parametrize("text", ["", "{", "{} trailing", '{"a":1,"a":2}'])
def test_vm_define_bad_file(fake, tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    result = ferry(fake, "vm", "define", str(path), "--output", "json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["code"] == "invalid_json" and str(path) in result.stderr
    assert not fake.requests


def test_vm_define_no_file(fake, tmp_path):
    result = ferry(fake, "vm", "define", str(tmp_path / "none.json"))
    assert result.returncode == 1 and "No such file" in result.stderr


@pytest.mark.parametrize("verb", ["show", "start", "stop", "undefine"])
def test_vm_unknown(fake, verb):
    result = ferry(fake, "vm", verb, "nope")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.splitlines()[0] == "ferry: there is no 'nope' (vm.not_found)"


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "ä", "%41", "?x=1", "a#b"])
def test_names_stay_one_path_segment(fake, name):
    fake.add_vm(name)
    ferry(fake, "vm", "show", "--", name)
    # The stand-in decodes the path: nothing of the name has become a query, a fragment or a step.
    assert fake.requests == [("GET", f"/v1/vms/{name}", None)]


def test_hosts(fake):
    assert ferry(fake, "host", "add", "host-b", "198.18.0.2").returncode == 0
    assert fake.requests[-1] == ("POST", "/v1/hosts", {"name": "host-b", "address": "198.18.0.2"})
    result = ferry(fake, "host", "add", "host-c", "[fd00::3]:4711", "--output", "json")
    assert json.loads(result.stdout) == {"name": "host-c", "address": "fd00::3", "port": 4711}
    assert ferry(fake, "host", "add", "host-d", "fd00::4").returncode == 0
    assert fake.requests[-1][2] == {"name": "host-d", "address": "fd00::4"}
    lines = ferry(fake, "host", "list").stdout.splitlines()
    assert [line.split() for line in lines] == [["NAME", "ADDRESS", "PORT"], ["host-b", "198.18.0.2", "4710"],
                                                ["host-c", "fd00::3", "4711"], ["host-d", "fd00::4", "4710"]]
    assert len(json.loads(ferry(fake, "host", "list", "--output", "json").stdout)) == 3
    assert "connection refused" in ferry(fake, "host", "show", "host-b").stdout
    assert json.loads(ferry(fake, "host", "show", "--output", "json").stdout)["name"] == "host-a"
    assert ferry(fake, "host", "remove", "host-b").stdout == "host-b is no longer known here.\n"
    assert ferry(fake, "host", "remove", "host-b").returncode == 1


def listen_console(fake):
    folder = os.path.join(os.path.dirname(fake.path), "vms", fake.vms["web1"]["uuid"])
    os.makedirs(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(folder, "console.sock"))
    listener.listen(1)
    return listener


def test_console(fake):
    listener = listen_console(fake)
    process, master = on_terminal(fake, "vm", "console", "web1")
    console, _ = listener.accept()
    read_until(master, "Ctrl-] leaves")
    console.sendall(b"login: ")
    read_until(master, "login: ")
    os.write(master, b"root\x03\r")  # Ctrl-C goes to the guest
    seen = b""
    while len(seen) < 6:
        seen += console.recv(100)
    assert seen == b"root\x03\r"
    os.write(master, b"ab\x1dcd")
    assert process.wait(5) == 0
    assert console.recv(100) == b"ab" and console.recv(100) == b""
    os.close(master)


def test_console_of_a_vm_that_ends(fake):
    listener = listen_console(fake)
    process = start(fake, "vm", "console", "web1", stdin=subprocess.PIPE)
    console, _ = listener.accept()
    console.sendall(b"bye\n")
    console.close()
    process.wait(5)  # its stdin is still open: that would be another way to end
    status, out, err = finish(process)
    assert status == 1 and out == "bye\n" and "closed by the VM's side" in err


def test_console_elsewhere(fake):
    result = ferry(fake, "-H", "host-b", "vm", "console", "web1")
    assert result.returncode == 2 and "own host only" in result.stderr
    result = ferry(fake, "vm", "console", "web1")
    assert result.returncode == 1 and "cannot reach the console" in result.stderr


# ---- pki, another host ----

@pytest.fixture
def folders(tmp_path):
    """A CA, a host's folder, and a home with a client's certificate; all by `ferry pki`."""
    ca, host, home = tmp_path / "ca", tmp_path / "host-b", tmp_path / "home"
    for arguments in (["init", "--folder", ca], ["issue", "host-b", "--ca", ca, "--out", host, "--address", "127.0.0.1"],
                      ["issue", "admin", "--client", "--ca", ca, "--out", home / ".config/ferry/pki"]):
        result = subprocess.run([FERRY, "pki", *arguments], text=True, capture_output=True)
        assert result.returncode == 0, result.stderr
    return ca, host, home


def remote(folders, *arguments, port=4710, **env):
    _, host, home = folders
    return subprocess.run(["unshare", "--net", sys.executable, os.path.join(HERE, "fake_ferryd.py"), host, str(port), FERRY, *arguments],
                          text=True, capture_output=True, timeout=30,
                          env=environment("/nonexistent", HOME=str(home), XDG_CONFIG_HOME="", **env))


def test_pki_files(folders, tmp_path):
    ca, host, home = folders
    assert sorted(os.listdir(ca)) == ["ca.crt", "ca.key"]
    assert sorted(os.listdir(host)) == ["ca.crt", "host.crt", "host.key"]
    assert sorted(os.listdir(home / ".config/ferry/pki")) == ["ca.crt", "client.crt", "client.key"]
    before = (host / "host.crt").read_text(), (host / "host.key").read_text()
    result = subprocess.run([FERRY, "pki", "renew", "--ca", ca, "--folder", host, "--output", "json"], text=True, capture_output=True)
    assert json.loads(result.stdout) == {"folder": str(host), "files": ["ca.crt", "host.crt", "host.key"]}
    after = (host / "host.crt").read_text(), (host / "host.key").read_text()
    assert before[0] != after[0] and before[1] != after[1]
    result = subprocess.run([FERRY, "pki", "init", "--folder", ca, "--output", "json"], text=True, capture_output=True)
    assert result.returncode == 1 and json.loads(result.stdout)["error"]["code"] == "exists"
    result = subprocess.run([FERRY, "pki", "issue", "a/b", "--ca", ca, "--out", tmp_path / "x"], text=True, capture_output=True)
    assert result.returncode == 2 and "a/b" in result.stderr
    result = subprocess.run([FERRY, "pki", "issue", "x", "--ca", tmp_path / "none", "--out", tmp_path / "x"], text=True, capture_output=True)
    assert result.returncode == 1 and "ferry pki init" in result.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
class TestAnotherHost:
    def test_option_and_environment(self, folders):
        result = remote(folders, "-H", "host-b=127.0.0.1", "vm", "list")
        assert result.returncode == 0 and "web1" in result.stdout, result.stderr
        result = remote(folders, "vm", "list", "--output", "json", FERRY_HOST="host-b=127.0.0.1:4712", port=4712)
        assert [vm["name"] for vm in json.loads(result.stdout)] == ["web1"]
        # -H wins over FERRY_HOST.
        result = remote(folders, "vm", "pause", "web1", "-H", "host-b=localhost", FERRY_HOST="host-x=127.0.0.1:9")
        assert (result.returncode, result.stdout) == (0, "web1: paused\n"), result.stderr

    def test_errors_of_the_other_side(self, folders):
        result = remote(folders, "-H", "host-b=127.0.0.1", "vm", "start", "nope", "--output", "json")
        assert result.returncode == 1 and json.loads(result.stdout)["error"]["code"] == "vm.not_found"

    def test_another_name_in_the_certificate(self, folders):
        result = remote(folders, "-H", "host-c=127.0.0.1", "vm", "list")
        assert result.returncode == 1 and "(tls)" in result.stderr and result.stdout == ""

    def test_nobody_there(self, folders):
        result = remote(folders, "-H", "host-b=127.0.0.1:4999", "vm", "list")
        assert result.returncode == 1 and "(daemon.unreachable)" in result.stderr

    def test_no_such_address(self, folders):
        result = remote(folders, "-H", "host-b=host-b.invalid", "vm", "list")
        assert result.returncode == 1 and "host-b.invalid" in result.stderr and "(daemon.unreachable)" in result.stderr

    @pytest.mark.parametrize("where", ["", "=127.0.0.1", "host-b=127.0.0.1:0", "host-b=", "host-b=[::1"])
    def test_bad_names(self, folders, where):
        result = remote(folders, "-H", where, "vm", "list")
        assert result.returncode == 2 and result.stdout == "" and "-H" in result.stderr

    def test_no_certificate(self, folders):
        ca, host, _ = folders
        result = remote((ca, host, ca), "-H", "host-b=127.0.0.1", "vm", "list")
        assert result.returncode == 1 and "(pki)" in result.stderr

    def test_interrupted_watch(self, folders):
        """libcurl waits there, and must be interrupted as the local wait is; the first request waits for its answer."""
        command = ('"$0" -H host-b=127.0.0.1 migrate web1 --to host-c & pid=$!; "$0" -H host-b=127.0.0.1 vm list >/dev/null; '
                   'until "$0" -H host-b=127.0.0.1 migration list | grep -q web1; do :; done; kill -INT $pid; wait $pid')
        _, host, home = folders
        # An interactive shell's children do not ignore SIGINT, those of a plain one in the background do.
        result = subprocess.run(["unshare", "--net", sys.executable, os.path.join(HERE, "fake_ferryd.py"), host, "4710",
                                 "bash", "-c", "set -m; " + command, FERRY], text=True, capture_output=True, timeout=30,
                                env=environment("/nonexistent", HOME=str(home), XDG_CONFIG_HOME=""))
        assert result.returncode == 5, result.stderr
        assert "Cancelling" in result.stderr and "stays on host-a" in result.stdout


# ---- help ----

def verbs():
    out = subprocess.run([FERRY, "--help"], text=True, capture_output=True, check=True).stdout
    return [match.group(1) for match in re.finditer(r"^  ((?:migrate|plan|(?:migration|vm|host|image|pki|stream) [a-z]+)) ", out, re.M)]


def options_of(verb):
    out = subprocess.run([FERRY, *verb.split(), "--help"], text=True, capture_output=True, check=True).stdout
    return out, re.findall(r"^  (--[a-z-]+)", out, re.M)


def test_every_verb_has_help_with_an_example():
    assert len(verbs()) == 33
    for verb in verbs():
        out, options = options_of(verb)
        assert f"\nExample: ferry {verb}" in out
        assert "--help" in options and len(out.splitlines()) >= 6


def manual(page):
    with open(os.path.join(REPOSITORY, "man", page + ".scd"), encoding="utf-8") as file:
        return file.read()


def test_manual_has_every_verb_and_option():
    page = manual("ferry.1")
    for verb in verbs():
        assert re.search(rf"^\*ferry {verb}\*|, \*ferry {verb}\*", page, re.M), verb
        for option in options_of(verb)[1]:
            assert f"*{option}*" in page, f"{verb} {option}"


def test_manual_has_no_other_options():
    known = {option for verb in verbs() for option in options_of(verb)[1]} | {"--host", "--version"}
    assert set(re.findall(r"\*(--[a-z-]+)\*", manual("ferry.1"))) <= known


def test_manual_of_the_configuration_follows_the_table():
    with open(os.path.join(REPOSITORY, "src/host/config.tbl"), encoding="utf-8") as file:
        table = re.findall(r'^CONFIG_KEY\("([^"]+)", "([^"]+)", [^,]+, [A-Z]+, "([^"]*)"', file.read(), re.M)
    sections = dict(re.findall(r"^# \[(\w+)\]\n(.*?)(?=^# )", manual("ferry.conf.5"), re.M | re.S))
    found = {(section, key) for section, text in sections.items() for key in re.findall(r"^\*(\w+)\*$", text, re.M)}
    assert found == {(section, key) for section, key, _ in table}
    for section, key, default in table:
        text = re.search(rf"^\*{key}\*\n(.*?)(?=^\*|\Z)", sections[section], re.M | re.S).group(1)
        assert default in text, f"[{section}] {key}"


# ---- completion ----

def complete(fake, *words):
    """What bash offers for the last word."""
    script = (f'source {REPOSITORY}/completions/ferry.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ferry; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    result = subprocess.run(["bash", "-c", script, "bash", FERRY, *words], text=True, capture_output=True, timeout=10,
                            env=environment(fake.path))
    assert result.stderr == ""
    return set(result.stdout.split())


def test_completion(fake):
    fake.hosts["host-b"] = {"name": "host-b", "address": "198.18.0.2", "port": 4710}
    id = fake.add_migration("web1", "host-b")
    assert complete(fake, "") >= {"migrate", "migration", "vm", "host", "pki", "--help"}
    assert complete(fake, "mig") == {"migrate", "migration"}
    assert complete(fake, "vm", "st") == {"start", "stop"}
    assert complete(fake, "-H", "host-b", "migration", "w") == {"watch"}
    assert complete(fake, "vm", "start", "") == {"web1"}
    assert complete(fake, "migrate", "web1", "--to", "h") == {"host-b"}
    assert complete(fake, "migrate", "web1", "--ma") == {"--max-downtime", "--map"}
    assert complete(fake, "migrate", "web1", "--transport", "") == {"auto", "native", "relay"}
    assert complete(fake, "migration", "show", "") == {id[:12]}
    assert complete(fake, "migration", "resolve", "") == set()
    fake.doubt(id)
    other = fake.add_migration("web1", "host-c")
    assert complete(fake, "migration", "show", "") == {id[:12], other[:12]}
    assert complete(fake, "migration", "resolve", "") == {id[:12]}
    assert complete(fake, "migration", "resolve", id[:5], "--owner", "") == {"host-a", "host-b"}
    assert complete(fake, "migration", "resolve", other, "--owner", "host-a", "--fenced", "") == {"host-a", "host-c"}
    assert complete(fake, "migration", "resolve", id, "--") == {"--owner", "--fenced", "--yes", "--output", "--help"}
    assert complete(fake, "host", "remove", "") == {"host-b"}
    assert complete(fake, "vm", "list", "--output", "") == {"json", "text"}


def test_group_help():
    result = subprocess.run([FERRY, "vm", "--help"], text=True, capture_output=True)
    assert result.returncode == 0 and "vm start" in result.stdout and "migrate" not in result.stdout


def test_version():
    result = subprocess.run([FERRY, "--version"], text=True, capture_output=True)
    assert result.returncode == 0 and re.fullmatch(r"ferry \d+\.\d+\.\d+\n", result.stdout)


def test_full_disk_is_an_error(fake):
    with open("/dev/full", "w", encoding="utf-8") as full:
        result = subprocess.run([FERRY, "vm", "list"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(fake.path))
    assert result.returncode == 1 and "cannot write the output" in result.stderr


def test_small_program_loads_little():
    """Loading libcurl and what is behind it takes longer than all that a local `ferry migrate` does."""
    libraries = subprocess.run(["ldd", FERRY], text=True, capture_output=True, check=True).stdout
    assert "libcurl" not in libraries and "libgnutls" not in libraries
    assert "libcurl" in subprocess.run(["ldd", FERRY + "-remote"], text=True, capture_output=True, check=True).stdout


# ---- with real ferryds ----

@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_resolve_with_real_daemons():
    """What the stand-in was taught is what ferryd does: what is refused and how, what is shown, what happens."""
    from moves import Pair, Proxy
    ports = range(49152, 49160)
    pair = Pair("cli", config={"migration": {"silence_limit": "3", "finish_timeout": "5"},
                               "data": {"native_ports": f"{ports[0]}-{ports[-1]}"}})
    way = None

    def resolve(id, owner="host-a", fenced="host-b"):
        result = pair.ferry("host-a", *resolve_words(id, owner=owner, fenced=fenced), "--output", "json", check=False)
        answer = json.loads(result.stdout)
        return result.returncode, answer.get("error", {}).get("code"), answer

    try:
        way = Proxy(pair, ports)
        guest = pair.guest("h")
        assert resolve("abcdef")[:2] == (1, "migration.not_found")
        id = pair.begin(guest, bandwidth_bytes_per_s=40_000_000)
        pair.wait("host-a", id, "copying")
        assert resolve(id)[:2] == (1, "migration.not_in_doubt")
        # From here on nothing reaches host-b: finish is not heard, so the guest does not run there.
        way.set(accept_control=False)
        way.cut(control=True)
        pair.wait("host-a", id, lambda m: m["waiting"] and m["waiting"]["asked"] > 1, timeout=120)
        shown = pair.ferry("host-a", "migration", "show", id).stdout
        assert re.search(r"^waiting +for host-b to say whether it has taken the VM, for [\d.]+ m?s \(asked \d+ times; last: .+\)$",
                         shown, re.M), shown
        assert "  for host-b, " in pair.ferry("host-a", "migration", "list").stdout
        assert resolve(id, owner="host-c")[:2] == (2, "invalid_argument")
        assert resolve(id, fenced="host-c")[:2] == (2, "migration.not_fenced")
        for body in ({"owner": "host-a"}, {"owner": "host-a", "fenced": "host-a"}):
            assert pair.refusal("host-a", "POST", f"/v1/migrations/{id}/resolve", body) == "migration.not_fenced"
        assert pair.migration("host-a", id)["status"] == "in-doubt"
        pair.kill_ferryd("host-b")
        for pid in pair.qemus("host-b")["h"]:
            os.kill(pid, signal.SIGKILL)
            pair.wait_gone(pid)
        status, _, settled = resolve(id)
        assert (status, settled["owner"], settled["cleanup_pending"]) == (0, "host-a", True)
        resolved = settled["resolved"]
        assert (resolved["owner"], resolved["fenced"]) == ("host-a", "host-b") and resolved["epoch"] > 2 and resolved["at_ms"] > 0
        assert settled["waiting"] is None and settled["reason"]["code"] == "migration.resolved"
        assert resolve(id)[0] == 0  # said twice
        assert resolve(id, "host-b", "host-a")[:2] == (1, "migration.ended")
        # It is for the person to say whether it goes on from memory.
        assert pair.vms("host-a")["h"]["state"] == "paused"
        pair.ferry("host-a", "vm", "resume", "h")
        pair.mark()
        guest.beats(100)
        way.open_all()
        pair.start_ferryd("host-b")
        told = pair.wait("host-a", id, lambda m: not m["cleanup_pending"])
        assert told["resolved"] == resolved
        pair.settled(guest, "host-a")
        guest.host = "host-a"
        pair.migrate(guest, "host-b")
        pair.settled(guest, "host-b")
    finally:
        if way:
            way.close()
        pair.close()
