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
    switch += [f"link add gc type veth peer name eth0 netns {lab.client.holder.pid}", "link set gc master guests up"]
    lab.switch.net("ip", switch)

    for host in lab.hosts:
        # br0 keeps this address when guests' ports come and go; left alone it takes the lowest of its ports'.
        host.net("ip", [f"link add br0 address 02:fe:00:00:02:{host.number:02x} {BRIDGE}",
                        "link set eth1 master br0 up",
                        f"address add {host.guests_address}/24 dev br0", "link set br0 up",
                        f"address add {host.address}/24 dev eth0", "link set eth0 up"])
    lab.client.net("ip", [f"address add {lab.client.guests_address}/24 dev eth0", "link set eth0 up"])

    if rate:
        bucket = token_bucket(rate, delay_us)
        lab.switch.net("tc", [f"qdisc add dev m{host.number} root {bucket}" for host in lab.hosts])
        for host in lab.hosts:
            host.net("tc", [f"qdisc add dev eth0 root {bucket}"])
    if delay_us:
        start_forwarder(lab)


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


def cut(lab, host):
    """Pulls the plug at the switch's end: frames vanish, connections stay, and the host keeps address and route."""
    lab.switch.net("ip", [f"link set m{host.number} down"])


def heal(lab, host):
    """Returns when the host can send again; the kernel may take its time to notice a carrier."""
    lab.switch.net("ip", [f"link set m{host.number} up"])
    deadline = time.monotonic() + 5
    while True:
        with open(host.outside("/sys/class/net/eth0/operstate"), encoding="ascii") as file:
            if file.read().strip() == "up":
                return
        if time.monotonic() > deadline:
            raise LabError(f"eth0 of {host.name} stays down")
        time.sleep(0.005)  # sysfs has no event for this
