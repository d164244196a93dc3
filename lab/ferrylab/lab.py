# SPDX-License-Identifier: Apache-2.0
"""class Lab: what tests, benchmarks and the command use.

All state is on disk, in $FERRY_BUILD/lab/NAME: state.json (what was asked for), for each host a directory with its
private files and the pids of its holder and ferryd, and shared/, which all hosts see as /srv/shared. So a lab made by
one program can be used and ended by another.
"""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys

from . import daemon, links, processes, qemu, saved
from .errors import LabError
from .hosts import Host, host_name
from .processes import Process

HOSTS_MAX = 200
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Each host has its own of these, so state below them would vanish from the hosts' sight.
UNUSABLE = ("/etc", "/run", "/srv", "/sys", "/proc", "/dev", "/var/run", "/var/cache", "/var/lib", "/var/log")


class Lab:
    def __init__(self, name=None, build=None):
        self.name = name or os.environ.get("FERRY_LAB") or "lab"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise LabError(f"not a name for a lab: {self.name!r}")
        self.build = os.path.realpath(build or os.environ.get("FERRY_BUILD") or os.path.join(REPOSITORY, "build"))
        self.path = os.path.join(self.build, "lab", self.name)
        if any(self.path.startswith(place + "/") for place in UNUSABLE):
            raise LabError(f"the build directory {self.build} is in a place that each host of the lab has its own of")
        if re.search(r"[\s,:\\]", self.path):
            raise LabError(f"the build directory {self.build} has a character in it that overlay mounts cannot take")
        self._load()

    def _load(self):
        try:
            with open(os.path.join(self.path, "state.json"), encoding="utf-8") as file:
                state = json.load(file)
        except (FileNotFoundError, json.JSONDecodeError, NotADirectoryError):
            state = {}
        self._adopt(state)

    def _adopt(self, state):
        self.state = state
        self.rate_bits = state.get("rate_bits", 0)
        self.delay_us = state.get("delay_us", 0)
        self.trusted = state.get("trusted", False)
        self.config = state.get("config", {})
        self.restore = state.get("restore", False)
        self.faults = state.get("faults", False)
        self.qemu = qemu.of_lab(state)
        self.hosts = [Host(self, host_name(i), i + 1) for i in range(state.get("hosts", 0))]
        self.switch = Host(self, "sw")
        self.client = Host(self, "client")

    @property
    def _all(self):
        return [self.switch, self.client, *self.hosts]

    def _save(self, **changes):
        self.state.update(changes)
        path = os.path.join(self.path, "state.json")
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.state, file, indent=1)
        os.rename(path + ".new", path)

    # ---- Up and down ----

    def exists(self):
        return os.path.isdir(self.path)

    def is_up(self):
        return bool(self.state.get("up")) and all(host.is_up() for host in self._all)

    def up(self, hosts=2, rate=None, delay=None, trusted=False, ferryd=True, config=None, with_qemu=None,
           faults=False, restore=False):
        """Makes the lab and returns self. rate such as "1gbit", for each host and direction; delay such as "20ms", the
        round trip between two hosts; trusted lets ferryd send in plain text; config adds keys to ferryd's
        configuration: {section: {key: value}}; with_qemu is "backports" or "system", else what qemu.provide() finds
        best, or none without ferryd; faults starts ferryd-faults in place of ferryd; restore lets guests
        start from saved states, see save_guest(). What fails in between is undone."""
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes namespaces")
        if not 1 <= hosts <= HOSTS_MAX:
            raise LabError(f"a lab has 1 to {HOSTS_MAX} hosts")
        own_qemu = qemu.provide(with_qemu, self.build) if ferryd or with_qemu else None
        state = {"hosts": hosts, "rate_bits": links.parse_rate(rate) if rate else 0,
                 "delay_us": links.parse_delay(delay) if delay else 0, "trusted": trusted, "config": config or {},
                 "ferryd": ferryd, "faults": faults, "restore": restore, "qemu": qemu.to_state(own_qemu), "up": False}
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            os.mkdir(self.path)
        except FileExistsError:
            raise LabError(f"lab {self.name!r} exists already ({self.path}); end it first with: lab/lab down"
                           + (f" --name {self.name}" if self.name != "lab" else "")) from None
        try:
            self._adopt(state)
            self._save()
            names = [("198.18.1.250", "client"), *((host.address, host.name) for host in self.hosts)]
            for host in self._all:
                host.start_holder(names)
            for host in self._all:
                host.finish_holder()
            # Guests' programs are not root, and write there. Theirs, not open to all and sticky like /tmp: there the
            # kernel (fs.protected_regular) forbids even root to open a guest's file with O_CREAT.
            os.chown(os.path.join(self.path, "shared"), *map(int, daemon.GUEST_USER.split(":")))
            links.connect(self)
            if restore:
                saved.write_wrapper(self)
            if ferryd:
                daemon.prepare(self)
                # All at once: each spends most of its start on waiting for the QEMU that it probes.
                with concurrent.futures.ThreadPoolExecutor() as pool:
                    list(pool.map(daemon.start, self.hosts))
                daemon.introduce(self)
            self._save(up=True)
        except BaseException:
            self.down()
            raise
        return self

    def down(self, keep_state=False):
        """Ends everything in the lab and removes it; nothing to do is no error."""
        if not self.exists():
            return
        if stat.S_IFMT(os.lstat(self.path).st_mode) != stat.S_IFDIR or \
                not set(os.listdir(self.path)) <= {"shared", "forwarder.log", "forwarder.pid", "forwarder.stats",
                                                   "state.json", "state.json.new", *(h.name for h in self._all)}:
            raise LabError(f"{self.path} holds things that no lab has put there; left alone")
        holders = [holder for host in self._all
                   if (holder := Process.load(os.path.join(host.path, "holder.pid"))) is not None]
        own = processes.namespaces("self")
        if any(("net", number) in own for holder in holders
               for kind, number in processes.namespaces(holder.pid) if kind == "net"):
            raise LabError("a lab cannot be ended from inside")
        for host in self.hosts:
            ferryd = daemon.process(host)
            if ferryd:
                ferryd.end(5)
                ferryd.reap()
        forwarder = Process.load(os.path.join(self.path, "forwarder.pid"))
        processes.end_members(holders, [host.mark for host in self._all])
        if forwarder:
            forwarder.reap()
        if keep_state:
            self._save(up=False)
        else:
            shutil.rmtree(self.path)
            self._adopt({})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()

    # ---- Hosts ----

    def host(self, name):
        """By name: host-a…, client, or sw, the switch."""
        for host in self._all:
            if host.name == name:
                return host
        known = " ".join(host.name for host in self._all)
        raise LabError(f"lab {self.name!r} has no {name!r}; it has: {known}" if self.hosts
                       else f"lab {self.name!r} is not up")

    def _host(self, host):
        return host if isinstance(host, Host) else self.host(host)

    # ---- Saved guests ----

    def save_guest(self, host, name, **options):
        """Ends a guest that runs on host, and lets each later start of it, on any host, go on from this moment instead of
        booting: see saved.py. host's ferryd is away for the time, since a monitor has room for one; it is started again
        with these options of daemon.start(), and then finds that the guest has stopped. The heartbeat client must be
        told: `forget ADDRESS`."""
        host = self._host(host)
        ran = daemon.stop(host)
        try:
            saved.save(self, host, name)
        finally:
            if ran:
                daemon.start(host, **options)

    def forget_saved_guest(self, name):
        """From its next start on the guest boots again."""
        saved.forget(self, name)

    # ---- Power ----

    def power_off(self, host):
        """The power fails: every process of the host is gone at once, and nobody is told: peers hear neither a FIN nor an
        RST, only silence. What the host had on its disks stays (/etc,
        /var/lib, /srv/local, ...); /run, ports and bridge are gone. kill -9 leaves the page cache: what was not made
        durable is lost only where a forgetful ferryd keeps it to itself."""
        host = self._host(host)
        if host.number is None:
            raise LabError(f"{host.name} has no power switch")
        holder, ferryd = host.holder, daemon.process(host)
        links.silence(host)
        processes.kill_members([holder], [host.mark])
        links.unplug(self, host)
        processes.end_members([holder], [host.mark])
        if ferryd:
            ferryd.reap()

    def power_on(self, host, ferryd=True, **options):
        """Boots a host that was switched off, with an empty /run and a new bridge; ferryd, and what else daemon.start()
        takes, as asked for. The other end of its link is as it was left: a cut one stays cut."""
        host = self._host(host)
        if host.is_up():
            raise LabError(f"{host.name} of lab {self.name!r} is up already")
        host.restart_holder()
        host.finish_holder()
        links.plug(self, host)
        return daemon.start(host, **options) if ferryd else None

    def reboot(self, host, ferryd=True, **options):
        """Power off and on. Connections of before are answered with RST from then on, as by any host that booted."""
        self.power_off(host)
        return self.power_on(host, ferryd, **options)

    # ---- ferryd ----

    def start_ferryd(self, host, env=None, wrapper=(), timeout=30, faults=None):
        return daemon.start(self._host(host), env, wrapper, timeout, faults)

    def stop_ferryd(self, host, sig=signal.SIGTERM, timeout=30):
        return daemon.stop(self._host(host), sig, timeout)

    def ferryd_pid(self, host):
        ferryd = daemon.process(self._host(host))
        return ferryd.pid if ferryd else None

    def ferryd_log(self, host):
        """The path of its log, on the machine."""
        return daemon.log_path(self._host(host))

    # ---- Links ----

    def link_stats(self, host, interface="eth0"):
        return links.link_stats(self._host(host), interface)

    def forwarder_stats(self):
        return links.forwarder_stats(self)

    def cut(self, host):
        links.cut(self, self._host(host))

    def heal(self, host):
        links.heal(self, self._host(host))

    def block(self, source, destination, what="all", both=False):
        """From now on what source sends to destination vanishes on the migration network, without a word to anybody:
        connections stay, half-open or dead both ways (both). what: "all" of it, ferryd's "control" port only, or all but
        that ("data"). Blocks add up; None stands for all hosts. State is this object's: one program at a time."""
        if what not in links.BLOCKABLE:
            raise LabError(f"no block of {what!r}; there are: {' '.join(links.BLOCKABLE)}")
        paths = self._paths(source, destination, both)
        self._set_blocks(self.blocks + [(*path, what) for path in paths if (*path, what) not in self.blocks])

    def unblock(self, source=None, destination=None, both=False):
        """Heals all blocks of a path, or, with nothing said, all there are, at once."""
        paths = self._paths(source, destination, both)
        self._set_blocks([block for block in self.blocks if block[:2] not in paths])

    @property
    def blocks(self):
        """[(source, destination, what)], by names."""
        return [tuple(block) for block in self.state.get("blocks", [])]

    def _paths(self, source, destination, both):
        ends = [[self._host(end)] if end else self.hosts for end in (source, destination)]
        paths = {(a.name, b.name) for a in ends[0] for b in ends[1] if a is not b}
        for end in ends[0] + ends[1]:
            end.address  # pylint: disable=pointless-statement  (an error for one that is not on this network)
        return paths | {path[::-1] for path in paths} if both else paths

    def _set_blocks(self, blocks):
        links.apply_blocks(self, self.blocks, blocks)
        self._save(blocks=blocks)

    def ping(self, source, destination, count=5, interval_ms=20):
        """Round trips in ms; None for one that was lost."""
        done = self._host(source).run([sys.executable, _probe(), "ping", self._host(destination).address, count,
                                       interval_ms], timeout=count * 4 + 10)
        return json.loads(done.stdout)

    def tcp_rate(self, source, destination, seconds=2.0):
        """Bytes per second of a plain TCP copy, as the reader sees it."""
        copied = self.tcp_copy(source, destination, seconds)
        return copied["bytes"] / copied["seconds"]

    def tcp_copy(self, source, destination, seconds=2.0):
        """Writes for so many seconds; {bytes, seconds} from the first byte read to the last."""
        source, destination = self._host(source), self._host(destination)
        with destination.popen([sys.executable, _probe(), "sink", destination.address], stdout=subprocess.PIPE,
                               text=True) as sink:
            port = sink.stdout.readline().strip()
            source.run([sys.executable, _probe(), "source", destination.address, port, seconds], timeout=seconds + 60)
            return json.loads(sink.stdout.readline())


def _probe():
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "probe.py")
