# SPDX-License-Identifier: Apache-2.0
"""Networks of a lab: who is connected to whom, how fast, how far, and cut or not.

    host-a eth0 ─────── m1 ┐                          ┌ m2 ─────── eth0 host-b      198.18.0.N   control and data
                           ├ sw: bridge "migration",  ┤
                           │ or the forwarder         │                             (--rate on both ends of each veth)
    host-a br0 ─ eth1 ─ g1 ┐                          ┌ g2 ─ eth1 ─ br0 host-b      198.18.1.N   the guests'
                           ├ sw: bridge "guests"      ┤
    client eth0 ─────── gc ┘                                                        198.18.1.250

The switch's namespace has no addresses, no routes and no way out. Rates are a token bucket on either end, so they hold
in both directions, and a host that many send to is a bottleneck like a real one. A delay replaces the bridge by the
forwarder (forwarder.c): the kernel's own netem is missing on some of the machines that this has to run on, and one way
for all is easier to trust than two.
"""

import os
import re
import select
import socket
import struct
import subprocess
import time

from .errors import LabError
from .processes import Process

BRIDGE = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
FRAME_MAX = 65536 + 64
PORT_COUNTERS = ("frames_in", "bytes_in", "frames_out", "bytes_out", "dropped_full", "dropped_kernel", "dropped_send",
                 "late_max_ns")


def parse_rate(text):
    """"1gbit", "100mbit", … → bit/s."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg])bit(?:/s)?", text.strip().lower())
    bits = int(float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]) if match else 0
    if not 1e5 <= bits <= 1e12:
        raise LabError(f"not a rate: {text!r} (such as 100mbit or 1gbit)")
    return bits


def parse_delay(text):
    """"20ms", "500us", "1s" → microseconds of round trip."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip().lower())
    micros = round(float(match[1]) * {"us": 1, "ms": 1e3, "s": 1e6}[match[2]]) if match else -1
    if not 0 <= micros <= 10_000_000:
        raise LabError(f"not a delay: {text!r} (such as 20ms; the round trip)")
    return micros


def token_bucket(rate, delay_us):
    """Arguments of tc. The bucket holds a millisecond, and at least one super-frame, which would otherwise be cut into
    dozens. The queue is one bandwidth-delay product, so that waiting in it does not falsify a measured pause; but
    never under 10 ms or eight super-frames, with which TCP fills the link without loss."""
    burst = max(FRAME_MAX, rate // 8 // 1000)
    limit = max(8 * FRAME_MAX, rate // 8 * max(delay_us, 10_000) // 1_000_000)
    return f"tbf rate {rate}bit burst {burst} limit {limit}"


def connect(lab):
    """Makes both networks; the hosts' holders are up, nothing else is."""
    rate, delay_us = lab.rate_bits, lab.delay_us
    switch = [f"link add guests {BRIDGE}", "link set guests up"]
    if not delay_us:
        switch += [f"link add migration {BRIDGE}", "link set migration up"]
    for host in lab.hosts:
        n, pid = host.number, host.holder.pid
        switch += [f"link add m{n} type veth peer name eth0 address 02:fe:00:00:00:{n:02x} netns {pid}",
                   f"link add g{n} type veth peer name eth1 address 02:fe:00:00:01:{n:02x} netns {pid}",
                   f"link set g{n} master guests up"]
        switch.append(f"link set m{n} up" if delay_us else f"link set m{n} master migration up")
    switch += [f"link add gc type veth peer name eth0 address 02:fe:00:00:03:fa netns {lab.client.holder.pid}", "link set gc master guests up"]
    lab.switch.net("ip", switch)

    for host in lab.hosts:
        configure(lab, host)
    lab.client.net("ip", [f"address add {lab.client.guests_address}/24 dev eth0", "link set eth0 up"])

    if rate:
        bucket = token_bucket(rate, delay_us)
        lab.switch.net("tc", [f"qdisc add dev m{host.number} root {bucket}" for host in lab.hosts])
    if delay_us:
        start_forwarder(lab)


def configure(lab, host):
    """What a host does to its own interfaces when it boots."""
    # br0 keeps this address when guests' ports come and go; left alone it takes the lowest of its ports'.
    host.net("ip", [f"link add br0 address 02:fe:00:00:02:{host.number:02x} {BRIDGE}",
                    "link set eth1 master br0 up",
                    f"address add {host.guests_address}/24 dev br0", "link set br0 up",
                    f"address add {host.address}/24 dev eth0", "link set eth0 up"])
    if lab.rate_bits:
        host.net("tc", [f"qdisc add dev eth0 root {token_bucket(lab.rate_bits, lab.delay_us)}"])


def silence(host):
    """Nothing leaves the host any more, and nobody in it is told."""
    host.net("tc", [line for i in (0, 1) for line in (
        f"qdisc add dev eth{i} clsact", f"filter add dev eth{i} egress protocol all prio 1 {_classifier(_DROP_ALL)}")])


def unplug(lab, host):
    """Takes both interfaces out of a host that will not come back as it is, into the switch's namespace, where they are
    down: what the host's kernel still has to say about connections of dead processes finds no way out."""
    pid = lab.switch.holder.pid
    host.net("ip", [f"link set eth{i} netns {pid} name off{host.number}-{i}" for i in (0, 1)])


def plug(lab, host):
    """Gives them back to a host that has been furnished anew."""
    pid = host.holder.pid
    lab.switch.net("ip", [f"link set off{host.number}-{i} netns {pid} name eth{i}" for i in (0, 1)])
    configure(lab, host)


def start_forwarder(lab):
    program = os.path.join(lab.build, "lab", "forwarder")
    if not os.access(program, os.X_OK):
        raise LabError(f"{program} is missing: build it first (ninja -C {lab.build}); a delay needs it")
    # What the longest stretch of full rate puts on the wire in one delay, twice; without a rate, the default.
    ring_mib = max(8, 2 * lab.rate_bits // 8 * lab.delay_us // 1_000_000 >> 20) if lab.rate_bits else 64
    command = [program, f"--delay-us={lab.delay_us // 2}", f"--ring-mib={ring_mib}",
               f"--stats={os.path.join(lab.path, 'forwarder.stats')}", *(f"m{host.number}" for host in lab.hosts)]
    with open(os.path.join(lab.path, "forwarder.log"), "wb") as log:
        child = lab.switch.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                                 start_new_session=True)
    ready, _, _ = select.select([child.stdout], [], [], 10)
    line = child.stdout.readline() if ready else b""
    child.stdout.close()
    if line != b"ready\n":
        with open(os.path.join(lab.path, "forwarder.log"), encoding="utf-8", errors="replace") as log:
            raise LabError(f"the forwarder did not start: {log.read().strip()}")
    Process.of(child.pid).save(os.path.join(lab.path, "forwarder.pid"))
    child.returncode = 0


def forwarder_stats(lab):
    """Counters by host name; "in" is what the host sent. Empty without a delay."""
    try:
        with open(os.path.join(lab.path, "forwarder.stats"), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return {}
    rows = struct.iter_unpack(f"={len(PORT_COUNTERS)}Q", data)
    return {host.name: dict(zip(PORT_COUNTERS, row)) for host, row in zip(lab.hosts, rows)}


def link_stats(host, interface="eth0"):
    """Byte and packet counters, as the interface sees them: super-frames count once, with one header each."""
    with open(f"/proc/{host.holder.pid}/net/dev", encoding="ascii") as file:
        for line in file:
            name, colon, rest = line.partition(":")
            if colon and name.strip() == interface:
                fields = [int(word) for word in rest.split()]
                return {"rx_bytes": fields[0], "rx_packets": fields[1], "rx_dropped": fields[3],
                        "tx_bytes": fields[8], "tx_packets": fields[9], "tx_dropped": fields[11]}
    raise LabError(f"{host.name} has no interface {interface}")


# ---- Cuts ----

def _switch_end(host):
    if host.name == "sw":
        raise LabError("the switch has no link to itself")
    return "gc" if host.number is None else f"m{host.number}"


def cut(lab, host):
    """Pulls the plug at the switch's end: frames vanish, connections stay, and the host keeps address and route. It does
    notice that the carrier is gone; see block() for a loss that nobody notices. The client has a plug too."""
    lab.switch.net("ip", [f"link set {_switch_end(host)} down"])


def heal(lab, host):
    """Returns when the host can send again; the kernel may take its time to notice a carrier."""
    lab.switch.net("ip", [f"link set {_switch_end(host)} up"])
    deadline = time.monotonic() + 5
    while True:
        with open(host.outside("/sys/class/net/eth0/operstate"), encoding="ascii") as file:
            if file.read().strip() == "up":
                return
        if time.monotonic() > deadline:
            raise LabError(f"eth0 of {host.name} stays down")
        time.sleep(0.005)  # sysfs has no event for this


# Classic BPF, as (code, jump if true, jump if false, operand); jumps are counted from the next instruction. The frame
# begins with its Ethernet header. With direct action, what is returned is what becomes of it.
_LOAD_HALF, _LOAD_WORD, _LOAD_BYTE, _LOAD_HALF_X, _LENGTH_TO_X = 0x28, 0x20, 0x30, 0x48, 0xb1
_IF_EQUAL, _RETURN = 0x15, 0x06
_PASS, _DROP = 0, 2  # TC_ACT_OK, TC_ACT_SHOT
_DROP_ALL = [(_RETURN, 0, 0, _DROP)]
CONTROL_PORT = 4710
BLOCKABLE = ("all", "control", "data")


def _classifier(program):
    words = ",".join(f"{code} {true} {false} {operand}" for code, true, false, operand in program)
    return f"handle 1 bpf da bytecode \"{len(program)},{words}\""


def _block_program(rules):
    """rules: [(source's address, what)]. IPv4 only: address resolution goes on, so a lost packet is nothing that the
    sender's kernel could report to anybody."""
    program = [(_LOAD_HALF, 0, 0, 12), (_IF_EQUAL, 1, 0, 0x0800), (_RETURN, 0, 0, _PASS)]
    for address, what in rules:
        number = int.from_bytes(bytes(map(int, address.split("."))), "big")
        if what == "all":
            test = [(_RETURN, 0, 0, _DROP)]
        else:
            on_control, other = (_DROP, _PASS) if what == "control" else (_PASS, _DROP)
            test = [(_LOAD_BYTE, 0, 0, 23), (_IF_EQUAL, 1, 0, socket.IPPROTO_TCP), (_RETURN, 0, 0, other),
                    (_LENGTH_TO_X, 0, 0, 14),
                    (_LOAD_HALF_X, 0, 0, 14), (_IF_EQUAL, 2, 0, CONTROL_PORT),  # from
                    (_LOAD_HALF_X, 0, 0, 16), (_IF_EQUAL, 0, 1, CONTROL_PORT),  # to
                    (_RETURN, 0, 0, on_control), (_RETURN, 0, 0, other)]
        program += [(_LOAD_WORD, 0, 0, 26), (_IF_EQUAL, 0, len(test), number), *test]
    return [*program, (_RETURN, 0, 0, _PASS)]


def apply_blocks(lab, before, after):
    """Makes the blocks, (source, destination, what) by host names, those of after, in one go."""
    lines = []
    for host in lab.hosts:
        old, new = ([block for block in blocks if block[1] == host.name] for blocks in (before, after))
        if old == new:
            continue
        where = f"dev m{host.number}"
        if not old:
            lines.append(f"qdisc add {where} clsact")
        if new:
            program = _block_program([(lab.host(source).address, what) for source, _, what in new])
            lines.append(f"filter replace {where} egress protocol all prio 1 {_classifier(program)}")
        else:
            lines.append(f"qdisc del {where} clsact")
    if lines:
        lab.switch.net("tc", lines)
