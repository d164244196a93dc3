# SPDX-License-Identifier: Apache-2.0
"""A stand-in for ferryd on a unix socket: the API as the command line sees it, with migrations that the test moves on.

It speaks the HTTP that ferryd speaks (kept-alive connections, Content-Length) and holds long polls back until something
changes. It can go away and come back as a restarted daemon does (stop(), start()), drop a request unanswered, or answer
any request with a given error.

As a program it answers by mutual TLS instead, in a network namespace that it has for itself, and runs one command there:
    unshare --net fake_ferryd.py FOLDER PORT COMMAND...        (FOLDER holds ca.crt, host.crt and host.key)
"""

import copy
import http.server
import json
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid

STATUSES_ENDED = ("completed", "rolled-back", "cancelled", "failed")


class ApiError(Exception):
    def __init__(self, status, code, message, **more):
        super().__init__(message)
        self.status, self.body = status, {"error": {"code": code, "message": message}, **more}


class _Server(socketserver.ThreadingMixIn):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address, fake):
        self.fake = fake
        self.connections = set()
        super().__init__(address, _Handler)

    def get_request(self):
        connection, _ = super().get_request()
        self.connections.add(connection)
        return connection, ("local", 0)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        pass  # clients that leave are part of the tests


class _UnixServer(_Server, socketserver.UnixStreamServer):
    pass


class _TlsServer(_Server, socketserver.TCPServer):
    allow_reuse_address = True


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = False

    def log_message(self, *_):
        pass

    def _answer(self):
        fake = self.server.fake
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        fake.requests.append((self.command, path, body))
        try:
            status, answer = fake.handle(self.command, path, query, body, self.server)
        except ApiError as error:
            status, answer = error.status, error.body
        if answer is None:  # as if the daemon had been killed just now
            self.close_connection = True
            return
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer


class FakeFerryd:
    def __init__(self, path, name="host-a"):
        self.path, self.name = path, name
        self.changed = threading.Condition()
        self.requests = []          # (method, path, body), in order of arrival
        self.errors = {}            # (method, path) -> ApiError to answer
        self.drop = set()           # (method, path): carried out, but not answered, once
        self.drop_before = set()    # (method, path): not even carried out, once
        self.vms, self.hosts, self.migrations = {}, {}, {}
        self.timelines = {}         # id -> what its copy looked like; nothing was seen of others
        self.dry_run_failures = []
        self.refuse_abort = None    # an ApiError
        self.abort_ends = True      # an abort ends the migration at once
        self.resolve_ends = True    # and so does a person's word
        self.server = None

    # ---- life ----

    def start(self):
        self._serve(_UnixServer(self.path, self))
        return self

    def start_tls(self, folder, port):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(os.path.join(folder, "host.crt"), os.path.join(folder, "host.key"))
        context.load_verify_locations(os.path.join(folder, "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        server = _TlsServer(("127.0.0.1", port), self)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        self._serve(server)
        return self

    def _serve(self, server):
        self.server = server
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        server, self.server = self.server, None
        if not server:
            return
        os.unlink(self.path)
        server.shutdown()
        server.server_close()
        for connection in list(server.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.changed:
            self.changed.notify_all()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    # ---- for tests ----

    def add_vm(self, name, **more):
        vm = {"name": name, "uuid": str(uuid.uuid4()), "state": "running", "owner": self.name, "epoch": 1, "pid": 4242,
              "migration": None, "definition": {"name": name, "machine": "pc", "vcpus": 2, "memory_mib": 512,
                                                "cpu": {"model": "qemu64"}, "disks": [], "nics": []}, **more}
        self.vms[name] = vm
        return vm

    def add_migration(self, vm, to, **more):
        migration = {
            "id": uuid.uuid4().hex, "change": 1, "role": "source", "vm": vm, "vm_uuid": self.vms[vm]["uuid"] if vm in self.vms else "-",
            "source": self.name, "destination": to, "status": "queued", "owner": self.name, "reason": None,
            "transport": "native", "encrypted": True, "started_at_ms": int(time.time() * 1000), "ended": False,
            "total_ms": 0.0, "downtime_ms": 0.0, "setup_ms": 0, "wire_bytes": 0, "ram_bytes": 0, "iterations": 0,
            "phases": [], "cleanup_pending": False, "handover": "holds", "waiting": None, "resolved": None,
            "progress": {"ram_total_bytes": 0, "ram_remaining_bytes": 0, "rate_bytes_per_s": 0, "dirty_bytes_per_s": 0,
                         "iteration": 0, "elapsed_ms": 0, "predicted_ms": None}, **more}
        with self.changed:
            self.migrations[migration["id"]] = migration
            self.changed.notify_all()
        return migration["id"]

    def update(self, id, **changes):
        """Change a migration as ferryd would, and wake those who wait."""
        with self.changed:
            migration = self.migrations[id]
            status = changes.get("status", migration["status"])
            if status != migration["status"]:
                now = 10.0 * (len(migration["phases"]) + 1)
                if migration["phases"]:
                    migration["phases"][-1]["end_ms"] = now
                if status not in STATUSES_ENDED:
                    migration["phases"].append({"name": status, "start_ms": now, "end_ms": None})
            migration["progress"].update(changes.pop("progress", {}))
            migration.update(changes)
            migration["ended"] = status in STATUSES_ENDED
            if status == "completed":
                migration["owner"] = migration["destination"]
            migration["change"] += 1
            self.changed.notify_all()

    def wait_for(self, condition, timeout=10):
        with self.changed:
            assert self.changed.wait_for(condition, timeout), f"not within {timeout} s; requests: {self.requests}"

    def wait_request(self, method, path_end, timeout=10):
        end = time.monotonic() + timeout
        while not any(m == method and p.endswith(path_end) for m, p, _ in self.requests):
            assert time.monotonic() < end, f"no {method} …{path_end}; requests: {self.requests}"
            time.sleep(0.002)

    def wait_migration(self, timeout=10):
        """The id of the only migration, once it is there."""
        self.wait_for(lambda: self.migrations, timeout)
        return next(iter(self.migrations))

    # ---- the API ----

    def handle(self, method, path, query, body, server):
        key = (method, path)
        if key in self.drop_before:
            self.drop_before.discard(key)
            return 0, None
        if key in self.errors:
            raise self.errors[key]
        status, answer = self._route(method, path.split("/")[2:], query, body, server)
        if key in self.drop:
            self.drop.discard(key)
            return 0, None
        return status, answer

    def _route(self, method, parts, query, body, server):
        match (method, *parts):
            case ("GET", "host"):
                return 200, {"name": self.name, "version": "0.1.0", "protocol": 1, "accelerator": "tcg"}
            case ("GET", "hosts"):
                return 200, {"hosts": list(self.hosts.values())}
            case ("POST", "hosts"):
                self.hosts[body["name"]] = {"port": 4710, **body}
                return 201, self.hosts[body["name"]]
            case ("GET", "hosts", name):
                return 200, {**self._find(self.hosts, name, "not_found"), "reachable": False, "version": None,
                             "error": "connection refused"}
            case ("DELETE", "hosts", name):
                self._find(self.hosts, name, "not_found")
                del self.hosts[name]
                return 200, {}
            case ("GET", "vms"):
                return 200, {"vms": list(self.vms.values())}
            case ("POST", "vms"):
                if body["name"] in self.vms:
                    raise ApiError(409, "vm.exists", f"VM '{body['name']}' is defined already")
                return 201, self.add_vm(body["name"], state="stopped", pid=None)
            case ("GET", "vms", name):
                return 200, self._find(self.vms, name, "vm.not_found")
            case ("DELETE", "vms", name):
                self._find(self.vms, name, "vm.not_found")
                del self.vms[name]
                return 200, {}
            case ("POST", "vms", name, "migrate"):
                return self._migrate(name, body)
            case ("POST", "vms", name, ("start" | "stop" | "shutdown" | "reboot" | "pause" | "resume") as verb):
                vm = self._find(self.vms, name, "vm.not_found")
                vm["state"] = {"stop": "stopped", "pause": "paused"}.get(verb, "running")
                return 200, vm
            case ("GET", "migrations"):
                return 200, {"migrations": list(reversed(self.migrations.values()))}
            case ("GET", "migrations", id):
                return self._poll(self._find_migration(id), query, server)
            case ("GET", "migrations", id, "timeline"):
                id = self._find_migration(id)["id"]
                return 200, self.timelines.get(id, {"points": [], "events": [], "events_lost": 0})
            case ("POST", "migrations", id, "abort"):
                if self.refuse_abort:
                    raise self.refuse_abort
                migration = self._find_migration(id)
                if self.abort_ends:
                    self.update(migration["id"], status="cancelled",
                                reason={"code": "cancelled", "message": "it was cancelled on request"})
                return 200, copy.deepcopy(migration)
            case ("POST", "migrations", id, "resolve"):
                return self._resolve(self._find_migration(id), body)
        raise ApiError(404, "not_found", f"there is no {method} /v1/{'/'.join(parts)}")

    @staticmethod
    def _find(table, name, code):
        if name not in table:
            raise ApiError(404, code, f"there is no '{name}'")
        return table[name]

    def _find_migration(self, id):
        found = [one for key, one in self.migrations.items() if key.startswith(id)]
        if len(found) != 1 or len(id) < 4:
            raise ApiError(404, "migration.not_found", f"there is no migration '{id}'")
        return found[0]

    def _migrate(self, name, body):
        self._find(self.vms, name, "vm.not_found")
        if body.get("dry_run"):
            return 200, {"ok": not self.dry_run_failures, "failures": self.dry_run_failures}
        return 202, copy.deepcopy(self.migrations[self.add_migration(name, body["to"])])

    def doubt(self, id, asked=41, for_ms=200300, last="connection refused", **more):
        """The other host was asked for the VM, and has not answered."""
        migration = self.migrations[id]
        other = migration["destination"] if migration["role"] == "source" else migration["source"]
        self.update(id, status="in-doubt", handover="offered",
                    reason={"code": "migration.in_doubt", "message": f"waiting for {other}"},
                    waiting={"for": other, "what": "whether it has taken the VM", "since_ms": 1700000000000, "for_ms": for_ms,
                             "asked": asked, "last": last and {"code": "peer.unreachable", "message": last}}, **more)

    def _resolve(self, migration, body):
        hosts = {migration["source"], migration["destination"]}
        if migration["ended"]:
            raise ApiError(409, "migration.ended", f"migration {migration['id']} has ended")
        if migration["status"] != "in-doubt":
            raise ApiError(409, "migration.not_in_doubt", f"it is {migration['status']}")
        if body["owner"] not in hosts:
            raise ApiError(400, "invalid_argument", f"'{body['owner']}' is neither of the two hosts")
        if {body.get("fenced")} != hosts - {body["owner"]}:
            raise ApiError(409, "migration.not_fenced", f"'{body.get('fenced')}' is not the other host")
        resolved = {**body, "at_ms": int(time.time() * 1000), "epoch": 3}
        if not self.resolve_ends:
            self.update(migration["id"], resolved=resolved)
        else:
            self.end_resolved(migration["id"], resolved)
        return 200, copy.deepcopy(migration)

    def end_resolved(self, id, resolved):
        ours = resolved["owner"] == self.migrations[id]["source"]
        self.update(id, status="rolled-back" if ours else "completed", resolved=resolved, waiting=None, cleanup_pending=True,
                    reason={"code": "migration.resolved", "message": f"{resolved['owner']} was said to own it"} if ours else None)

    def _poll(self, migration, query, server):
        with self.changed:
            if "seen" in query:
                self.changed.wait_for(lambda: migration["change"] != int(query["seen"]) or self.server is not server,
                                      int(query.get("wait_ms", 0)) / 1000)
            if self.server is not server:
                return 0, None
            return 200, copy.deepcopy(migration)


def main(folder, port, *command):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    fake = FakeFerryd(None).start_tls(folder, int(port))
    fake.add_vm("web1")
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
