# SPDX-License-Identifier: Apache-2.0
"""Measures a link: round trip by ICMP echo, rate by a plain TCP copy. Runs inside a host, as a program of its own.

    probe.py ping ADDRESS COUNT INTERVAL_MS      prints a JSON list of round trips in ms, null for a lost one
    probe.py sink ADDRESS                        prints the port; after one connection, JSON {bytes, seconds}
    probe.py source ADDRESS PORT SECONDS
"""

import json
import os
import select
import socket
import struct
import sys
import time


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def ping(address, count, interval_ms, patience=3.0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    mine = os.getpid() & 0xffff
    trips = []
    for sequence in range(count):
        head = struct.pack("!BBHHH", 8, 0, 0, mine, sequence)
        head = struct.pack("!BBHHH", 8, 0, checksum(head), mine, sequence)
        sent = time.monotonic()
        trip = None
        try:
            sock.sendto(head, (address, 0))
        except OSError:
            pass
        while trip is None:
            left = sent + patience - time.monotonic()
            if left <= 0 or not select.select([sock], [], [], left)[0]:
                break
            answer = sock.recv(2048)
            answer = answer[(answer[0] & 15) * 4:]
            if answer[0] == 0 and struct.unpack("!HH", answer[4:8]) == (mine, sequence):
                trip = (time.monotonic() - sent) * 1000
        trips.append(trip)
        if sequence + 1 < count:
            time.sleep(interval_ms / 1000)
    return trips


def sink(address):
    listener = socket.create_server((address, 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    buffer = bytearray(1 << 20)
    total = begin = 0
    while got := connection.recv_into(buffer):
        begin = begin or time.monotonic()
        total += got
    print(json.dumps({"bytes": total, "seconds": time.monotonic() - begin}), flush=True)


def source(address, port, seconds):
    connection = socket.create_connection((address, port))
    block = memoryview(bytes(1 << 20))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(block)
    connection.close()


if __name__ == "__main__":
    verb, arguments = sys.argv[1], sys.argv[2:]
    if verb == "ping":
        print(json.dumps(ping(arguments[0], int(arguments[1]), float(arguments[2]))))
    elif verb == "sink":
        sink(arguments[0])
    elif verb == "source":
        source(arguments[0], int(arguments[1]), float(arguments[2]))
