# SPDX-License-Identifier: Apache-2.0
"""What no mover of memory can beat here, computed from the paused guest's memory and the link.

bytes: each page costs what it must at least: 9 for one of zeros, 24 for one that was there before or that stands in the
disk's image, and of the rest what zstd at level 1 makes of it in blocks of 256 KiB.
wall:  these bytes over a plain TCP connection's rate on this link, and the move of an empty guest: starting a QEMU,
moving 64 MiB of nothing by a handful of QMP commands, and ending the other.

The scan reads QEMU's memory through /proc, and shares no code with Ferry.
"""

import ctypes
import hashlib
import json
import os
import statistics
import subprocess
import time

from .machine import BenchError

PAGE = 4096
ZERO = bytes(PAGE)
BLOCK = 256 << 10
COST_ZERO, COST_KNOWN = 9, 24
READ = 4 << 20


class _Zstd:
    def __init__(self):
        library = ctypes.CDLL("libzstd.so.1")
        library.ZSTD_createCCtx.restype = ctypes.c_void_p
        library.ZSTD_compressBound.restype = library.ZSTD_compressCCtx.restype = ctypes.c_size_t
        library.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
        library.ZSTD_compressCCtx.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p,
                                              ctypes.c_size_t, ctypes.c_int]
        library.ZSTD_isError.argtypes = [ctypes.c_size_t]
        self.library, self.context = library, library.ZSTD_createCCtx()
        self.room = library.ZSTD_compressBound(BLOCK)
        self.buffer = ctypes.create_string_buffer(self.room)

    def size(self, block):
        size = self.library.ZSTD_compressCCtx(self.context, self.buffer, self.room, block, len(block), 1)
        if self.library.ZSTD_isError(size):
            raise BenchError("zstd cannot compress a block")
        return min(size, len(block))


def _digest(page):
    return hashlib.blake2b(page, digest_size=16).digest()


def image_pages(path):
    """Digests of a disk image's pages, holes left out."""
    found = set()
    with open(path, "rb", buffering=0) as file:
        descriptor, size, at = file.fileno(), os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(descriptor, at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(descriptor, min(READ, end - at), at)
                if not data:
                    break
                at += len(data)
                for i in range(0, len(data) - PAGE + 1, PAGE):
                    page = data[i:i + PAGE]
                    if page != ZERO:
                        found.add(_digest(page))
    return found


def memory_range(pid, size):
    """Where a QEMU has its guest's memory. The mapping stands alone: QEMU puts a guard page behind it."""
    candidates = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as file:
        for line in file:
            span, rights, *_ = line.split()
            start, end = (int(word, 16) for word in span.split("-"))
            if rights.startswith("rw") and end - start >= size:
                candidates.append((end - start, start))
    if not candidates:
        raise BenchError(f"process {pid} has no mapping of {size >> 20} MiB")
    return min(candidates)[1]


def scan(pid, size, images):
    """Classes of pages and the least bytes, of a QEMU whose guest is paused."""
    known = set()
    for image in images:
        known |= image_pages(image)
    zstd = _Zstd()
    seen = set()
    pages = {"zero": 0, "image": 0, "duplicate": 0, "other": 0}
    coded, rest = 0, bytearray()
    start = memory_range(pid, size)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for at in range(start, start + size, READ):
            data = os.pread(file.fileno(), min(READ, start + size - at), at)
            if len(data) % PAGE:
                raise BenchError(f"memory of process {pid} cannot be read")
            for i in range(0, len(data), PAGE):
                page = data[i:i + PAGE]
                if page == ZERO:
                    pages["zero"] += 1
                    continue
                digest = _digest(page)
                if digest in known:
                    pages["image"] += 1
                elif digest in seen:
                    pages["duplicate"] += 1
                else:
                    pages["other"] += 1
                    seen.add(digest)
                    rest += page
                    if len(rest) == BLOCK:
                        coded += zstd.size(bytes(rest))
                        rest.clear()
    if rest:
        coded += zstd.size(bytes(rest))
    return {"pages": pages, "coded_bytes": coded,
            "bytes": pages["zero"] * COST_ZERO + (pages["image"] + pages["duplicate"]) * COST_KNOWN + coded}


class _Qemu:
    """A QEMU without a guest's system, with QMP on its standard streams."""

    def __init__(self, host, *more):
        self.process = host.popen([host.lab.qemu.binary, "-nodefaults", "-no-user-config", "-display", "none", "-machine",
                                   "pc,accel=tcg", "-m", "64", "-qmp", "stdio", *more], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.until("QMP")
        self.do("qmp_capabilities")

    def until(self, key, match=lambda message: True):
        for line in self.process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise BenchError(f"QEMU refuses: {message['error'].get('desc')}")
            if key in message and match(message):
                return message
        raise BenchError("QEMU ended while the move of an empty guest was measured")

    def do(self, command, **arguments):
        self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        return self.until("return")

    def event(self, name, **data):
        self.until("event", lambda message: message["event"] == name
                   and all(message.get("data", {}).get(key) == value for key, value in data.items()))

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def empty_move_ms(source, destination, times=3):
    """Median time of starting a QEMU, moving an empty running guest into it, and ending the other."""
    capabilities = [{"capability": "events", "state": True}]
    taken = []
    for _ in range(times):
        old = _Qemu(source)
        try:
            old.do("migrate-set-capabilities", capabilities=capabilities)
            old.do("migrate-set-parameters", **{"max-bandwidth": 0})
            start = time.monotonic()
            uri = f"tcp:{destination.address}:49300"
            new = _Qemu(destination, "-incoming", uri)
            try:
                old.do("migrate", uri=uri)
                old.event("MIGRATION", status="completed")
                new.event("RESUME")
                old.process.kill()
                old.process.wait()
                taken.append((time.monotonic() - start) * 1000)
            finally:
                new.end()
        finally:
            old.end()
    return statistics.median(taken)


def scan_guest(driver):
    """scan() of the driver's guest, which is paused."""
    # The hosts see the disks in /srv/shared, this program sees the same directory elsewhere.
    images = [driver.host.outside(disk["path"]) for disk in driver.definition["disks"]]
    return scan(driver.qemu_pid(), driver.definition["memory_mib"] << 20, images)


def link(lab):
    """The link's rate for a plain TCP copy, and the move of an empty guest over it; nothing else should run."""
    source, destination = lab.hosts[0], lab.hosts[1]
    return {"rate_bytes_per_s": lab.tcp_rate(source, destination), "empty_ms": empty_move_ms(source, destination)}
