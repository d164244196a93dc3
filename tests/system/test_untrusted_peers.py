# SPDX-License-Identifier: Apache-2.0
"""A host of the cluster that is broken or hostile: it has a good certificate, and lies in every field of every message,
as a source and as a destination. Each lie must get a refusal with a stable code, and leave nothing behind."""

import contextlib
import copy
import http.client
import json
import os
import secrets
import select
import socket
import ssl
import threading
import time

import pytest

from moves import CONTROL, Pair, network_of

PORTS = range(49152, 49160)
CODES = {line.split('"')[1] for line in open(os.path.join(os.path.dirname(__file__), "../../src/base/error_codes.tbl"),
                                             encoding="utf-8") if line.startswith("ERROR_CODE(")}
OUR_FAULT = {"internal", "system", "journal", "port", "pki", "config"}  # codes that a lie must never reach
EPOCH_MAX = 2 ** 53 - 1


class Speaker:
    """A program with a host's certificate, in that host's network, on one connection as long as it is kept open."""

    def __init__(self, pair, caller, to="host-b"):
        self.pair, self.caller, self.to = pair, pair.host(caller), pair.host(to)
        pki = self.caller.outside("/etc/ferry/pki")
        self.context = ssl.create_default_context(cafile=f"{pki}/ca.crt")
        self.context.load_cert_chain(f"{pki}/host.crt", f"{pki}/host.key")
        self.stream = None

    def connect(self):
        with network_of(self.caller):
            plain = socket.create_connection((self.to.address, CONTROL), 60)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.context.wrap_socket(plain, server_hostname=self.to.name)

    def close(self):
        if self.stream:
            self.stream.close()
            self.stream = None

    def raw(self, data, patience=60):
        """What is answered to these bytes: (status, JSON), or (None, None) when the connection is closed instead."""
        if self.stream is None:
            self.connect()
        self.stream.settimeout(patience)
        try:
            with contextlib.suppress(OSError):  # it may have heard enough before the end
                self.stream.sendall(data)
            response = http.client.HTTPResponse(self.stream)
            response.begin()
            text = response.read()
        except (http.client.HTTPException, OSError):
            self.close()
            return None, None
        if response.getheader("Connection", "").lower() == "close":
            self.close()
        return response.status, json.loads(text) if text.startswith(b"{") else text

    def say(self, method, path, body=None):
        text = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                        f"Content-Length: {len(text)}\r\n\r\n".encode() + text)

    def post(self, message, body):
        return self.say("POST", f"/v1/peer/{message}", body)


@pytest.fixture(scope="module")
def pair():
    pair = Pair("lie", hosts=3, config={"migration": {"silence_limit": "5", "finish_timeout": "5"},
                                        "data": {"native_ports": f"{PORTS[0]}-{PORTS[-1]}"}})
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def the_guest(pair):
    return pair.guest("g", disk=True)


@pytest.fixture
def guest(pair, the_guest):
    the_guest.host = pair.settle(the_guest)
    if the_guest.host != "host-a":
        pair.migrate(the_guest, "host-a")
        pair.settled(the_guest, "host-a")
    return the_guest


@pytest.fixture
def liar(pair):
    speaker = Speaker(pair, "host-a")
    yield speaker
    speaker.close()


@pytest.fixture
def third(pair):
    speaker = Speaker(pair, "host-c")
    yield speaker
    speaker.close()


def refused(answered, *codes):
    status, answer = answered
    assert status is not None and 400 <= status < 500, answered
    code = answer["error"]["code"]
    assert code in CODES - OUR_FAULT and (not codes or code in codes), answered
    return answer


class Offers:
    """Good offers of the guest, with probes that really stand on the shared storage; all are removed at the end."""

    def __init__(self, pair, guest, source="host-a"):
        self.pair, self.guest, self.source = pair, guest, source
        self.host = pair.host(guest.host)
        record = json.load(open(self.host.outside(f"/run/ferry/vms/{guest.uuid}/actual.json"), encoding="utf-8"))
        self.definition = record["definition"]
        self.memory_bytes, self.firmware = record["memory_bytes"], record["firmware"]
        self.probes, self.made = [], []

    def probe(self, folder, journal, ident, token, host=None):
        path = (host or self.host).outside(f"{folder}/.ferry-probe-{journal}-{ident}")
        with open(path, "w", encoding="ascii") as file:
            file.write(token)
        self.probes.append(path)

    def make(self, **changes):
        ident, journal, token = (secrets.token_hex(16) for _ in range(3))
        definition = copy.deepcopy(self.definition)
        path = definition["disks"][0]["path"]
        folder = os.path.dirname(path)
        self.probe(folder, journal, ident, token)
        epoch = self.pair.vms(self.guest.host)[self.guest.name]["epoch"] + 1
        offer = {"protocol": 1, "migration": ident, "source": self.source, "journal": journal, "epoch": epoch, "paused": False,
                 "channels": 1, "definition": definition, "tls_key_hex": secrets.token_hex(32),
                 "proofs": [{"target": definition["disks"][0]["target"], "path": path,
                             "inode": os.stat(self.host.outside(path)).st_ino,
                             "probe": f"{folder}/.ferry-probe-{journal}-{ident}", "token": token}],
                 "description": {"definition": copy.deepcopy(definition), "qemu_version": "", "accelerator": "tcg",
                                 "firmware": self.firmware, "memory_bytes": self.memory_bytes, "blocked_reasons": [],
                                 "snapshot_mode": False, "run": "running"}}
        offer.update(changes)
        self.made.append(offer)
        return offer

    def question(self, offer, **changes):
        return {"migration": offer["migration"], "vm_uuid": self.guest.uuid, "source": self.source,
                "epoch": offer["epoch"], **changes}

    def clean(self):
        for path in self.probes:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.probes = []

    def forget(self, speaker):
        """As an honest source does after checks that failed."""
        for offer in self.made:
            definition = offer.get("definition")
            uuid = definition.get("uuid") if isinstance(definition, dict) else None
            speaker.post("refuse", self.question(offer, dry_run=True, vm_uuid=uuid))
        self.made = []


@pytest.fixture
def offers(pair, guest, liar):
    offers = Offers(pair, guest)
    yield offers
    offers.forget(liar)
    offers.clean()
    nothing_is_left(pair)


def nothing_is_left(pair, name="host-b"):
    assert pair.qemus(name) == {}, pair.logs()
    assert pair.vms(name) == {}, pair.logs()
    assert pair.taps(name) == {} and pair.listeners(name) == [], pair.logs()
    unended = [m for m in pair.api(name, "GET", "/v1/migrations")["migrations"] if not m["ended"]]
    assert unended == [], unended


def failure_codes(answered):
    status, answer = answered
    assert status == 200, answered
    codes = {failure["code"] for failure in answer["failures"]}
    assert codes <= CODES - OUR_FAULT, answered
    return codes


# ---- every field of an offer ----

WRONG_TYPES = [None, True, 7, -1, 1.5, "", "x", [], {}, [7], {"a": 1}]
STRINGS = ["../../../etc/passwd", "/etc/passwd", "..", "%2e%2e%2fx", "a\nb", "a b", "x" * 70000, "\U0001f600", "-", ".ssh", "a/b", "'", "\x7f",
           ",id=x"]
NUMBERS = [0, -1, 2 ** 31, 2 ** 63 - 1, -2 ** 63, 1e300]
ID = "00000000-0000-4000-8000-000000000000"


def wrong(good, *more, but=()):
    """Values that are wrong where `good` is right."""
    values = [value for value in WRONG_TYPES if not isinstance(value, type(good)) or isinstance(value, bool) != isinstance(good, bool)]
    values += {str: ["", *STRINGS], int: NUMBERS, bool: [], list: [[7], [{}]], dict: [{}]}[type(good)]
    return [value for value in [*values, *more] if not any(value is one or value == one and type(value) is type(one) for one in but)]


# Path in the offer: what it may not be. Where a key can be left out, null is the same, and so is what it stands for.
LIES = {
    ("protocol",): wrong(1, 2),
    ("migration",): wrong("", "0" * 31, "0" * 33, "A" * 32, "g" * 32),
    ("source",): wrong("", "host-b", "host-c", "HOST-A", "host-a ", "*"),
    ("journal",): wrong("", "0" * 31, "0" * 33),
    ("epoch",): wrong(1, 1, 2 ** 53, EPOCH_MAX + 1, but=(2 ** 31,)),
    ("paused",): wrong(True),
    ("channels",): wrong(1, 65),
    ("tls_key_hex",): wrong("", "0" * 63, "0" * 65, "g" * 64, but=(None,)),
    ("definition",): wrong({}, {"name": "g", "memory_mib": 64}),
    ("description",): wrong({}),
    ("proofs",): wrong([], [{}] * 21),
    ("definition", "name"): wrong("", "g2", "g" * 64),
    ("definition", "uuid"): wrong("", ID, ID[:-1], ID + "0", "{" + ID + "}"),
    ("definition", "machine"): wrong("", "pc", "microvm", "pc-i440fx-7.2,accel=kvm", "none"),
    ("definition", "cpu"): wrong({}, {"model": "max"}, {"model": "host"}, {"model": "qemu64,+vmx"}, {"modell": "x"}, {"features": ["x,y"]}, but=(None, {})),
    ("definition", "vcpus"): wrong(1, 2, 256, but=(None,)),
    ("definition", "memory_mib"): wrong(1, 2 ** 24 + 1, 2 ** 23),
    ("definition", "disks"): wrong([], [], [{"target": "vda"}]),
    ("definition", "disks", 0, "target"): wrong("", "vdb"),
    ("definition", "disks", 0, "path"): wrong("", "/srv/shared/../shared/none", "/proc/self/mem", "/dev/mem", "srv/shared/g.img"),
    ("definition", "disks", 0, "format"): wrong("", "vmdk", "nbd", "raw,file=/etc/passwd"),
    ("definition", "disks", 0, "bus"): wrong("", "usb", but=(None,)),
    ("definition", "disks", 0, "cache"): wrong("", "unsafe", but=(None,)),
    ("definition", "disks", 0, "readonly"): wrong(True, but=(None,)),
    ("definition", "nics"): wrong([], [{}] * 9, but=(None, [])),
    ("definition", "nics", 0, "bridge"): wrong("", "lo", "br1", "eth0", "br0,script=/bin/sh"),
    ("definition", "nics", 0, "mac"): wrong("", "01:00:5e:00:00:01", "52:54:00:00:00", "00:00:00:00:00:00", but=(None,)),
    ("definition", "nics", 0, "model"): wrong("", "virtio,romfile=/etc/passwd", but=(None,)),
    ("definition", "serial"): wrong("", "tcp:1.2.3.4:5", but=(None,)),
    ("definition", "kernel"): wrong("", "/srv/none", but=("/etc/passwd",)),
    ("definition", "initrd"): wrong("", "/srv/none", but=("/etc/passwd", None)),
    ("definition", "cmdline"): [7, True, [], {}, "a\nb", "x" * 70000],
    ("definition", "autostart"): wrong(True, but=(None,)),
    ("definition", "extra_args"): ["x", 7, {}, [7], ["a\nb"], ["-incoming"], ["--incoming", "x"], ["-daemonize"], ["-sandbox"], ["x"] * 257,
                                   ["x" * 5000]],
    ("definition", "unknown"): ["x"],
    ("definition", "owner"): [7, [], "a\nb", "x" * 64],
    ("description", "definition"): wrong({}),
    ("description", "accelerator"): wrong("", "kvm"),
    ("description", "firmware"): wrong([], [{}] * 65, [{"name": "../../../../etc/passwd", "size_bytes": 1}], [{"name": "x", "size_bytes": "y"}],
                                       but=([],)),
    ("description", "memory_bytes"): wrong(1, 1),
    ("proofs", 0, "target"): wrong("", "vdb"),
    ("proofs", 0, "path"): [None, 7, [], {}],
    ("proofs", 0, "inode"): wrong(1, 1),
    ("proofs", 0, "probe"): [None, 7, [], {}],
    ("proofs", 0, "token"): wrong("", "0" * 32, "0" * 31),
}


def put(offer, path, value):
    changed = copy.deepcopy(offer)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


@pytest.mark.parametrize("path", LIES, ids=lambda path: ".".join(map(str, path)))
def test_offer(pair, liar, offers, path):
    """In check: an error, or failures, after which it cannot be prepared all the same. And after a good check: another
    prepare than what was checked."""
    good = offers.make()
    assert failure_codes(liar.post("check", good)) == set()
    for value in LIES[path]:
        shown = repr(value)[:60]
        lie = put(good, path, value)
        assert liar.post("prepare", lie)[0] in range(400, 500), f"prepared with {path} = {shown}"
        lie = put(offers.make(), path, value)
        offers.made.append(lie)
        status, answer = liar.post("check", lie)
        if status == 200:
            assert failure_codes((status, answer)), f"{path} = {shown} passes"
            refused(liar.post("prepare", lie))
        else:
            refused((status, answer))
        offers.forget(liar)
        assert failure_codes(liar.post("check", good)) == set()  # the first is forgotten with the others, as they are of one VM
        offers.made.append(good)
    assert pair.qemus("host-b") == {}


def test_missing_keys(pair, liar, offers):
    for message, whole in (("check", offers.make()), ("prepare", offers.make()),
                           ("finish", offers.question(offers.make())), ("refuse", offers.question(offers.make()))):
        for key in whole:
            if key != "tls_key_hex":
                refused(liar.post(message, {k: v for k, v in whole.items() if k != key}))


# ---- questions about a migration ----

def test_questions(pair, liar, third, offers):
    """While one is really prepared here, nothing but its own source's own question moves it."""
    offer = offers.make()
    assert failure_codes(liar.post("check", offer)) == set()
    assert liar.post("prepare", offer)[0] == 200
    ask = offers.question(offer)
    lies = {"migration": wrong("", "0" * 31, offer["migration"][:8], offer["migration"].upper()),
            "vm_uuid": wrong("", ID, offers.guest.uuid.upper(), "x" * 100000),
            "source": wrong("", "host-b", "host-c"),
            "epoch": wrong(1, 1, offer["epoch"] - 1, offer["epoch"] + 1, EPOCH_MAX, EPOCH_MAX + 1),
            "dry_run": wrong(True, but=(None,)),
            "resolved_epoch": wrong(1, 1, offer["epoch"] - 1, offer["epoch"] + 2, EPOCH_MAX, but=(None,))}
    for message in ("finish", "refuse"):
        for key, values in lies.items():
            for value in values:
                refused(liar.post(message, {**ask, key: value}))
        refused(third.post(message, ask), "permission_denied")
        refused(third.post(message, {**ask, "source": "host-c"}), "peer.stale")
    for ident in ("..%2f..%2fhello", "%00", "x", offer["migration"][:8], "0" * 4096, "%0a", "0" * 32):
        refused(liar.say("GET", f"/v1/peer/outcome/{ident}"))
        refused(liar.say("GET", f"/v1/peer/owner/{ident}"))
    refused(third.say("GET", f"/v1/peer/outcome/{offer['migration']}"), "permission_denied")
    assert list(pair.qemus("host-b")) == ["g"] and pair.vms("host-b")["g"]["state"] == "incoming"
    assert liar.say("GET", f"/v1/peer/outcome/{offer['migration']}")[1]["state"] == "prepared"
    # Neither may a second one take its place, from its own source or from another.
    other = Offers(pair, offers.guest, "host-c")
    lie = other.make()
    offers.probes += other.probes
    third.post("check", lie)
    refused(third.post("prepare", lie))
    assert liar.say("GET", f"/v1/peer/outcome/{offer['migration']}")[1]["state"] == "prepared"
    other.forget(third)
    assert liar.post("refuse", ask)[1]["state"] == "refused"


def test_clients_routes_are_closed_to_hosts(liar, offers):
    for method, path in (("GET", "/v1/vms"), ("POST", "/v1/vms"), ("POST", "/v1/vms/g/stop"), ("POST", "/v1/hosts"),
                         ("GET", "/v1/migrations"), ("POST", "/v1/migrations/0000/abort"), ("POST", "/v1/migrations/0000/resolve")):
        refused(liar.say(method, path, {} if method == "POST" else None), "permission_denied")


# ---- who owns the VM ----

def test_not_the_owner(pair, guest, liar, third):
    """host-b has had the VM, and knows that host-a has it now: host-c cannot offer it at any epoch."""
    for to in ("host-b", "host-a"):
        pair.migrate(guest, to)
        pair.settled(guest, to)
    epoch = pair.vms("host-a")["g"]["epoch"]
    assert liar.say("GET", f"/v1/peer/owner/{guest.uuid}")[1] == {"vm_uuid": guest.uuid, "owner": "host-a", "epoch": epoch}
    offers = Offers(pair, guest, "host-c")
    try:
        for lie, code in ((epoch, "peer.stale"), (epoch + 1, "peer.not_owner"), (epoch + 2, "peer.not_owner"), (epoch + 1000, "peer.not_owner"),
                          (epoch + 2 ** 21, "peer.protocol"), (EPOCH_MAX, "peer.protocol")):
            offer = offers.make(epoch=lie)
            assert failure_codes(third.post("check", offer)) == {code}, lie
            refused(third.post("prepare", offer), "peer.protocol")
        offers.forget(third)  # else it would be waited for until they are forgotten by themselves
        offers.clean()
        # What host-b runs itself is nobody else's to offer.
        pair.migrate(guest, "host-b")
        pair.settled(guest, "host-b")
        mine = Offers(pair, guest)
        for lie in (epoch, epoch + 1, epoch + 2, epoch + 9):
            for speaker, source in ((liar, mine), (third, offers)):
                offer = source.make(epoch=lie)
                assert failure_codes(speaker.post("check", offer)) & {"dest.vm_exists", "peer.stale"}, lie
                refused(speaker.post("prepare", offer), "peer.protocol")
                refused(speaker.post("finish", source.question(offer, migration="0" * 32, epoch=EPOCH_MAX + 1)))
        mine.forget(liar)
        mine.clean()
    finally:
        offers.forget(third)
        offers.clean()
    pair.settled(guest, "host-b")


@pytest.mark.slow
def test_round_three_hosts(pair, guest):
    """What host-b knows is two handovers old when the VM comes back by another way: it asks, and believes the answer."""
    for to in ("host-b", "host-c", "host-a", "host-b", "host-a"):
        pair.migrate(guest, to)
        pair.settled(guest, to)


def test_offers_that_come_to_nothing_lock_nobody_out(pair, guest, liar, offers):
    """At epochs far ahead, prepared and refused: the true next epoch is as good as before."""
    known = liar.say("GET", f"/v1/peer/owner/{guest.uuid}")[0] == 200
    for known in ([] if known else [False]) + [True]:
        epoch = pair.vms("host-a")["g"]["epoch"]
        far = pair.api("host-a", "GET", "/v1/vms/g")["epoch"] - 1 + 2 ** 20 if known else EPOCH_MAX
        for restart in (False, True):
            offer = offers.make(epoch=far)
            assert failure_codes(liar.post("check", offer)) == set()
            assert liar.post("prepare", offer)[0] == 200
            if restart:
                pair.restart_ferryd("host-b")
                liar.close()
            assert liar.post("refuse", offers.question(offer))[1]["state"] == "refused"
        offers.made = []
        offers.clean()
        pair.migrate(guest, "host-b")
        pair.settled(guest, "host-b", epoch=epoch + 1)
        pair.migrate(guest, "host-a")
        pair.settled(guest, "host-a")


# ---- what another host has learned of a VM ----

LONG = 86400 * 10 ** 6
LEARNED_MAX = 2 ** 50
# What passes for a figure where it makes no sense is only wrong; these are no figures.
LEARNED_LIES = {
    ("vm_uuid",): wrong("", ID, ID[:-1], "*"),
    ("writes",): wrong([], [], [{}, {}], [{"for_us": 10 ** 6, "bytes": 1}], [{"for_us": 10 ** 6, "bytes": 1}] * 3, [[], []]),
    ("writes", 0): wrong({}, {"for_us": 10 ** 6}, {"bytes": 1}, {"for_us": 10 ** 6, "bytes": 1, "more": 1}),
    ("writes", 0, "for_us"): wrong(1, 1, 49_999, LONG + 1, but=(0, 2 ** 31)),
    ("writes", 1, "for_us"): wrong(1, 1, 49_999, LONG + 1, but=(0, 2 ** 31)),
    ("writes", 0, "bytes"): wrong(1, LEARNED_MAX + 1, but=(0, 2 ** 31, 7)),
    ("writes", 1, "bytes"): wrong(1, LEARNED_MAX + 1, but=(0, 2 ** 31, 7)),
    ("used_bytes",): wrong(1, LEARNED_MAX + 1, but=(0, 2 ** 31, 7)),
    ("link_bytes_per_s",): wrong(1, 1, 999, LEARNED_MAX + 1, but=(0, 2 ** 31)),
    ("scan_bytes_per_s",): wrong(1, LEARNED_MAX + 1, but=(0, 2 ** 31, 7)),
    ("later_bytes_per_s",): wrong(1, LEARNED_MAX + 1, but=(0, 2 ** 31, 7)),
    ("unknown",): [None, 1, "x"],
}


@pytest.fixture
def third_to_a(pair):
    speaker = Speaker(pair, "host-c", "host-a")
    yield speaker
    speaker.close()


def test_what_was_learned(pair, guest, liar, third_to_a):
    """It can only mislead predictions, and that only within what a figure can be; and only of a VM that is the asked host's."""
    good = {"vm_uuid": guest.uuid, "used_bytes": 10 ** 8, "writes": [{"for_us": 10 ** 6, "bytes": 10 ** 7}, {"for_us": 6 * 10 ** 6, "bytes": 2 * 10 ** 7}],
            "link_bytes_per_s": 10 ** 8, "scan_bytes_per_s": 10 ** 9, "later_bytes_per_s": 15 * 10 ** 7}
    refused(liar.post("learned", good), "vm.not_owner")
    for path, lies in LEARNED_LIES.items():
        for lie in lies:
            codes = ("invalid_argument", "vm.not_owner") if path == ("vm_uuid",) else ("invalid_argument", "too_large")
            assert refused(third_to_a.post("learned", put(good, path, lie)), *codes), f"{path} = {lie!r:.60}"
    for key in good:
        refused(third_to_a.post("learned", {k: v for k, v in good.items() if k != key}), "invalid_argument")
    # None of all that was heard: what is believed of the link to host-c is the first that passes.
    worst = {"vm_uuid": guest.uuid, "used_bytes": LEARNED_MAX, "writes": [{"for_us": 500_000, "bytes": LEARNED_MAX}, {"for_us": LONG, "bytes": LEARNED_MAX}],
             "link_bytes_per_s": 1000, "scan_bytes_per_s": 1, "later_bytes_per_s": LEARNED_MAX}
    assert third_to_a.post("learned", worst)[0] == 200
    known = pair.api("host-a", "POST", f"/v1/vms/{guest.name}/plan", {"to": "host-c"})["known"]
    assert (known["link_bytes_per_s"], known["link_from"]) == (1000, "earlier moves"), known
    # The move is what it is.
    moved = pair.migrate(guest, "host-c")
    assert moved["predicted"]["verdict"] == "will-not-converge" and moved["prediction_error"]["start"]["verdict_right"] is False
    pair.settled(guest, "host-c")


# ---- files ----

def test_links_into_the_other_host(pair, liar, offers):
    """Who can write to the shared storage can put a link there. QEMU's user is given a disk that it may not open."""
    target = pair.host("host-b")
    target.run(["sh", "-c", "mkdir -p /srv/local/own && echo secret > /srv/local/own/key && chmod 600 /srv/local/own/key"])
    key = target.outside("/srv/local/own/key")
    link = target.outside("/srv/shared/link.img")
    try:
        os.symlink("/srv/local/own/key", link)
        offer = offers.make()
        for at in (offer["definition"]["disks"][0], offer["proofs"][0]):
            at["path"] = "/srv/shared/link.img"
        offer["proofs"][0]["inode"] = os.stat(key).st_ino
        assert "dest.not_same_file" in failure_codes(liar.post("check", offer))
        refused(liar.post("prepare", offer))
        # The same, but put there after the check.
        os.unlink(link)
        with open(link, "wb") as file:
            file.truncate(1 << 20)
        offer = offers.make()
        for at in (offer["definition"]["disks"][0], offer["proofs"][0]):
            at["path"] = "/srv/shared/link.img"
        offer["proofs"][0]["inode"] = os.stat(link).st_ino
        assert failure_codes(liar.post("check", offer)) == set()
        os.unlink(link)
        os.symlink("/srv/local/own/key", link)
        refused(liar.post("prepare", offer), "dest.not_same_file")
        assert os.stat(key).st_uid == 0
    finally:
        os.unlink(link)


def test_our_own_probes_prove_nothing(pair, liar, offers):
    """The probes of a host that is a source itself stand in its own folders, and their tokens are told to the other side."""
    target = pair.host("host-b")
    target.run(["sh", "-c", "mkdir -p /srv/local/disks && truncate -s 1M /srv/local/disks/other.img"])
    ours = liar.say("GET", "/v1/peer/hello")[1]["journal"]
    for journal in (ours, secrets.token_hex(16)):
        offer = offers.make(journal=journal)
        token = offer["proofs"][0]["token"]
        offers.probe("/srv/local/disks", ours, offer["migration"], token, target)
        for at in (offer["definition"]["disks"][0], offer["proofs"][0]):
            at["path"] = "/srv/local/disks/other.img"
        offer["proofs"][0].update(inode=os.stat(target.outside("/srv/local/disks/other.img")).st_ino,
                                  probe=f"/srv/local/disks/.ferry-probe-{ours}-{offer['migration']}")
        assert failure_codes(liar.post("check", offer)) & {"dest.same_host", "dest.not_same_file"}
        refused(liar.post("prepare", offer))


def test_extra_args_can_be_refused(pair, liar, offers):
    """What is not done unless the configuration says so, as VMs may well need them."""
    path = pair.host("host-b").outside("/etc/ferry/ferry.conf")
    with open(path, encoding="utf-8") as file:
        text = file.read()

    def answer(args):
        offer = offers.make()
        for definition in (offer["definition"], offer["description"]["definition"]):
            definition["extra_args"] = args
        return failure_codes(liar.post("check", offer))
    args = ["-object", "secret,id=s,file=/etc/passwd"]
    assert answer(args) == set()
    offers.forget(liar)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace("[migration]\n", "[migration]\nextra_args = refuse\n"))
        pair.restart_ferryd("host-b")
        liar.close()
        assert answer(args) == {"dest.extra_args"}
        assert answer([]) == set()
        offers.forget(liar)
    finally:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        pair.restart_ferryd("host-b")
        liar.close()


# ---- too much, too slow, no HTTP ----

def test_one_source_cannot_take_all_ports(pair, liar, third, offers):
    other = Offers(pair, offers.guest, "host-c")
    try:
        for n in range(len(PORTS) // 2 + 1):
            offer = offers.make()
            offer["definition"]["uuid"] = offer["description"]["definition"]["uuid"] = f"{ID[:-1]}{n}"
            offer["definition"]["name"] = offer["description"]["definition"]["name"] = f"many{n}"
            answered = liar.post("check", offer)
            if n < len(PORTS) // 2:
                assert failure_codes(answered) == set()
        assert (answered[0], answered[1]["error"]["code"]) == (503, "peer.busy")
        answered = third.post("check", other.make())
        assert failure_codes(answered) <= {"peer.not_owner"} and answered[1]["data"]
    finally:
        offers.forget(liar)
        offers.probes += other.probes
        other.forget(third)


def test_bodies(liar, offers):
    good = json.dumps(offers.make()).encode()
    for body, codes in ((b"", ()), (b"[]", ("invalid_json",)), (b"null", ("invalid_json",)), (b"{", ("invalid_json",)),
                        (b"\xff\xfe{}", ("invalid_json",)), (b'{"a":"\\u0000"}', ("invalid_json",)), (b'{"a":1,"a":2}', ("invalid_json",)),
                        (b'{"a":"\xff"}', ("invalid_json",)), (b'{"a":' + b"9" * 400 + b"}", ("invalid_json", "invalid_argument")),
                        (b"[" * 100000, ("too_large", "invalid_json")), (b'{"a":' * 50000, ("too_large", "invalid_json")),
                        (good[:-1], ("invalid_json",)), (good + good, ("invalid_json",)), (b" " * (1 << 20), ("invalid_json",)),
                        (b" " * ((1 << 20) + 1), ("too_large",))):
        for message in ("check", "prepare", "finish", "refuse"):
            answered = liar.post(message, body)
            if answered[0] is None and len(body) > 1 << 20:
                continue  # closed before all of it was sent
            refused(answered, *codes)
            if codes == ("too_large",):
                liar.close()


def test_http(pair, liar, offers):
    """Whatever comes over the line: an answer of 4xx, or the end of the connection; and the next one is served."""
    head = b"POST /v1/peer/check HTTP/1.1\r\nHost: x\r\n"
    for data in (b"\x00" * 1000, b"\r\n" * 1000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"GET /v1/peer/outcome/%00 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
                 head + b"Content-Length: -1\r\n\r\n", head + b"Content-Length: 99999999999999999999\r\n\r\n",
                 head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                 head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", head + b"x: " + b"y" * 100000 + b"\r\n\r\n",
                 b"BREW /v1/peer/check HTTP/1.1\r\nHost: x\r\n\r\n", b"GET //v1//peer//hello HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"GET /v1/peer/../vms HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v1/peer/hello%2f..%2fvms HTTP/1.1\r\nHost: x\r\n\r\n"):
        status, _ = liar.raw(data, 1)  # some could still become a request
        assert status is None or 400 <= status < 500 or status in (501, 505), (data[:60], status)
        liar.close()
    # A body that does not end is not collected for ever.
    liar.connect()
    with pytest.raises(OSError):
        liar.stream.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            liar.stream.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    liar.close()
    assert liar.say("GET", "/v1/peer/hello")[0] == 200


# ---- a destination that lies ----

class LyingDestination:
    """In the place of host-b's ferryd: speaks its protocol with its certificate, and answers what it is told to. Its data
    port takes a guest's memory, throws it away and acknowledges it."""

    def __init__(self, pair):
        self.pair, self.host = pair, pair.host("host-b")
        self.journal = secrets.token_hex(16)
        self.token = secrets.token_hex(16)
        self.answers = {}
        self.asked = []
        self.heard = threading.Condition()
        self.ends = []
        self.sink_connections = 0
        pair.lab.stop_ferryd("host-b")
        pki = self.host.outside("/etc/ferry/pki")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(f"{pki}/host.crt", f"{pki}/host.key")
        self.wake_read, self.wake_write = os.pipe()
        with network_of(self.host):
            self.listener, self.sink = (self._listen(port) for port in (CONTROL, PORTS[0]))
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _listen(self, port):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host.address, port))
        listener.listen(16)
        return listener

    def close(self):
        os.write(self.wake_write, b"x")
        self.thread.join()
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.sink.close()
        self.pair.start_ferryd("host-b")

    def _accept(self):
        while True:
            ready, _, _ = select.select([self.listener, self.sink, self.wake_read], [], [])
            if self.wake_read in ready:
                return
            for listener in ready:
                end, _ = listener.accept()
                self.ends.append(end)
                threading.Thread(target=self._serve if listener is self.listener else self._swallow, args=(end,), daemon=True).start()

    def _swallow(self, end):
        with contextlib.suppress(OSError):
            self.sink_connections += 1
            if self.sink_connections % 2:  # the first is the source's probe, the second its QEMU
                end.sendall(self.token.encode())
                end.close()
                return
            end.sendall(bytes.fromhex("0001000400000000"))
            while end.recv(1 << 20):
                pass

    def _serve(self, end):
        with contextlib.suppress(OSError, http.client.HTTPException):
            stream = self.context.wrap_socket(end, server_side=True)
            self.ends.append(stream)
            reader = stream.makefile("rb")
            while line := reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                headers = http.client.parse_headers(reader)
                body = reader.read(int(headers.get("Content-Length") or 0))
                message = path.split("/")[3]
                with self.heard:
                    self.asked.append(message)
                    self.heard.notify_all()
                answer = self.answers.get(message, self.good(message))
                if callable(answer):
                    with stream:
                        answer(stream, json.loads(body) if body else {})
                    return
                status, answer = answer if isinstance(answer, tuple) else (200, answer)
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                stream.sendall(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)

    def good(self, message):
        return {"check": {"protocol": 1, "host": "host-b", "journal": self.journal, "failures": [],
                          "data": {"address": self.host.address, "port": PORTS[0], "token": self.token, "trusted": True}},
                "prepare": {"journal": self.journal},
                "finish": {"state": "refused", "journal": self.journal, "message": "no", "took_us": 0},
                "refuse": {"state": "refused", "journal": self.journal, "took_us": 0}}.get(message, {})

    def changed(self, message, path, value):
        return put(self.good(message), path, value)

    def wait_asked(self, message, times):
        deadline = time.monotonic() + 60
        with self.heard:
            while self.asked.count(message) < times:
                assert self.heard.wait(deadline - time.monotonic()), self.asked


@pytest.fixture(scope="module")
def liar_there(pair):
    there = LyingDestination(pair)
    yield there
    there.close()


@pytest.fixture
def there(pair, liar_there, the_guest):
    liar_there.answers, liar_there.asked, liar_there.sink_connections = {}, [], 0
    yield liar_there
    liar_there.answers = {}


def stays(pair, guest, ident, *codes, status=("failed", "rolled-back")):
    ended = pair.ended("host-a", ident)
    assert ended["status"] in status and ended["owner"] == "host-a", ended
    assert ended["reason"]["code"] in codes, ended
    assert len(json.dumps(ended, ensure_ascii=False)) < 20000
    here = pair.vms("host-a")["g"]
    assert (here["state"], here["owner"]) == ("running", "host-a")
    pair.another_beats(guest, 5)
    return ended


CHECK_ANSWERS = {
    ("protocol",): wrong(1, 2),
    ("host",): wrong("", "host-a", "host-c"),
    ("journal",): wrong("", "0" * 31),
    ("failures",): wrong([], [7], [{}], [{"code": 1, "message": "x"}], [{"code": "x"}], [{"code": "a", "message": "b"}] * 1000, but=([7],)),
    ("data",): wrong({}),
    ("data", "address"): wrong("", "127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "::1", "::ffff:127.0.0.1", "host-b",
                               "198.18.0.2 ", "198.18.0.2:22", "ff02::1", "unix:/run/x", but=("",)),
    ("data", "port"): wrong(1, 22, 1023, 65536),
    ("data", "token"): wrong("", "SSH-2.0-OpenSSH_9.2p1 Debian-2+d", "0" * 31, "0" * 33, "x" * 1000),
    ("data", "trusted"): wrong(True),
}
QUICK_ANSWERS = [(path, value) for path, values in CHECK_ANSWERS.items() for value in (values[0], values[-1])]
ALL_ANSWERS = [(path, value) for path, values in CHECK_ANSWERS.items() for value in values]


def check_answers(pair, there, guest, answers):
    for path, value in answers:
        there.answers["check"] = there.changed("check", path, value)
        stays(pair, guest, pair.begin(guest, "host-b"), "peer.protocol")
    assert "prepare" not in there.asked


@pytest.mark.slow
def test_check_answers(pair, the_guest, guest_on_a, there):
    check_answers(pair, there, the_guest, QUICK_ANSWERS)


@pytest.mark.slow
def test_all_check_answers(pair, the_guest, guest_on_a, there):
    check_answers(pair, there, the_guest, ALL_ANSWERS)


@pytest.fixture(scope="module")
def guest_on_a(pair, the_guest):
    """Before host-b's ferryd is gone."""
    the_guest.host = pair.settle(the_guest)
    if the_guest.host != "host-a":
        pair.migrate(the_guest, "host-a")
        pair.settled(the_guest, "host-a")


def test_what_it_says_against_the_move_is_cut_short(pair, the_guest, guest_on_a, there):
    there.answers["check"] = {**there.good("check"), "failures": [{"code": "dest." + "x" * 9999, "message": "é" * 9999, "side": "source"}]}
    ended = stays(pair, the_guest, pair.begin(the_guest, "host-b"), "peer.refused", status=("failed",))
    assert [failure["side"] for failure in ended["failures"]] == ["destination"]


def garbage(stream, _):
    stream.sendall(b"SSH-2.0-x\r\n\r\n")


def endless_body(stream, _):
    stream.sendall(b"HTTP/1.1 200 X\r\n\r\n")
    for _ in range(10000):
        stream.sendall(b" " * 65536)


def endless_head(stream, _):
    stream.sendall(b"HTTP/1.1 200 X\r\n")
    for n in range(100000):
        stream.sendall(b"x%d: %s\r\n" % (n, b"y" * 1000))


def redirect(stream, _):
    stream.sendall(b"HTTP/1.1 302 X\r\nLocation: https://host-c:4710/v1/peer/hello\r\nContent-Length: 0\r\n\r\n")


def cut(stream, _):
    stream.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n{")


BROKEN = {"garbage": garbage, "endless_body": endless_body, "endless_head": endless_head, "redirect": redirect, "cut": cut,
          "array": b"[]", "text": b"hello", "empty": b"", "deep": b"[" * 100000, "large": b'"' + b"x" * (1 << 20) + b'"',
          "own_error": (500, {"error": {"code": "internal", "message": "x\ny" * 5000}}), "no_reason": (500, {}),
          "unknown_error": (418, {"error": {"code": "tea", "message": "pot"}}), "wrong_error": (400, {"error": {"code": 7, "message": []}})}


def memory_kib(pair, host):
    with open(f"/proc/{pair.lab.ferryd_pid(host)}/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmRSS:")).split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("message", ["check", "prepare"])
def test_broken_answers(pair, the_guest, guest_on_a, there, message):
    before = memory_kib(pair, "host-a")
    for what in BROKEN.values():
        there.answers[message] = what
        there.sink_connections = 0
        ended = stays(pair, the_guest, pair.begin(the_guest, "host-b"), "peer.protocol", "peer.unreachable", "peer.refused", "tls", "too_large",
                      "internal", "timeout")
        pair.wait("host-a", ended["id"], lambda m: not m["cleanup_pending"])
    assert memory_kib(pair, "host-a") < before + 16384


def test_prepares_with_another_journal(pair, the_guest, guest_on_a, there):
    for answer in ({"journal": "0" * 32}, {"journal": 7}, {}, {"journal": ""}):
        there.answers["prepare"] = answer
        there.sink_connections = 0
        stays(pair, the_guest, pair.begin(the_guest, "host-b"), "peer.protocol")
        assert there.asked[-1] == "refuse" and "finish" not in there.asked


def test_slow_answer(pair, the_guest, guest_on_a, there):
    """A byte at a time: the user's abort is not kept waiting."""
    def slowly(stream, _):
        stream.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n")
        while not select.select([stream], [], [], 0.05)[0]:
            stream.sendall(b" ")
    there.answers["check"] = slowly
    ident = pair.begin(the_guest, "host-b")
    there.wait_asked("check", 1)
    pair.api("host-a", "POST", f"/v1/migrations/{ident}/abort")
    stays(pair, the_guest, ident, "cancelled", status=("cancelled",))


FINISH_LIES = {"unknown_state": {"state": "gone"}, "prepared": {"state": "prepared"}, "taken": {"state": "taken"}, "holds": {"state": "holds"},
               "state_type": {"state": 7}, "journal_type": {"journal": []}, "message_type": {"message": {}},
               "running_by_another_journal": {"state": "running", "journal": "0" * 32},
               "refused_by_another_journal": {"state": "refused", "journal": "0" * 32},
               "none_by_another_journal": {"state": "none", "journal": "0" * 32},
               "took_us": {"took_us": "x"}, "negative": {"took_us": -1}}


@pytest.mark.parametrize("lies", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_finish_answers(pair, the_guest, guest_on_a, there, lies):
    """All has been sent, to somebody who threw it away: as long as the answer proves nothing, the guest is paused, and neither
    let go on nor given up."""
    every = [*({**there.good("finish"), **lie} for lie in FINISH_LIES.values()), *(BROKEN.values() if lies == "all" else [])]
    steps, number = iter(every), len(every)

    class Answers(dict):
        def get(self, message, fallback):
            return next(steps, fallback) if message == "finish" else fallback
    there.answers = Answers()
    pair.kill_ferryd("host-a")  # its patience between two questions begins anew
    pair.start_ferryd("host-a")
    ident = pair.begin(the_guest, "host-b", max_downtime_ms=60000)
    pair.wait("host-a", ident, "in-doubt")
    before = the_guest.report()["last_seq"]
    there.wait_asked("finish", 4)
    assert pair.vms("host-a")["g"]["state"] == "paused" and the_guest.report()["last_seq"] == before
    # A restart asks again at once; so all the lies are heard in a few seconds.
    while there.asked.count("finish") < number:
        seen = there.asked.count("finish")
        pair.kill_ferryd("host-a")
        pair.start_ferryd("host-a")
        there.wait_asked("finish", min(seen + 4, number))
        doubt = pair.migration("host-a", ident)
        assert doubt["status"] in ("in-doubt", "completing") or there.asked.count("finish") > number, doubt
    ended = pair.ended("host-a", ident)
    assert (ended["status"], ended["owner"], ended["reason"]["code"]) == ("rolled-back", "host-a", "peer.refused"), ended
    the_guest.passes(1)
    pair.healthy(the_guest)


def test_afterwards(pair, the_guest, guest_on_a, liar_there):
    """Both hosts are as good as new."""
    liar_there.close()
    liar_there.close = lambda: None
    pair.migrate(the_guest, "host-b")
    pair.settled(the_guest, "host-b")
    pair.migrate(the_guest, "host-a")
    pair.settled(the_guest, "host-a")
