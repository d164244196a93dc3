# SPDX-License-Identifier: Apache-2.0
"""The lab itself: it does what it says about links and privacy, and leaves nothing behind."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import uuid

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(REPOSITORY, "lab"))

from ferrylab import Lab, LabError  # noqa: E402
from ferrylab import links, processes  # noqa: E402
from ferrylab.hosts import host_name  # noqa: E402
from moves import network_of  # noqa: E402

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")

COMMAND = os.path.join(REPOSITORY, "lab", "lab")


def new_lab():
    return Lab("test-" + uuid.uuid4().hex[:8])


def lab_command(lab, *arguments, check=True, **options):
    return subprocess.run([COMMAND, *arguments], env={**os.environ, "FERRY_LAB": lab.name, "FERRY_BUILD": lab.build},
                          text=True, check=check, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **options)


def machine():
    """What a lab could leave behind: mounts, interfaces, and entries where hosts write. All are this process's view."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = sorted(line.split()[4] for line in file)
    places = ("/etc", "/srv", "/run", "/var/lib", "/var/log", "/var/cache")
    entries = {place: sorted(os.listdir(place)) for place in places if os.path.isdir(place)}
    return {"mounts": mounts, "interfaces": sorted(os.listdir("/sys/class/net")), **entries}


def network_namespaces_of(lab):
    return {space for host in [lab.switch, lab.client, *lab.hosts]
            for space in processes.namespaces(host.holder.pid) if space[0] == "net"}


def living_in(spaces):
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and processes.namespaces(pid) & spaces]


@pytest.fixture(scope="module")
def plain():
    """Two hosts, no rate, no delay, no ferryd; for tests that change nothing."""
    with new_lab() as lab:
        yield lab.up(ferryd=False)


# ---- Life ----

def test_command_up_exec_down_leaves_nothing():
    lab = new_lab()
    before = machine()
    try:
        lab_command(lab, "up", "--no-ferryd", "--hosts", "3", "--rate", "1gbit", "--delay", "2ms")
        spaces = network_namespaces_of(Lab(lab.name))
        assert len(spaces) == 5
        assert machine() == before, "a running lab must not show on the machine"
        assert lab_command(lab, "exec", "host-c", "--", "hostname").stdout == "host-c\n"
        assert lab_command(lab, "exec", "host-a", "--", "sh", "-c", "exit 7", check=False).returncode == 7
        status = json.loads(lab_command(lab, "status", "--output", "json").stdout)
        assert status["up"] and [host["name"] for host in status["hosts"]] == ["host-a", "host-b", "host-c"]
        assert lab_command(lab, "exec", "host-a", "--", "sh", "-c", "echo mine > /etc/of-host-a").returncode == 0
    finally:
        lab_command(lab, "down")
    assert machine() == before
    assert not os.path.exists(lab.path)
    assert not living_in(spaces)
    lab_command(lab, "down")  # again: no error
    assert lab_command(lab, "status", check=False).returncode == 1


def test_down_ends_what_was_started_inside():
    lab = new_lab().up(ferryd=False)
    try:
        # A daemon of the worst kind: its own session, deaf to SIGTERM, and forking while it is being killed.
        deaf = "trap '' TERM; echo; while :; do (sleep 300 & sleep 0.01); done"
        child = lab.host("host-a").popen(["setsid", "sh", "-c", deaf], stdout=subprocess.PIPE)
        netless = lab.host("host-b").popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 300"],
                                           stdout=subprocess.PIPE)
        for started in (child, netless):
            assert started.stdout.readline() == b"\n"
        spaces = network_namespaces_of(lab)
    finally:
        lab.down()
    assert not living_in(spaces)
    assert child.wait(10) == -signal.SIGKILL
    assert netless.wait(10) == -signal.SIGKILL, "it left the network namespace but not the host"


def test_down_after_a_holder_was_killed():
    lab = new_lab().up(ferryd=False)
    try:
        orphan = lab.host("host-a").popen(["sh", "-c", "echo; exec sleep 300"], stdout=subprocess.PIPE)
        assert orphan.stdout.readline() == b"\n"
        path = lab.path
        holder = lab.host("host-a").holder
        holder.signal(signal.SIGKILL)
        assert holder.wait(5)
        assert not lab.is_up()
    finally:
        Lab(lab.name).down()
    assert orphan.wait(10) == -signal.SIGKILL
    assert not os.path.exists(path)


def test_up_twice_is_an_error_and_harms_nothing(plain):
    failed = lab_command(plain, "up", "--no-ferryd", check=False)
    assert failed.returncode == 1 and "exists already" in failed.stderr
    assert plain.is_up()


def test_failed_up_cleans_up(monkeypatch):
    lab = new_lab()
    before = machine()
    seen = {}

    def fail(broken):
        seen["spaces"] = network_namespaces_of(broken)
        raise LabError("broken on purpose")

    monkeypatch.setattr(links, "connect", fail)
    with pytest.raises(LabError, match="on purpose"):
        lab.up(ferryd=False)
    assert len(seen["spaces"]) == 4 and not living_in(seen["spaces"])
    assert not os.path.exists(lab.path) and machine() == before


def test_holder_ends_with_a_lab_that_dies_while_making_it():
    lab = new_lab()
    script = ("import sys, os, signal; sys.path.insert(0, sys.argv[1])\n"
              "from ferrylab import Lab, hosts\n"
              "def die(host): os.kill(os.getpid(), signal.SIGKILL)\n"
              "hosts.Host.finish_holder = die\n"
              "Lab(sys.argv[2], sys.argv[3]).up(ferryd=False)\n")
    done = subprocess.run([sys.executable, "-c", script, os.path.join(REPOSITORY, "lab"), lab.name, lab.build],
                          check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.path.isdir(lab.path)
    lab_command(lab, "down")
    assert not os.path.exists(lab.path)
    title = f"ferry-lab:{lab.name}:".encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                assert title not in file.read()
        except (FileNotFoundError, ProcessLookupError):
            pass


def test_two_labs_side_by_side(plain):
    with new_lab() as other:
        other.up(ferryd=False)
        other.host("host-a").run(["touch", "/srv/shared/of-other", "/etc/ferry/of-other"])
        assert plain.host("host-b").run(["ls", "/srv/shared"]).stdout == ""
        assert plain.host("host-a").run(["ls", "/etc/ferry"]).stdout == ""
        assert not network_namespaces_of(plain) & network_namespaces_of(other)
        other.cut("host-b")
        assert None not in plain.ping("host-a", "host-b", 2)
    assert plain.is_up()
    assert None not in plain.ping("host-a", "host-b", 2)


def test_only_what_a_lab_made_is_removed():
    lab = new_lab()
    os.makedirs(os.path.join(lab.path, "precious"))
    with pytest.raises(LabError, match="left alone"):
        lab.down()
    os.rmdir(os.path.join(lab.path, "precious"))
    lab.down()
    assert not os.path.exists(lab.path)


# ---- A host's view ----

def test_mounts_are_private_and_shared_is_common(plain):
    a, b = plain.host("host-a"), plain.host("host-b")
    private = ("/etc/ferry", "/var/lib/ferry", "/srv/local", "/run", "/etc", "/var/lib", "/var/log", "/var/cache")
    for place in private:
        a.run(["touch", f"{place}/of-{plain.name}"])
        assert b.run(["test", "-e", f"{place}/of-{plain.name}"], check=False).returncode == 1, place
        assert not os.path.exists(f"{place}/of-{plain.name}"), place
        a.run(["rm", f"{place}/of-{plain.name}"])
    a.run(["sh", "-c", "echo common > /srv/shared/file"])
    assert b.run(["cat", "/srv/shared/file"]).stdout == "common\n"
    b.run(["rm", "/srv/shared/file"])
    # As the guests' user, who is nobody on this machine.
    a.run(["setpriv", "--reuid=61000", "--regid=61000", "--clear-groups", "sh", "-c",
           "touch /srv/shared/guest && rm /srv/shared/guest"])
    kinds = {place: a.run(["findmnt", "-n", "-o", "FSTYPE", "--target", place]).stdout.strip() for place in private}
    assert kinds["/run"] == "tmpfs"
    assert kinds["/var/lib/ferry"] not in ("tmpfs", "overlay"), "a journal must be on a disk"


def test_names_and_machine_ids(plain):
    a, b = plain.host("host-a"), plain.host("host-b")
    assert a.run(["hostname"]).stdout == "host-a\n"
    assert a.run(["getent", "hosts", "host-b"]).stdout.split() == ["198.18.0.2", "host-b"]
    assert a.run(["cat", "/etc/machine-id"]).stdout != b.run(["cat", "/etc/machine-id"]).stdout
    assert a.run(["ls", "/sys/class/net"]).stdout.split() == ["br0", "eth0", "eth1", "lo"]
    assert [host_name(i) for i in (0, 25, 26, 51, 52, 701, 702)] == \
        ["host-a", "host-z", "host-aa", "host-az", "host-ba", "host-zz", "host-aaa"]


def test_networks_lead_nowhere_else(plain):
    for host in [plain.switch, plain.client, *plain.hosts]:
        routes = host.run(["ip", "route"]).stdout
        assert "default" not in routes and "via" not in routes
        assert host.run(["ip", "-6", "address"]).stdout == ""
        assert host.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "0\n"
    # The guests' network reaches the hosts' bridges and not the migration network, not even on the same host.
    probe = ["python3", os.path.join(REPOSITORY, "lab", "ferrylab", "probe.py"), "ping"]
    assert None not in json.loads(plain.client.run([*probe, "198.18.1.2", "2", "10"]).stdout)
    plain.client.run(["ip", "route", "add", "198.18.0.0/24", "dev", "eth0"])
    assert json.loads(plain.client.run([*probe, "198.18.0.2", "1", "10"]).stdout) == [None]
    plain.client.run(["ip", "route", "del", "198.18.0.0/24"])


def test_exec_keeps_directory_input_and_status(plain):
    done = lab_command(plain, "exec", "host-a", "--", "sh", "-c", "pwd; cat; echo $PATH", cwd=REPOSITORY, input="in\n")
    directory, given, path = done.stdout.splitlines()
    assert (directory, given) == (REPOSITORY, "in")
    assert path.split(":")[0] == plain.build
    with pytest.raises(LabError, match="ended with 3"):
        plain.host("host-a").run(["sh", "-c", "exit 3"])
    assert "no 'host-x'" in lab_command(plain, "exec", "host-x", "--", "true", check=False).stderr


# ---- Links ----

@pytest.mark.parametrize("rate, bytes_per_second", [("1gbit", 119.5e6), ("100mbit", 11.95e6)])
def test_rate(rate, bytes_per_second):
    """A full frame of 1514 bytes carries 1448 of TCP payload, so a link's rate times 0.9564."""
    with new_lab() as lab:
        lab.up(rate=rate, ferryd=False)
        before = lab.link_stats("host-a")
        copies = [lab.tcp_copy("host-a", "host-b", 1.5) for _ in range(3)]
        sent = lab.link_stats("host-a")["tx_bytes"] - before["tx_bytes"]
        back = lab.tcp_rate("host-b", "host-a", 1.5)
        # The best of three: other work on the machine can only slow a copy down, and nothing may speed it up.
        forth = max(copy["bytes"] / copy["seconds"] for copy in copies)
        assert forth == pytest.approx(bytes_per_second, rel=0.04)
        assert back == pytest.approx(bytes_per_second, rel=0.06)
        # The counter sees super-frames with one header each, so it may show less than went over a real wire.
        assert 1 <= sent / sum(copy["bytes"] for copy in copies) < 1.05


def test_rate_holds_towards_one_host():
    """Two that send to one share its link: the switch's end is limited too."""
    with new_lab() as lab:
        lab.up(hosts=3, rate="100mbit", ferryd=False)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            copies = [pool.submit(lab.tcp_rate, source, "host-c", 2) for source in ("host-a", "host-b")]
            together = sum(copy.result() for copy in copies)
        assert together == pytest.approx(11.95e6, rel=0.1)


@pytest.mark.parametrize("delay", [2, 20])
def test_delay_is_the_round_trip(delay):
    with new_lab() as lab:
        lab.up(hosts=3, delay=f"{delay}ms", ferryd=False)
        lab.ping("host-a", "host-b", 1)  # resolves the address, which takes a round trip itself
        trips = lab.ping("host-a", "host-b", 20, 5)
        assert None not in trips
        assert min(trips) >= delay
        assert statistics.median(trips) < delay + 1.5
        assert None not in lab.ping("host-c", "host-b", 2)
        assert min(lab.ping("host-a", "host-a", 3)) < 1


def out_of_order(host):
    """How many segments TCP had to hold back there, as earlier ones were still missing; TCP hides them otherwise."""
    counters = host.run(["cat", "/proc/net/netstat"]).stdout
    names, values = (line.split() for line in counters.splitlines() if line.startswith("TcpExt"))
    return int(dict(zip(names, values))["TCPOFOQueue"])


def test_delayed_link_keeps_rate_order_and_content():
    with new_lab() as lab:
        lab.up(rate="1gbit", delay="10ms", ferryd=False)
        copies, held_back = [], [out_of_order(lab.host("host-b"))]
        for _ in range(3):
            copies.append(lab.tcp_rate("host-a", "host-b", 1.5))
            held_back.append(out_of_order(lab.host("host-b")))
        assert max(copies) == pytest.approx(117e6, rel=0.08)
        # The best of three here too, and once is no matter: a veth has a queue for each processor, so a sender that the kernel
        # moves to another one may overtake itself. A forwarder that let frames overtake would do so in every copy, many times.
        assert min(after - before for before, after in zip(held_back, held_back[1:])) <= 1, held_back
        lab.ping("host-a", "host-b", 1)  # frames do not overtake, so whatever came before its answer is through
        stats = lab.forwarder_stats()
        assert stats["host-a"]["frames_in"] == stats["host-b"]["frames_out"]
        for host in stats.values():
            assert host["dropped_full"] == host["dropped_kernel"] == host["dropped_send"] == 0
        # Super-frames pass whole.
        assert stats["host-a"]["bytes_in"] / stats["host-a"]["frames_in"] > 5000
        # Every byte arrives as it was, in both directions, and small frames between large ones.
        receive = lab.host("host-b").popen(["socat", "-u", "TCP-LISTEN:4000,reuseaddr", "EXEC:sha256sum"],
                                           stdout=subprocess.PIPE, text=True)
        send = ("import os, hashlib, socket, time\n"
                "data = os.urandom(8 << 20)\n"
                "for _ in range(200):\n"
                "    try: s = socket.create_connection(('198.18.0.2', 4000)); break\n"
                "    except ConnectionRefusedError: time.sleep(0.02)\n"
                "s.sendall(data[:1]); time.sleep(0.02); s.sendall(data[1:]); s.close()\n"
                "print(hashlib.sha256(data).hexdigest())\n")
        digest = lab.host("host-a").run([sys.executable, "-c", send]).stdout.strip()
        assert receive.communicate(timeout=20)[0].split()[0] == digest


def test_forwarder_drops_what_does_not_fit_and_counts_it():
    """More than its 64 MiB are sent while the first frame still waits; every frame is accounted for."""
    with new_lab() as lab:
        lab.up(delay="2500ms", ferryd=False)
        lab.ping("host-a", "host-b", 1)  # resolves the address; will itself be given up, after 3 s
        flood = ("import socket\n"
                 "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
                 "s.setsockopt(socket.SOL_SOCKET, 32, 1 << 28)\n"  # SO_SNDBUFFORCE: frames that wait count as unsent
                 "for _ in range(3500): s.sendto(bytes(30000), ('198.18.0.2', 9))\n")
        lab.host("host-a").run([sys.executable, "-c", flood])
        trips = lab.ping("host-a", "host-b", 2, 500)  # the first may be dropped too
        assert trips[-1] >= 2500
        stats = lab.forwarder_stats()
        assert stats["host-a"]["dropped_full"] > 1000
        assert stats["host-a"]["frames_in"] == stats["host-b"]["frames_out"] + stats["host-a"]["dropped_full"] + \
            stats["host-b"]["dropped_send"]
        assert stats["host-a"]["frames_in"] + stats["host-a"]["dropped_kernel"] > 70000


@pytest.mark.parametrize("delay", [None, "2ms"])
def test_cut_and_heal(delay):
    with new_lab() as lab:
        lab.up(hosts=3, delay=delay, ferryd=False)
        # An open connection survives a short cut, as with a cable.
        listener = lab.host("host-b").popen(["socat", "-u", "TCP-LISTEN:4000,reuseaddr", "STDOUT"],
                                            stdout=subprocess.PIPE, text=True)
        talker = lab.host("host-a").popen(["socat", "-u", "STDIN", "TCP:198.18.0.2:4000,retry=50,interval=0.05"],
                                          stdin=subprocess.PIPE, text=True)
        talker.stdin.write("before\n")
        talker.stdin.flush()
        assert listener.stdout.readline() == "before\n"
        lab.cut("host-b")
        assert lab.ping("host-a", "host-b", 1) == [None]
        assert None not in lab.ping("host-a", "host-c", 2)
        assert "198.18.0.2/24" in lab.host("host-b").run(["ip", "address", "show", "eth0"]).stdout
        talker.stdin.write("after\n")
        talker.stdin.flush()
        lab.heal("host-b")
        assert None not in lab.ping("host-c", "host-b", 2)
        assert listener.stdout.readline() == "after\n"
        talker.stdin.close()
        talker.wait(10)
        listener.wait(10)


@contextlib.contextmanager
def connected(lab, source, destination, port=4000):
    """Two ends of a TCP connection, made in the hosts' networks and held by this program."""
    with contextlib.ExitStack() as held:
        with network_of(lab.host(destination)):
            listener = held.enter_context(socket.create_server(("0.0.0.0", port)))
        with network_of(lab.host(source)):
            near = held.enter_context(socket.create_connection((lab.host(destination).address, port), 10))
        far = held.enter_context(listener.accept()[0])
        yield near, far


def says(end, timeout):
    """What comes to a socket in that time, in seconds: bytes, b"" for the end, "reset", or None for silence."""
    end.settimeout(timeout)
    try:
        return end.recv(100)
    except TimeoutError:
        return None
    except ConnectionResetError:
        return "reset"


@pytest.mark.parametrize("delay", [None, "2ms"])
def test_block_one_way_and_both(delay):
    """What is blocked vanishes without a word, connections stay; what is not blocked passes."""
    with new_lab() as lab:
        lab.up(hosts=3, delay=delay, ferryd=False)
        with connected(lab, "host-a", "host-b") as (near, far):
            lab.block("host-a", "host-b")
            assert lab.ping("host-b", "host-a", 1) == [None], "no answer comes"
            assert None not in lab.ping("host-a", "host-c", 1) + lab.ping("host-c", "host-b", 1)
            near.sendall(b"lost for now")
            far.sendall(b"comes")
            assert says(near, 5) == b"comes", "the other way is open"
            assert says(far, 0.3) is None
            lab.unblock()
            assert says(far, 20) == b"lost for now"
            assert lab.blocks == [] and None not in lab.ping("host-a", "host-b", 1)

            lab.block("host-a", "host-b", both=True)
            near.sendall(b"one")
            far.sendall(b"two")
            assert says(near, 0.5) is None and says(far, 0.1) is None
            with network_of(lab.host("host-a")), socket.socket() as fresh:
                fresh.settimeout(0.3)
                with pytest.raises(TimeoutError):  # not refused, not unreachable
                    fresh.connect((lab.host("host-b").address, 4000))
            lab.unblock("host-b", "host-a")
            lab.unblock("host-a", "host-b")
            assert (says(near, 20), says(far, 20)) == (b"two", b"one")


def test_block_control_or_data():
    with new_lab() as lab:
        lab.up(ferryd=False)
        with connected(lab, "host-a", "host-b", 4710) as control, connected(lab, "host-a", "host-b", 49152) as data, \
                connected(lab, "host-b", "host-a", 4710) as back:
            for what, shut, opened in (("control", (control, back), (data,)), ("data", (data,), (control, back))):
                lab.block("host-a", "host-b", what, both=True)
                for near, far in (*shut, *opened):
                    near.sendall(b"x")
                    far.sendall(b"y")
                for near, far in opened:
                    assert (says(far, 5), says(near, 5)) == (b"x", b"y"), what
                for near, far in shut:
                    assert says(far, 0.3) is None and says(near, 0.01) is None, what
                lab.unblock()
                for near, far in shut:
                    assert (says(far, 20), says(near, 20)) == (b"x", b"y"), what
            lab.block(None, None, "control")
            assert set(lab.blocks) == {("host-a", "host-b", "control"), ("host-b", "host-a", "control")}
        for wrong in (("host-a", "host-b", "some"), ("host-a", "client")):
            with pytest.raises(LabError):
                lab.block(*wrong)


def test_client_is_cut_off():
    with new_lab() as lab:
        lab.up(ferryd=False)
        probe = ["python3", os.path.join(REPOSITORY, "lab", "ferrylab", "probe.py"), "ping", "198.18.1.2", "1", "10"]
        lab.cut("client")
        assert [None] == json.loads(lab.client.run(probe).stdout)
        lab.heal("client")
        # The bridge's port and the neighbour's entry take a moment, on a busy machine a long one.
        assert any(None not in json.loads(lab.client.run(probe).stdout) for _ in range(10))


# ---- Power ----

def start_one(lab):
    """A process on host-a, with a tap on its bridge and a connection to host-b; and the other end of that."""
    lab.host("host-a").run(["ip", "tuntap", "add", "dev", "tap0", "mode", "tap"])
    lab.host("host-a").run(["ip", "link", "set", "tap0", "master", "br0", "up"])
    with network_of(lab.host("host-b")):
        listener = socket.create_server((lab.host("host-b").address, 4000))
    with listener:
        child = lab.host("host-a").popen(["bash", "-c", "exec 3<>/dev/tcp/198.18.0.2/4000; exec sleep 300"])
        return child, listener.accept()[0]


@pytest.mark.parametrize("delay", [None, "2ms"])
def test_reboot(delay):
    with new_lab() as lab:
        lab.up(delay=delay, rate="1gbit", ferryd=False)
        a = lab.host("host-a")
        for place in ("/run", "/var/lib/ferry", "/etc/ferry", "/srv/local", "/etc", "/var/lib"):
            a.run(["touch", f"{place}/of-host-a"])
        identity = a.run(["cat", "/etc/machine-id", "/etc/hosts"]).stdout
        links_before = a.run(["tc", "qdisc", "show", "dev", "eth0"]).stdout
        (child, peer), holder = start_one(lab), a.holder
        with peer:
            before = time.monotonic()
            lab.power_off("host-a")
            assert child.wait(10) == -signal.SIGKILL and not holder.alive() and not a.is_up()
            assert says(peer, 0.5) is None, "the dead tell nobody"
            with pytest.raises(LabError, match="not up"):
                a.run(["true"])
            lab.power_on("host-a", ferryd=False)
            assert time.monotonic() - before < 5
            assert says(peer, 0.3) is None, "not after the boot either"
            peer.sendall(b"are you there?")
            assert says(peer, 20) == "reset"
        assert a.run(["ls", "/run"]).stdout.split() == ["lab", "lock"]
        for place in ("/var/lib/ferry", "/etc/ferry", "/srv/local", "/etc", "/var/lib"):
            a.run(["test", "-e", f"{place}/of-host-a"])
        assert a.run(["cat", "/etc/machine-id", "/etc/hosts"]).stdout == identity
        assert a.run(["ls", "/sys/class/net"]).stdout.split() == ["br0", "eth0", "eth1", "lo"]
        assert re.sub("qdisc tbf [0-9a-f]+", "", a.run(["tc", "qdisc", "show", "dev", "eth0"]).stdout) == \
            re.sub("qdisc tbf [0-9a-f]+", "", links_before)
        assert None not in lab.ping("host-a", "host-b", 2) + lab.ping("host-b", "host-a", 2)
        with pytest.raises(LabError, match="is up already"):
            lab.power_on("host-a")
        lab.cut("host-a")
        lab.reboot("host-a", ferryd=False)
        assert lab.ping("host-b", "host-a", 1) == [None], "a cable that was pulled stays so"
        lab.heal("host-a")
        assert None not in lab.ping("host-b", "host-a", 1)
        lab.power_off("host-a")  # and down with one that is off


# ---- ferryd ----

FAKE_FERRYD = """#!/bin/sh
grep address /etc/ferry/ferry.conf; cat /etc/ferry/pki/host.key
if [ -e /etc/ferry/broken ]; then echo no such thing >&2; exit 1; fi
if [ -e /etc/ferry/mute ]; then exec sleep 300; fi
printf 'STATUS=here\\nREADY=1' | socat -u STDIN UNIX-SENDTO:$NOTIFY_SOCKET
exec sleep 300
"""

FAKE_FERRY = """#!/bin/sh
case "$1 $2" in
"pki init") mkdir /etc/ferry/pki; touch /etc/ferry/pki/ca.key /etc/ferry/pki/ca.crt;;
"pki issue") mkdir "$7"; for file in ca.crt host.crt host.key; do echo "$file of $3 at $5" > "$7/$file"; done;;
"host add") echo "$3 $4" >> /var/lib/ferry/known;;
*) exit 2;;
esac
"""


@pytest.fixture
def fake_build(tmp_path):
    """A build directory whose ferryd and ferry only record what the lab wants of them."""
    for name, text in (("ferryd", FAKE_FERRYD), ("ferry", FAKE_FERRY)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return str(tmp_path)


def test_ferryd_is_prepared_started_and_ended(fake_build):
    with Lab("fake", fake_build) as lab:
        lab.up(hosts=3, trusted=True, config={"data": {"extra": "1"}, "other": {"key": "2"}})
        assert lab.host("host-c").run(["cat", "/var/lib/ferry/known"]).stdout == \
            "host-a 198.18.0.1\nhost-b 198.18.0.2\n"
        assert lab.host("host-b").run(["ls", "/etc/ferry/pki"]).stdout.split() == ["ca.crt", "host.crt", "host.key"]
        assert lab.host("host-a").run(["ls", "/etc/ferry"]).stdout.split() == ["ferry.conf", "pki"]
        configuration = lab.host("host-b").run(["cat", "/etc/ferry/ferry.conf"]).stdout.split("\n\n")
        assert configuration[0] == "[host]\nname = host-b"
        assert "trusted = 198.18.0.0/24\nextra = 1" in configuration[2]
        assert "[other]\nkey = 2" in configuration
        with open(lab.ferryd_log("host-b"), encoding="utf-8") as log:
            assert "host.key of host-b at 198.18.0.2" in log.read()

        first = lab.ferryd_pid("host-a")
        assert {("net", os.stat(f"/proc/{first}/ns/net").st_ino)} <= network_namespaces_of(lab)
        with pytest.raises(LabError, match="runs already"):
            lab.start_ferryd("host-a")
        assert lab.stop_ferryd("host-a", signal.SIGKILL)
        assert lab.ferryd_pid("host-a") is None and not lab.stop_ferryd("host-a")
        assert lab.start_ferryd("host-a") == lab.ferryd_pid("host-a") != first

        second = lab.ferryd_pid("host-a")
        assert lab.reboot("host-a") == lab.ferryd_pid("host-a") != second
        assert "host-b 198.18.0.2" in lab.host("host-a").run(["cat", "/var/lib/ferry/known"]).stdout

        lab.stop_ferryd("host-a")
        lab.host("host-a").run(["touch", "/etc/ferry/broken"])
        with pytest.raises(LabError, match="no such thing"):
            lab.start_ferryd("host-a")
        lab.host("host-a").run(["mv", "/etc/ferry/broken", "/etc/ferry/mute"])
        with pytest.raises(LabError, match="did not become ready"):
            lab.start_ferryd("host-a", timeout=0.5)
        assert lab.ferryd_pid("host-a") is None
    assert os.listdir(os.path.join(fake_build, "lab")) == []


def test_what_is_not_built_is_named(tmp_path):
    lab = Lab("fake", str(tmp_path))
    with pytest.raises(LabError, match="ferryd is missing.*--no-ferryd"):
        lab.up()
    with pytest.raises(LabError, match="forwarder is missing"):
        lab.up(ferryd=False, delay="1ms")
    assert not lab.exists()


@pytest.mark.parametrize("build", ["/run/build", "/var/lib/build", "/tmp/with,comma"])
def test_build_directory_that_hosts_could_not_use(build):
    with pytest.raises(LabError, match="build directory"):
        Lab("fake", build)


def test_rates_and_delays_are_read_strictly():
    assert links.parse_rate("1gbit") == 10**9 and links.parse_rate("2.5 Gbit/s") == 25 * 10**8
    assert links.parse_delay("20ms") == 20000 and links.parse_delay("500us") == 500
    for wrong in ("", "1", "gbit", "1gb", "-1gbit", "1 gbit x", "0mbit"):
        with pytest.raises(LabError):
            links.parse_rate(wrong)
    for wrong in ("", "20", "ms", "-1ms", "1h", "11s"):
        with pytest.raises(LabError):
            links.parse_delay(wrong)
