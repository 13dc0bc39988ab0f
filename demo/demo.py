"""The main job, once, on this machine: two synthetic studies in over DICOM, out to a folder and to a second node."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.testing import synthetic_ct, synthetic_mr

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 50.0
TALARIA = [sys.executable, "-m", "talaria"]


@dataclass(frozen=True)
class Arrived:
    """One line of the table."""

    study: str
    what: str
    target: str
    state: str
    images: str
    seconds: str


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def talaria(environment: Mapping[str, str], *arguments: str) -> str:
    """Run a command; what it printed."""
    done = subprocess.run([*TALARIA, *arguments], env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"talaria {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def ask(base: str, token: str, path: str) -> Any:
    """A JSON answer of the API."""
    request = urllib.request.Request(f"{base}{path}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def wait_until_ready(base: str, dicom_port: int, log: Path) -> None:
    """Until the pages answer and DICOM associations are accepted."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{base}/health/live", timeout=2):
                socket.create_connection(("127.0.0.1", dicom_port), timeout=2).close()
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"Talaria did not start within {TIMEOUT_SECONDS:.0f} s; its log:\n{log.read_text()[-4000:]}")


def deliveries_when_done(base: str, token: str, studies: Sequence[str], expected: int) -> list[dict[str, Any]]:
    """All deliveries of these studies, when none is under way any more or the time is over."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    found: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        items = ask(base, token, "/api/v1/deliveries?limit=100")["items"]
        found = [item for item in items if item["study_uid"] in studies]
        if len(found) >= expected and all(item["state"] in {"done", "failed", "held"} for item in found):
            break
        time.sleep(0.2)
    return found


def print_table(lines: Sequence[Arrived]) -> None:
    """Aligned columns."""
    rows = [("STUDY", "WHAT", "TARGET", "STATE", "IMAGES", "SECONDS")]
    rows += [(line.study, line.what, line.target, line.state, line.images, line.seconds) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start something in a process group of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)


def main() -> int:
    """Run it; 0 when everything arrived everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running")
    keep = parser.parse_args().keep
    began = time.monotonic()
    demo = Demo(Path(tempfile.mkdtemp(prefix="talaria-demo-")))
    good = False
    try:
        link = demo.start()
        good = demo.run()
        print(
            f"\n{'Everything arrived' if good else 'NOT everything arrived'}, {time.monotonic() - began:.0f} s in all."
        )
        if not good:
            print(f"The log is {demo.log}.")
        if keep:
            print(f"\nIt goes on running in {demo.root}. Sign in once:\n  {link}")
            print(f"Send it more:\n  {' '.join(TALARIA)} send FOLDER --to 127.0.0.1:{demo.dicom_port} --called TALARIA")
            print(f"Stop it:\n  kill -TERM {' '.join(f'-{process.pid}' for process in demo.processes)}")
        else:
            print(f"The page was {demo.base}/ ; `make demo KEEP=1` leaves it running.")
    finally:
        if not keep:
            demo.stop()
    return 0 if good else 1


class Demo:
    """Talaria and a second node in a temporary folder, on free ports."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "talaria.log"
        self.dicom_port, self.node_port, self.web_port = free_port(), free_port(), free_port()
        self.base = f"http://127.0.0.1:{self.web_port}"
        self.token = os.urandom(24).hex()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("TALARIA_")},
            "TALARIA_HOME": str(root / "home"),
            "TALARIA_DICOM_HOST": "127.0.0.1",
            "TALARIA_DICOM_PORT": str(self.dicom_port),
            "TALARIA_WEB_PORT": str(self.web_port),
            "TALARIA_ADMIN_TOKEN_FILE": str(root / "token"),
            "TALARIA_DISK_RESERVE": "64m",
        }

    def start(self) -> str:
        """Set a home up and start everything; the link to sign in by."""
        (self.root / "archive").mkdir()
        (self.root / "token").touch(mode=0o600)
        (self.root / "token").write_text(self.token)
        text = (HERE / "rulebook.yaml").read_text()
        text = text.replace("FOLDER", str(self.root / "archive")).replace("PORT", str(self.node_port))
        (self.root / "rulebook.yaml").write_text(text)
        link = talaria(self.environment, "init").split()[-1]
        talaria(self.environment, "apply", str(self.root / "rulebook.yaml"))
        node = [sys.executable, str(HERE / "node.py"), str(self.root / "second-node"), str(self.node_port)]
        self.processes.append(start(node, self.environment, self.root / "second-node.log"))
        self.processes.append(start([*TALARIA, "serve"], self.environment, self.log))
        wait_until_ready(self.base, self.dicom_port, self.log)
        return link

    def stop(self) -> None:
        """Stop everything that was started."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            process.wait(30)

    def run(self) -> bool:
        """Send both studies, wait, compare; whether everything arrived."""
        ct, mr = synthetic_ct(self.root / "ct", seed=1, slices=12), synthetic_mr(self.root / "mr", seed=2, slices=8)
        for what, study, calling in (("chest CT, 12 images", ct, "CT1"), ("head MR, 8 images", mr, "MR1")):
            to = f"127.0.0.1:{self.dicom_port}"
            folder = str(study.paths[0].parent)
            said = talaria(self.environment, "send", folder, "--to", to, "--called", "TALARIA", "--calling", calling)
            print(f"sent over C-STORE: {what:20} {said.strip()}")
        studies = [ct.study_instance_uid, mr.study_instance_uid]
        found = deliveries_when_done(self.base, self.token, studies, expected=6)
        jobs = {item["id"]: item for item in ask(self.base, self.token, "/api/v1/jobs?limit=100")["items"]}
        print()
        print_table([line(item, jobs[item["job_id"]], ct=ct.study_instance_uid) for item in reversed(found)])
        in_folder = len(list((self.root / "archive").rglob("*.dcm")))
        at_node = len(list((self.root / "second-node").glob("*.dcm")))
        expected = 2 * len(ct.paths) + len(mr.paths)
        print(f"\n{in_folder} of {expected} images in the folder, {at_node} of {expected} at the second node.")
        done = len(found) == 6 and all(item["state"] == "done" and item["sent"] == item["total"] for item in found)
        return done and in_folder == expected == at_node


def line(delivery: Mapping[str, Any], job: Mapping[str, Any], *, ct: str) -> Arrived:
    """One delivery as a line of the table."""
    is_ct = delivery["study_uid"] == ct
    result = "results of 'label'" if job.get("parent") else "originals"
    return Arrived(
        study="chest CT" if is_ct else "head MR",
        what=result,
        target=delivery["target"],
        state=delivery["state"],
        images=f"{delivery['sent']}/{delivery['total']}",
        seconds=f"{delivery['seconds']:.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
