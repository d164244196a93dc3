# SPDX-License-Identifier: Apache-2.0
"""The lab's guests: real ones, built from Debian's packages with the machine's own apt.

    build_kernel()   Debian's cloud kernel, taken out of its package (nothing is installed on this machine)
    build_tiny()     an initramfs with busybox and the load program (lab/load.c): boots in seconds
    build_debian()   a file system image of Debian with enough files to fill a page cache
    define(...)      writes a VM definition for one guest, and its disk, into the lab's /srv/shared
    main(argv)       `lab/lab guest ...`
    ask(...)         one question to a running heartbeat client (lab/client.c)

What is built stands in $FERRY_BUILD/guest-cache and is built once; a file is complete when it has its name. Each lab
gets hard links, under names with a digest of the content: a rebuild never changes a file below a running guest.
"""

import argparse
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from . import qemu

REPO = Path(__file__).resolve().parent.parent.parent
SUITE = "bookworm"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = ["virtio_pci", "virtio_net", "virtio_blk", "button", "evdev"]  # and whatever these depend on
# The bulk is the point: some 700 MB of programs and libraries, as a page cache would hold them.
DEBIAN_PACKAGES = ["busybox-static", "g++", "gcc", "git", "perl", "python3", "vim-nox"]
DEBIAN_IMAGE_MIB = 1536
TINY_DISK_MIB = 1024

GUEST_NETWORK = ipaddress.ip_network("198.18.1.0/24")
FIRST_GUEST = 10  # 198.18.1.10
CLIENT = ("198.18.1.250", 4799)
QEMU_USER = (61000, 61000)
SHARED_IN_GUEST_HOSTS = "/srv/shared"

MEMORY_MIN_MIB = 80  # with less, Debian's kernel finds no room for itself and the initramfs when it boots
DEFAULT_MEMORY_MIB = {"tiny": 256, "debian": 2048}


class GuestError(Exception):
    """What the user is told, in one line."""


def build_dir():
    return Path(os.environ.get("FERRY_BUILD") or REPO / "build").resolve()


def cache_dir():
    return build_dir() / "guest-cache"


def shared_dir(lab=None):
    """The directory that the hosts of a lab see as /srv/shared."""
    return build_dir() / "lab" / (lab or os.environ.get("FERRY_LAB") or "lab") / "shared"


# ---- helpers ----

@contextlib.contextmanager
def _locked(path):
    """Holds an exclusive lock on a file: whoever comes second finds the work done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch():
    """A directory in the cache (same file system), gone afterwards."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    path = tempfile.mkdtemp(prefix="tmp-", dir=cache_dir())
    try:
        os.chmod(path, 0o755)
        yield Path(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _run(command, **kwargs):
    result = subprocess.run([str(word) for word in command], stdin=kwargs.pop("stdin", subprocess.DEVNULL) if
                            "input" not in kwargs else None, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, **kwargs)
    if result.returncode != 0:
        tail = "\n".join(result.stdout.strip().splitlines()[-8:])
        raise GuestError(f"{command[0]} failed with {result.returncode}:\n{tail}")
    return result.stdout


def _say(message):
    print(f"guest: {message}", file=sys.stderr, flush=True)


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _link(source, directory):
    """Puts a file that is never written again into a directory: a hard link where that can be, else a copy."""
    target = directory / source.name
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            partial = directory / f".{source.name}.{os.getpid()}"
            shutil.copyfile(source, partial)
            os.chmod(partial, 0o644)
            os.rename(partial, target)
    return target


# ---- kernel and initramfs ----

def _fetch_package(package, into):
    """Downloads one package and unpacks it into a directory, without installing it."""
    with tempfile.TemporaryDirectory(prefix="deb-", dir=into.parent) as place:
        # apt's own sandbox user need not be able to write here.
        _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], cwd=place)
        debs = list(Path(place).glob("*.deb"))
        if len(debs) != 1:
            raise GuestError(f"apt-get download {package} left {len(debs)} packages")
        _run(["dpkg", "-x", debs[0], into])


def _kernel_package():
    """The versioned package that the kernel's meta-package stands for."""
    for line in _run(["apt-cache", "depends", KERNEL_PACKAGE]).splitlines():
        match = re.match(r"\s*Depends: (linux-image-\d\S*)", line)
        if match:
            return match.group(1)
    raise GuestError(f"apt knows no kernel behind {KERNEL_PACKAGE}; run apt-get update")


def _pick_modules(root, into):
    """Copies the modules that a guest needs out of an unpacked kernel package; returns their names, in an order in
    which each finds what it depends on. A module names its dependencies itself; what has no file is built in."""
    files = {path.stem.replace("-", "_"): path for path in root.glob("**/kernel/**/*.ko")}
    order = []

    def pick(name):
        if name in order or name not in files:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for other in depends.group(1).decode().split(",") if depends else []:
            pick(other.replace("-", "_"))
        shutil.copyfile(files[name], into / f"{name}.ko")
        order.append(name)

    for name in MODULES:
        pick(name)
    return order


def build_kernel():
    """Returns {"vmlinuz": path, "modules": [path, ...] in the order to load them, "release": text}."""
    cache = cache_dir()
    done = cache / "kernel.json"
    with _locked(cache / "kernel.lock"):
        if not done.exists():
            package = _kernel_package()
            release = package.removeprefix("linux-image-")
            _say(f"fetching {package}")
            with _scratch() as scratch:
                _fetch_package(package, scratch / "root")
                modules = cache / f"modules-{release}"
                shutil.rmtree(modules, ignore_errors=True)
                modules.mkdir()
                order = _pick_modules(scratch / "root", modules)
                vmlinuz = scratch / "root" / "boot" / f"vmlinuz-{release}"
                os.chmod(vmlinuz, 0o644)
                os.rename(vmlinuz, cache / vmlinuz.name)
            partial = done.with_suffix(".tmp")
            partial.write_text(json.dumps({"release": release, "order": order}))
            os.rename(partial, done)
        known = json.loads(done.read_text())
    release = known["release"]
    modules = [cache / f"modules-{release}" / f"{name}.ko" for name in known["order"]]
    return {"vmlinuz": cache / f"vmlinuz-{release}", "modules": modules, "release": release}


def _build_busybox():
    target = cache_dir() / "busybox"
    with _locked(cache_dir() / "busybox.lock"):
        if not target.exists():
            with _scratch() as scratch:
                _fetch_package("busybox-static", scratch / "root")
                found = [path for path in (scratch / "root").glob("**/bin/busybox") if path.is_file()]
                if not found:
                    raise GuestError("busybox-static holds no busybox")
                os.chmod(found[0], 0o755)
                os.rename(found[0], target)
    return target


class _Cpio:
    """Writes a newc archive: the same bytes for the same input, and device nodes without the right to make them."""

    def __init__(self):
        self.chunks = []
        self.inode = 0

    def add(self, name, mode, data=b"", rdev=(0, 0)):
        self.inode += 1
        encoded = name.encode() + b"\0"
        fields = [self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0], rdev[1], len(encoded), 0]
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self.chunks += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def finish(self):
        self.inode = -1
        self.add("TRAILER!!!", 0)
        return b"".join(self.chunks)


def load_program():
    path = build_dir() / "lab" / "load"
    if not path.exists():
        raise GuestError(f"{path} is missing: build it first (ninja -C {build_dir()})")
    return path


def build_tiny():
    """Returns the path of the initramfs, which both kinds of guest boot from; named by a digest of its content."""
    kernel = build_kernel()
    busybox = _build_busybox()
    archive = _Cpio()
    for name in ["bin", "dev", "lib", "lib/modules", "mnt", "proc", "sys", "run", "root", "tmp"]:
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, rdev=(5, 1))
    archive.add("init", stat.S_IFREG | 0o755, (REPO / "lab/guest/init").read_bytes())
    archive.add("bin/power-button", stat.S_IFREG | 0o755, (REPO / "lab/guest/power-button").read_bytes())
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add("bin/load", stat.S_IFREG | 0o755, load_program().read_bytes())
    for path in kernel["modules"]:
        archive.add(f"lib/modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
    order = "".join(f"{path.name}\n" for path in kernel["modules"])
    archive.add("lib/modules/order", stat.S_IFREG | 0o644, order.encode())
    data = archive.finish()
    target = cache_dir() / f"initramfs-{_digest(data)}.cpio"
    if not target.exists():
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(data)
        os.chmod(partial, 0o644)
        os.rename(partial, target)
    return target


# ---- the debian image ----

def _debian_sources():
    """The machine's own apt sources, of Debian only, as lines for mmdebstrap."""
    lines = _run(["apt-get", "indextargets", "--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
                  "Created-By: Packages", "Origin: Debian"]).splitlines()
    lines = sorted({line for line in lines if line.split()[2].split("-")[0] == SUITE})
    if not lines:
        raise GuestError(f"apt has no package lists of Debian's {SUITE} here; run apt-get update")
    return "".join(f"{line}\n" for line in lines)


def build_debian():
    """Returns the path of the image that the disks of debian guests are copied from."""
    recipe = (REPO / "lab/guest/debian-init").read_bytes()
    target = cache_dir() / f"debian-{_digest(SUITE, DEBIAN_PACKAGES, DEBIAN_IMAGE_MIB, recipe)}.ext4"
    with _locked(cache_dir() / "debian.lock"):
        if target.exists():
            return target
        _say("building the debian image (about a minute)")
        with _scratch() as scratch:
            root = scratch / "root"
            # In a mount namespace of its own, so that nothing which is mounted for the installation outlives it.
            _run(["unshare", "--mount", "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase",
                  "--aptopt=APT::Sandbox::User \"root\"", f"--include={','.join(DEBIAN_PACKAGES)}", SUITE, root, "-"],
                 input=_debian_sources())
            for leftover in ["etc/resolv.conf", "etc/hostname", "etc/machine-id"]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(root / leftover)
            (root / "sbin/ferry-init").write_bytes(recipe)
            os.chmod(root / "sbin/ferry-init", 0o755)
            image = scratch / "image"
            with open(image, "wb") as file:
                file.truncate(DEBIAN_IMAGE_MIB << 20)
            # mkfs fills the image from the directory itself: no loop device, nothing mounted.
            _run(["/sbin/mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0",
                  "-d", root, image])
            os.chmod(image, 0o644)
            os.rename(image, target)
    return target


# ---- definitions ----

def _migrates_emulated(shared):
    """Whether the QEMU of the lab whose /srv/shared this is migrates emulated guests without losing writes."""
    try:
        own = qemu.of_lab(json.loads((shared.parent / "state.json").read_text()))
    except (OSError, ValueError):
        return False
    return own is not None and own.migrates_emulated


def _definitions(shared):
    for path in sorted(shared.glob("*.json")):
        try:
            definition = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(definition, dict) and "memory_mib" in definition:
            yield path, definition


def _free_address(taken):
    for host in range(FIRST_GUEST, int(CLIENT[0].rpartition(".")[2])):
        address = str(GUEST_NETWORK[host])
        if address not in taken:
            return address
    raise GuestError("no guest address is left in this lab")


def _taken_addresses(shared):
    for _, definition in _definitions(shared):
        match = re.search(r"ferry\.ip=([0-9.]+)", definition.get("cmdline", ""))
        if match:
            yield match.group(1)


def parse_load(text):
    """MIB:MBPS:MODE; MBPS may be "max", or be left out (0: written once, then checked only), and so may MODE (pages, skewed
    or sparse: lab/memory.h). Returns the MiB, and what stands behind them."""
    match = re.fullmatch(r"(\d+)(?::((?:\d+(?:\.\d+)?|max)(?::(?:pages|skewed|sparse))?))?", text)
    if not match:
        raise GuestError(f"load {text!r} is not MIB:MBPS:MODE")
    return int(match.group(1)), match.group(2) or "0"


def parse_fill(text):
    match = re.fullmatch(r"(random|text)(?::(\d+))?", text)
    if not match:
        raise GuestError(f"fill {text!r} is not random or text, with :MIB behind it or not")
    return match.group(1), int(match.group(2)) if match.group(2) else None


def parse_disk_load(text):
    """MIB:MBPS; MBPS may be left out (0: written once, then ticks only)."""
    match = re.fullmatch(r"(\d+)(?::(\d+(?:\.\d+)?))?", text)
    if not match or not 1 <= int(match.group(1)) <= 1 << 20:
        raise GuestError(f"disk load {text!r} is not MIB:MBPS")
    return int(match.group(1)), match.group(2) or "0"


def _disk_load_arguments(path):
    """QEMU's arguments for the disk of a disk load. Not as a disk of the definition: those are locked, and the locks would
    keep the second writer out that this disk is there to find."""
    cache = {"direct": True, "no-flush": False}
    file = {"driver": "file", "node-name": "load-file", "filename": path, "locking": "off", "aio": "threads", "cache": cache}
    raw = {"driver": "raw", "node-name": "load", "file": "load-file", "cache": cache}
    return ["-blockdev", json.dumps(file), "-blockdev", json.dumps(raw),
            "-device", "virtio-blk-pci,id=load-device,drive=load,bus=pci.0,addr=0x1e"]


def _make_disk(kind, base, target, mib=TINY_DISK_MIB):
    """A disk that QEMU's user owns. Complete when it has its name."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if kind == "load":
            with open(partial, "wb") as file:
                file.truncate(mib << 20)
        elif kind == "debian":
            _run(["cp", "--reflink=auto", "--sparse=always", base, partial])
        else:
            with open(partial, "wb") as file:
                file.truncate(TINY_DISK_MIB << 20)
            _run(["/sbin/mkfs.ext4", "-q", "-F", "-m", "0", partial])
        os.chmod(partial, 0o600)
        if os.geteuid() == 0:
            os.chown(partial, *QEMU_USER)
        os.rename(partial, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def define(kind="tiny", name=None, memory=None, load=None, fill=None, ip=None, vcpus=1, disk=False, warm=None,
           options=None, lab=None, shared=None, view=SHARED_IN_GUEST_HOSTS, disk_load=None):
    """Builds what is missing, writes NAME.json (and NAME.img) and returns the path of NAME.json as the hosts see it.

    load    "MIB:MBPS:MODE" or None   fill    "random", "text", either with ":MIB", or None
    disk    tiny only: an empty file system on vda, mounted on /mnt (a debian guest always has its disk)
    disk_load "MIB:MBPS": a disk of its own, NAME.load, written and watched for a second writer (lab/disk.h, disk.py); it
            is not locked, so that QEMU does not keep a second one from it
    warm    debian only: read all files into the page cache before the first heartbeat; default yes
    options more words for the load program, {"spin": 1, "break": "flip:3", ...}
    shared  the directory to write into, default that of the lab; view: where the hosts see it
    """
    if kind not in DEFAULT_MEMORY_MIB:
        raise GuestError(f"no guest of kind {kind!r}: tiny or debian")
    shared = Path(shared) if shared else shared_dir(lab)
    if not shared.is_dir():
        raise GuestError(f"{shared} does not exist: is the lab up?")
    memory = memory or DEFAULT_MEMORY_MIB[kind]
    if memory < MEMORY_MIN_MIB:
        raise GuestError(f"a guest needs {MEMORY_MIN_MIB} MiB to boot, not {memory}")
    load_mib, rate = parse_load(load) if load else (0, "0")
    disk_load_mib, disk_load_rate = parse_disk_load(disk_load) if disk_load else (0, "0")
    fill_kind, fill_mib = parse_fill(fill) if fill else (None, 0)
    if fill_kind and fill_mib is None:
        # What is left, less what the kernel and the programs need.
        fill_mib = max(memory - load_mib - 96, 0)
    if load_mib + fill_mib > memory - 64:
        raise GuestError(f"{load_mib} MiB of load and {fill_mib} MiB of fill do not fit in {memory} MiB")
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise GuestError(f"{name!r} is not a name for a guest")

    kernel = build_kernel()
    initrd = _link(build_tiny(), shared / "boot")
    vmlinuz = _link(kernel["vmlinuz"], shared / "boot")
    base = build_debian() if kind == "debian" else None

    with _locked(shared / ".guests.lock"):
        names = {path.stem for path, _ in _definitions(shared)}
        if name is None:
            name = next(f"{kind}{i}" for i in range(1, 1 << 16) if f"{kind}{i}" not in names)
        if name in names:
            raise GuestError(f"there is a guest named {name} in this lab already")
        taken = set(_taken_addresses(shared))
        address = ip or _free_address(taken)
        if address in taken:
            raise GuestError(f"the address {address} belongs to another guest of this lab")
        if ipaddress.ip_address(address) not in GUEST_NETWORK:
            raise GuestError(f"{address} is not in the guests' network {GUEST_NETWORK}")
        mac = "52:54:00:%02x:%02x:%02x" % tuple(secrets.token_bytes(3))
        # QEMU before 9.0 loses writes when it migrates an emulated guest: reading the dirty bitmap does not reset the
        # TLB entries that let writes pass unnoticed, so that what the guest writes until its next flush may never
        # arrive (QEMU's commit 03bfc2188f mends it). This guest beats in one address space and hardly flushes: plain
        # QEMU crashed it in 15 of 160 migrations. With page table isolation each way into the kernel from a program is
        # a flush: 0 of 120. It does not help while no program runs at all, and costs: with it a 2 GiB guest boots in
        # 7 s instead of 3, and is silent for 100-170 ms around a move instead of 20-45.
        isolation = [] if _migrates_emulated(shared) else ["pti=on"]
        words = ["console=ttyS0", "quiet", *isolation, f"ferry.name={name}", f"ferry.ip={address}/{GUEST_NETWORK.prefixlen}",
                 f"ferry.client={CLIENT[0]}:{CLIENT[1]}", f"ferry.seed={secrets.token_hex(8)}",
                 f"ferry.load={load_mib}:{rate}"]
        if fill_mib:
            words.append(f"ferry.fill={fill_kind}:{fill_mib}")
        disks = []
        if kind == "debian" or disk:
            words.append("ferry.root=/dev/vda" if kind == "debian" else "ferry.disk=/dev/vda")
            disks.append({"target": "vda", "path": f"{view}/{name}.img", "format": "raw", "bus": "virtio",
                          "cache": "none"})
            _make_disk(kind, base, shared / f"{name}.img")
        if kind == "debian" and warm is not False:
            words.append("ferry.warm=1")
        extra_args = []
        if disk_load:
            words.append(f"ferry.disk-load=/dev/vd{'ab'[len(disks)]}:{disk_load_rate}")
            _make_disk("load", None, shared / f"{name}.load", disk_load_mib)
            extra_args = _disk_load_arguments(f"{view}/{name}.load")
        words += [f"ferry.{key}={value}" for key, value in (options or {}).items()]
        definition = {
            "name": name, "uuid": str(uuid.uuid4()), "owner": "lab", "machine": "pc",
            "cpu": {"model": "qemu64", "features": []}, "vcpus": vcpus, "memory_mib": memory,
            "disks": disks, "nics": [{"bridge": "br0", "mac": mac, "model": "virtio"}], "serial": "console",
            "kernel": f"{view}/boot/{vmlinuz.name}", "initrd": f"{view}/boot/{initrd.name}",
            "cmdline": " ".join(words),
        }
        if extra_args:
            definition["extra_args"] = extra_args
        partial = shared / f".{name}.json"
        partial.write_text(json.dumps(definition, indent=1) + "\n")
        os.rename(partial, shared / f"{name}.json")
    return f"{view}/{name}.json"


def guest_address(definition):
    """The address of a guest, out of its definition (a dict)."""
    return re.search(r"ferry\.ip=([0-9.]+)", definition["cmdline"]).group(1)


# ---- the heartbeat client ----

def ask(path, question, timeout=30):
    """Asks the heartbeat client behind a unix socket: "mark", "report", "wait ADDRESS BEATS", "load ADDRESS LOAD", "quit". Returns its JSON."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        connection.sendall(question.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = connection.recv(1 << 16)
            if not chunk:
                raise GuestError(f"the heartbeat client answered nothing to {question!r}")
            answer += chunk
    return json.loads(answer)


# ---- command line ----

def main(argv):
    parser = argparse.ArgumentParser(
        prog="lab/lab guest", description="Builds a guest and prints the path of its definition, valid on all hosts.")
    parser.add_argument("kind", choices=sorted(DEFAULT_MEMORY_MIB),
                        help="tiny: an initramfs, boots in seconds; debian: a disk with a file system")
    parser.add_argument("--name", help="default: the kind and a number")
    parser.add_argument("--memory", type=int, metavar="MIB", help="default: tiny 256, debian 2048")
    parser.add_argument("--load", metavar="MIB:MBPS[:MODE]",
                        help="rewrite MIB MiB of memory at MBPS million bytes a second, or at 'max'; 0: only check it. MODE: "
                        "pages (whole ones, in turn), skewed (a tenth of them gets nine tenths), sparse (64 bytes of each)")
    parser.add_argument("--fill", metavar="KIND[:MIB]",
                        help="fill more memory once, with 'random' bytes or with 'text'; default: what is left")
    parser.add_argument("--ip", metavar="ADDRESS", help=f"in {GUEST_NETWORK}; default: the first that is free")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--disk", action="store_true", help="tiny: add an empty disk, mounted on /mnt")
    parser.add_argument("--disk-load", metavar="MIB:MBPS",
                        help="add a disk that is written, and watched for a second writer, at MBPS million bytes a second")
    parser.add_argument("--no-warm", action="store_true", help="debian: do not read all files into the page cache")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="more for the load program: spin=1, beat-us=N, break=flip|stale|swap|zero|beat[:PASS]")
    parser.add_argument("--lab", metavar="NAME", help="the lab it is for; default $FERRY_LAB, else 'lab'")
    parser.add_argument("--shared", metavar="DIR", help="write here, and name this path in the definition, not the lab's")
    arguments = parser.parse_args(argv)
    try:
        options = dict(option.split("=", 1) for option in arguments.option)
    except ValueError:
        parser.error("--option takes NAME=VALUE")
    view = {}
    if arguments.shared:
        view = {"shared": arguments.shared, "view": str(Path(arguments.shared).resolve())}
    try:
        print(define(arguments.kind, name=arguments.name, memory=arguments.memory, load=arguments.load,
                     fill=arguments.fill, ip=arguments.ip, vcpus=arguments.vcpus, disk=arguments.disk,
                     warm=not arguments.no_warm, options=options, lab=arguments.lab, disk_load=arguments.disk_load,
                     **view))
    except (GuestError, OSError, ValueError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
