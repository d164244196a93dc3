# SPDX-License-Identifier: Apache-2.0
"""Every check before a migration: its code, its side, exit status 3; all failures at once; and nothing started or left."""

import contextlib
import json
from pathlib import Path

import pytest

from moves import CONTROL, Pair, Refused, network_of


@pytest.fixture(scope="module")
def pair():
    pair = Pair("chk", config={"data": {"native_ports": "49152-49155"}})
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def guest(pair):
    return pair.guest("c", disk=True)


@pytest.fixture(autouse=True)
def nothing_happened(pair, guest):
    """Whatever a check finds: the guest runs on where it is, no record says anything else, no port is held."""
    yield
    before = pair.qemus("host-b")
    assert guest.name not in before
    pair.settled(guest, "host-a", epoch=1)
    for name in pair.names:
        assert pair.listeners(name) == [] and pair.leftovers(name) == []
    assert all(m["ended"] for name in pair.names for m in pair.api(name, "GET", "/v1/migrations")["migrations"])


@contextlib.contextmanager
def on(pair, host, do, undo):
    pair.host(host).run(["sh", "-e", "-c", do])
    try:
        yield
    finally:
        pair.host(host).run(["sh", "-e", "-c", undo])


def failures(pair, guest, *words, to="host-b"):
    """Both ways say the same: {(code, side)}. The dry run leaves no record, the real one a failed one."""
    def records():
        return [len(pair.api(name, "GET", "/v1/migrations")["migrations"]) for name in pair.names if pair.lab.ferryd_pid(name)]
    known = records()
    dry = pair.ferry(guest.host, "migrate", guest.name, "--to", to, "--dry-run", "--output", "json", *words, check=False)
    assert dry.returncode == 3, dry.stdout + dry.stderr
    told = json.loads(dry.stdout)
    assert told["ok"] is False
    assert records() == known
    real = pair.migrate(guest, to, *words, status=3)
    assert (real["status"], real["owner"], real["refused"]) == ("failed", guest.host, True)
    assert real["reason"]["code"] == real["failures"][0]["code"]
    found = {(failure["code"], failure["side"]) for failure in told["failures"]}
    assert {(failure["code"], failure["side"]) for failure in real["failures"]} == found
    assert all(failure["message"] for failure in real["failures"])
    return found


def test_dry_run_of_what_can_be_done(pair, guest):
    done = pair.ferry("host-a", "migrate", guest.name, "--to", "host-b", "--dry-run", "--output", "json")
    assert json.loads(done.stdout) == {"ok": True, "failures": []}
    assert pair.qemus("host-b") == {} and pair.vms("host-b") == {}


def test_same_host(pair, guest):
    assert failures(pair, guest, to="host-a") == {("dest.same_host", "source")}


def test_same_host_under_another_name(pair, guest):
    """The certificate must say the name, so it is one that this host has a second certificate for."""
    pair.api("host-a", "POST", "/v1/hosts", {"name": "alias", "address": pair.host("host-a").address})
    try:
        assert {code for code, _ in failures(pair, guest, to="alias")} <= {"tls", "dest.same_host"}
    finally:
        pair.api("host-a", "DELETE", "/v1/hosts/alias")


def test_unknown_destination(pair, guest):
    assert failures(pair, guest, to="host-z") == {("dest.unknown", "source")}


def test_unreachable_ferryd(pair, guest):
    pair.lab.stop_ferryd("host-b")
    try:
        assert failures(pair, guest) == {("peer.unreachable", "source")}
    finally:
        pair.start_ferryd("host-b")


def test_wrong_certificate(pair, guest):
    """host-b shows one of another authority."""
    pair.lab.client.run(["ferry", "pki", "init"])
    pair.lab.client.run(["ferry", "pki", "issue", "host-b", "--address", "198.18.0.2", "--out", "/etc/ferry/issued"])
    stranger = pair.lab.client.outside("/etc/ferry/issued")
    pki = pair.host("host-b").outside("/etc/ferry/pki")
    kept = {name: Path(pki, name).read_bytes() for name in ("ca.crt", "host.crt", "host.key")}
    pair.lab.stop_ferryd("host-b")
    for name in kept:
        Path(pki, name).write_bytes(Path(stranger, name).read_bytes())
    try:
        pair.start_ferryd("host-b")
        assert failures(pair, guest) == {("tls", "source")}
    finally:
        pair.lab.stop_ferryd("host-b")
        for name, content in kept.items():
            Path(pki, name).write_bytes(content)
        pair.start_ferryd("host-b")


def test_another_version(pair, guest):
    """A ferryd that speaks a later protocol and refuses ours, played by a program with host-b's certificate."""
    import socket
    import ssl
    import threading
    pki = pair.host("host-b").outside("/etc/ferry/pki")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pki}/host.crt", f"{pki}/host.key")
    context.load_verify_locations(f"{pki}/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    body = json.dumps({"error": {"code": "peer.version", "message": "the source speaks protocol 1, this host 2"}}).encode()
    pair.lab.stop_ferryd("host-b")
    with network_of(pair.host("host-b")):
        listener = socket.create_server((pair.host("host-b").address, CONTROL))

    def serve():
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as stream:
                while stream.recv(65536):
                    stream.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                                   % len(body) + body)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        assert failures(pair, guest) == {("peer.version", "destination")}
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        pair.start_ferryd("host-b")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["REJECT", "DROP"])
def test_blocked_data_port(pair, guest, how):
    rule = f"INPUT -p tcp --dport 49152:49155 -j {how}"
    if pair.host("host-b").run(["iptables", "-w", "-L"], check=False).returncode != 0:
        pytest.skip("no packet filter in this kernel")
    with on(pair, "host-b", f"iptables -A {rule}", f"iptables -D {rule}"):
        assert failures(pair, guest) == {("data.unreachable", "source")}


def test_no_data_port_is_free(pair, guest):
    import socket
    with contextlib.ExitStack() as stack:
        with network_of(pair.host("host-b")):
            for port in range(49152, 49156):
                listener = socket.create_server((pair.host("host-b").address, port))
                stack.enter_context(contextlib.closing(listener))
        assert failures(pair, guest) == {("data.no_port", "destination")}


def test_not_running(pair, guest):
    other = pair.guest("c2", start=False)
    other.host = "host-a"
    try:
        assert failures(pair, other) == {("vm.not_running", "source")}
    finally:
        pair.remove(other)


def odd(pair, name, change, **options):
    """A guest with something about it; gone afterwards. It need not boot."""
    guest = pair.guest(name, start=False, change=change, **options)
    guest.host = "host-a"
    pair.ferry("host-a", "vm", "start", name)
    return guest


@pytest.mark.parametrize("what, change, expected", [
    # A device whose memory is another's as well.
    ("blocked", lambda d: d["extra_args"].extend(["-object", "memory-backend-ram,id=shm,size=1M,share=on", "-device",
                                                  "ivshmem-plain,memdev=shm,master=off"]), {("vm.blocked", "source")}),
    ("snapshot", lambda d: d["extra_args"].append("-snapshot"), {("vm.snapshot_mode", "source")}),
    ("cpu-max", lambda d: d["cpu"].update(model="max"), {("dest.cpu_model", "destination")}),
])
def test_of_the_vm_itself(pair, guest, what, change, expected):
    def edit(definition):
        definition.setdefault("extra_args", [])
        change(definition)
    other = odd(pair, "odd", edit, disk=what == "snapshot")
    try:
        assert expected <= failures(pair, other), what
    finally:
        pair.remove(other)


def test_memory(pair, guest):
    """More than the machine has: the source does not use it until it is touched."""
    total_mib = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    available = next(int(line.split()[1]) // 1024 for line in Path("/proc/meminfo").read_text().splitlines()
                     if line.startswith("MemAvailable"))
    try:
        other = odd(pair, "big", lambda d: d.update(memory_mib=available + 2048))
    except Exception as problem:  # no overcommit here
        pytest.skip(f"a guest of more than {total_mib} MiB does not start: {problem}")
    try:
        assert failures(pair, other) == {("dest.memory", "destination")}
    finally:
        pair.remove(other)


def test_bridge(pair, guest):
    with on(pair, "host-b", "ip link set br0 name br7", "ip link set br7 name br0"):
        assert failures(pair, guest) == {("dest.bridge_missing", "destination")}
        assert failures(pair, guest, "--map", "bridge:br0=br8") == {("dest.bridge_missing", "destination")}
        done = pair.ferry("host-a", "migrate", guest.name, "--to", "host-b", "--map", "bridge:br0=br7", "--dry-run")
        assert done.returncode == 0


def test_disk_is_missing(pair, guest):
    with on(pair, "host-b", "mkdir -p /run/empty && mount --bind /run/empty /srv/shared", "umount /srv/shared"):
        assert failures(pair, guest) >= {("dest.disk_missing", "destination"), ("dest.kernel_missing", "destination")}


def test_disk_is_another_file_in_a_folder_of_its_own(pair, guest):
    """Not shared at all, but a file of that name and size is there."""
    do = ("mkdir -p /run/copy/boot && cp /srv/shared/boot/* /run/copy/boot/ && truncate -s 1G /run/copy/c.img && "
          "chown 61000:61000 /run/copy/c.img && mount --bind /run/copy /srv/shared")
    with on(pair, "host-b", do, "umount /srv/shared; rm -r /run/copy"):
        assert failures(pair, guest) == {("dest.not_same_file", "destination")}


def test_disk_is_another_file_bound_over(pair, guest):
    """The folder is shared, so the probe is seen; the file itself is not the one."""
    do = "truncate -s 1G /srv/local/c.img && chown 61000:61000 /srv/local/c.img && mount --bind /srv/local/c.img /srv/shared/c.img"
    with on(pair, "host-b", do, "umount /srv/shared/c.img; rm /srv/local/c.img"):
        assert failures(pair, guest) == {("dest.not_same_file", "destination")}


def test_kernel(pair, guest):
    kernel = guest.definition["kernel"]
    with on(pair, "host-b", "mkdir -p /run/empty && mount --bind /run/empty /srv/shared/boot", "umount /srv/shared/boot"):
        assert failures(pair, guest) == {("dest.kernel_missing", "destination")}, kernel


def test_vm_exists(pair, guest):
    """One of the same name, and one of the same uuid."""
    for change in ({"uuid": "00000000-0000-4000-8000-00000000000c"}, {"name": "c-other"}):
        definition = {**guest.definition, **change, "nics": []}
        pair.api("host-b", "POST", "/v1/vms", definition)
        try:
            assert failures(pair, guest) == {("dest.vm_exists", "destination")}
        finally:
            pair.api("host-b", "DELETE", f"/v1/vms/{definition['name']}")


def test_all_at_once(pair, guest):
    definition = {**guest.definition, "uuid": "00000000-0000-4000-8000-00000000000c", "nics": []}
    pair.api("host-b", "POST", "/v1/vms", definition)
    try:
        with on(pair, "host-b", "ip link set br0 name br7; mkdir -p /run/empty; mount --bind /run/empty /srv/shared",
                "umount /srv/shared; ip link set br7 name br0"):
            assert failures(pair, guest) == {("dest.vm_exists", "destination"), ("dest.bridge_missing", "destination"),
                                             ("dest.disk_missing", "destination"), ("dest.kernel_missing", "destination")}
    finally:
        pair.api("host-b", "DELETE", f"/v1/vms/{guest.name}")


def test_message_names_each_failure(pair, guest):
    with on(pair, "host-b", "ip link set br0 name br7; mkdir -p /run/empty; mount --bind /run/empty /srv/shared/boot",
            "umount /srv/shared/boot; ip link set br7 name br0"):
        done = pair.ferry("host-a", "migrate", guest.name, "--to", "host-b", check=False)
    assert done.returncode == 3
    for word in ("dest.bridge_missing", "dest.kernel_missing", "br0", "--map bridge:br0="):
        assert word in done.stderr, done.stderr


def fake_description(pair, guest, change):
    from test_handover import offer, post
    import secrets
    body = offer(pair, guest, secrets.token_hex(16), 2)
    change(body["description"])
    status, answer = post(pair, "check", body)
    assert status == 200, answer
    refused = post(pair, "refuse", {"migration": body["migration"], "vm_uuid": guest.uuid, "source": "host-a", "epoch": 2,
                                    "dry_run": True})
    assert refused[0] == 200
    return {failure["code"] for failure in answer["failures"]} - {"dest.not_same_file"}


@pytest.mark.parametrize("change, expected", [
    (lambda d: None, set()),
    (lambda d: d["definition"].update(machine="pc-i440fx-99.0"), {"dest.machine_type"}),
    (lambda d: d["definition"].update(machine="pc"), {"dest.machine_type"}),
    (lambda d: d["definition"]["cpu"].update(model="NoSuchCPU"), {"dest.cpu_model"}),
    (lambda d: d["definition"]["cpu"].update(model="host"), {"dest.cpu_model"}),
    (lambda d: d["definition"]["cpu"].update(model="EPYC"), {"dest.cpu_features"}),
    (lambda d: d["definition"]["cpu"].update(features=["+avx512f"]), {"dest.cpu_features"}),
    (lambda d: d["firmware"].append({"name": "bios-256k.bin", "size_bytes": 12345}), {"dest.firmware"}),
    (lambda d: d["firmware"].append({"name": "no-such.rom", "size_bytes": 12345}), {"dest.firmware"}),
    (lambda d: d.update(accelerator="kvm"), {"dest.accelerator"}),
])
def test_what_the_source_really_runs(pair, guest, change, expected):
    """Of a source with another QEMU: the destination compares what it is told."""
    assert fake_description(pair, guest, change) == expected


def test_request_that_makes_no_sense(pair, guest):
    for words in (["--channels", "0"], ["--max-downtime", "-1"], ["--map", "nonsense"], ["--transport", "pigeon"]):
        done = pair.ferry("host-a", "migrate", guest.name, "--to", "host-b", *words, check=False)
        assert done.returncode == 2, (words, done.stderr)
    with pytest.raises(Refused):
        pair.begin(guest, no_such_key=1)
    done = pair.ferry("host-a", "migrate", "no-such-vm", "--to", "host-b", check=False)
    assert done.returncode == 1 and "vm.not_found" in done.stderr
