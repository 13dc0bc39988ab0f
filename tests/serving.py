"""A real `talaria serve` in a home of its own, and real peers beside it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from talaria.store.ledger import Ledger
from talaria.store.listing import Listing

TALARIA = (sys.executable, "-m", "talaria")

#: Without it DCMTK waits 44 ms for each image.
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("TALARIA_")}, "TCP_NODELAY": "1"
}  # fmt: skip


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """What *condition* answers once it is true; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


def answers(port: int) -> bool:
    """Whether somebody listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


#: Each service of a home as a command of its own; of what only one may claim, two.
APART = ("receiver", "router", "router", "processor", "dispatcher", "dispatcher", "cleaner", "bookkeeper", "web")

#: A story of one `talaria serve` on SQLite that is told of separate commands on PostgreSQL, too.
ON_BOTH = pytest.mark.parametrize("serving", ["sqlite", "postgresql"], indirect=True)


class Serving:
    """
    One home, and the process groups that serve it.

    `talaria serve` leads a process group of its own, so that killing the group kills all of it and nothing else.

    Attributes:
        url: Of its ledger; a file in the home where none is given.
        apart: Services that `start` starts as commands of their own; none: one `talaria serve` for all.
    """

    def __init__(self, folder: Path, *, url: str = "", apart: Sequence[str] = (), **settings: str) -> None:
        self.folder, self.apart = folder, apart
        self.url = url or f"sqlite:///{folder}/home/ledger.db"
        self.dicom_port, self.web_port = free_port(), free_port()
        self.token = os.urandom(24).hex()
        token_file = folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(self.token)
        self.environment = {
            **ENVIRONMENT,
            "TALARIA_HOME": str(folder / "home"),
            "TALARIA_DICOM_HOST": "127.0.0.1",
            "TALARIA_DICOM_PORT": str(self.dicom_port),
            "TALARIA_WEB_PORT": str(self.web_port),
            "TALARIA_ADMIN_TOKEN_FILE": str(token_file),
            "TALARIA_DISK_RESERVE": "16m",
            "TALARIA_LOG_FORMAT": "json",
            **({"TALARIA_DATABASE_URL": url} if url else {}),
            **settings,
        }
        self.log = folder / "talaria.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int:
        """Of the supervisor, and of its process group; of the first command where there are several."""
        return self.processes[0].pid

    def run(self, *arguments: str, code: int = 0, text: str | None = None) -> str:
        """Run a command of `talaria`; what it printed."""
        done = subprocess.run(
            [*TALARIA, *arguments], env=self.environment, input=text, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        assert code == done.returncode, f"talaria {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def json(self, *arguments: str) -> Any:
        """What a command answers as JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def apply(self, rulebook: str) -> None:
        """Make a rulebook run."""
        self.run("apply", "-", text=rulebook)

    def start(self, *services: str) -> None:
        """Start `talaria serve`; returns when it takes associations and answers HTTP, if it is to."""
        self.processes = []
        for command in [(service,) for service in self.apart] if self.apart and not services else [services]:
            self.launch(*command)
        if not services or "receiver" in services:
            until(lambda: self._is_up(self.dicom_port), seconds=60, what="reception")
        if not services or "web" in services:
            until(lambda: self._is_up(self.web_port), seconds=60, what="the pages")

    def launch(self, *services: str) -> int:
        """Start one command beside those that run, and do not wait for it; its process."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*TALARIA, "serve", *services], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process.pid

    def _is_up(self, port: int) -> bool:
        dead = [process for process in self.processes if process.poll() is not None]
        assert not dead, self.log.read_text()[-3000:]
        return answers(port)

    def kill(self) -> None:
        """SIGKILL the whole of every process group, and wait until none of it is left."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(10)
            until(lambda: not _group(process.pid), seconds=10, what="the end of the process group")  # noqa: B023 - at once

    def stop(self) -> int:
        """SIGTERM; its exit code, the worst of several."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        return max(process.wait(40) for process in self.processes)

    def abandon(self) -> None:
        """Leave nothing running."""
        self.kill()

    def api(self, path: str) -> Any:
        """A JSON answer of the API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.web_port}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def send(self, *paths: Path, calling: str = "CT1", code: int = 0) -> dict[str, Any]:
        """`talaria send` to our own receiver; its tally."""
        said = self.run(
            "send", *map(str, paths), "--to", f"127.0.0.1:{self.dicom_port}", "--called", "TALARIA", "--calling",
            calling, "--json", code=code,
        )  # fmt: skip
        tally: dict[str, Any] = json.loads(said[said.index("{") :])
        return tally

    def pids(self, service: str) -> set[int]:
        """Processes of a service that run now, as they say of themselves in the ledger."""
        ledger = Ledger.open(self.url)
        lines = Listing(ledger).workers(since=datetime.now(UTC) - timedelta(minutes=1))
        ledger.close()
        alive = {pid for process in self.processes for pid in _group(process.pid)}
        return {line.pid for line in lines if line.service == service} & alive

    def is_idle(self) -> bool:
        """Whether nothing waits to be written down, routed, processed or delivered any more."""
        if list((self.folder / "home" / "spool" / "new").iterdir()):
            return False
        studies = self.json("studies", "list", "--limit", "500")["items"]
        over = {"done", "failed", "held", "discarded", "cancelled"}
        return all(study["state"] in over for study in studies)

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        """All events of a kind."""
        found: list[Mapping[str, Any]] = []
        after = 0
        while items := self.api(f"/api/v1/events?after={after}&limit=400")["items"]:
            after = items[-1]["id"]
            found += [item for item in items if item["kind"] == kind]
        return found


def _group(leader: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == leader and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


@contextlib.contextmanager
def child(*command: str, port: int, folder: Path) -> Iterator[None]:
    """A server beside ours, up when its port answers."""
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(port), seconds=30, what=command[0])
        assert process.poll() is None, (folder / "server.log").read_text()
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # Orthanc takes its time
            process.kill()
            process.wait()


class Orthanc:
    """An archive that is not ours."""

    def __init__(self, dicom_port: int, http_port: int) -> None:
        self.dicom_port, self._http_port = dicom_port, http_port

    def get(self, path: str) -> bytes:
        """An answer of its REST API."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def files(self) -> dict[str, bytes]:
        """Every instance it has, as a file, by SOP Instance UID."""
        found = {}
        for name in json.loads(self.get("/instances")):
            uid = json.loads(self.get(f"/instances/{name}"))["MainDicomTags"]["SOPInstanceUID"]
            found[uid] = self.get(f"/instances/{name}/file")
        return found


@contextlib.contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Start an Orthanc of its own."""
    folder.mkdir(exist_ok=True)
    peer = Orthanc(free_port(), free_port())
    settings = {
        "Name": "Archive", "StorageDirectory": str(folder), "IndexDirectory": str(folder),
        "DicomAet": "ORTHANC", "DicomPort": peer.dicom_port, "HttpPort": peer._http_port,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True, "OverwriteInstances": True,
        "AcceptedTransferSyntaxes": ["1.2.840.10008.1.*"], "ConcurrentJobs": 1,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with child("/usr/sbin/Orthanc", str(folder / "orthanc.json"), port=peer.dicom_port, folder=folder):
        until(lambda: answers(peer._http_port), seconds=30, what="Orthanc's HTTP")
        yield peer


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's receiver, which keeps what it is sent as it came, in any transfer syntax; its port."""
    port = free_port()
    (folder / "received").mkdir(parents=True)
    command = ("storescp", "+B", "+xa", "-od", str(folder / "received"), str(port))
    with child(*command, port=port, folder=folder):
        yield port
