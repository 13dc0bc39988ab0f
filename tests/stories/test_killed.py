"""Killed in the middle, again and again: what was acknowledged is delivered, with no hand on it."""

import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestra import data_sets, files_of
from serving import ON_BOTH, Serving, until
from talaria.dimse.command import Meaning
from talaria.dimse.files import Found, find_instances
from talaria.dimse.scu import Peer, Sender
from talaria.model.dicom import AETitle
from talaria.model.errors import TalariaError
from talaria.testing import synthetic_ct

pytestmark = pytest.mark.server

#: Of one process group on SQLite, and of nine on PostgreSQL, whose every start takes nine times as long.
KILLS, KILLS_APART = 10, 4


class LedgerSender(threading.Thread):
    """Sends files over one association until it breaks; writes down, synced, what was acknowledged."""

    def __init__(self, port: int, files: Sequence[Path], ledger: Path) -> None:
        super().__init__(name="ledger-sender")
        self._port, self._files, self._ledger = port, files, ledger
        self.acknowledged: list[Path] = []

    def run(self) -> None:
        """Send until the end of the files or of the peer."""
        found = [item for item in find_instances(self._files) if isinstance(item, Found)]
        peer = Peer(host="127.0.0.1", port=self._port, called_ae=AETitle("TALARIA"), calling_ae=AETitle("CT1"))
        descriptor = os.open(self._ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            with Sender(peer, [found[0].context]) as sender:
                for item in found:
                    result = sender.store(item.path, context=item.context, sop_instance_uid=item.meta.sop_instance_uid)
                    if result.meaning is Meaning.STORED:
                        os.write(descriptor, f"{item.meta.sop_instance_uid}\n".encode())
                        os.fdatasync(descriptor)
                        self.acknowledged.append(item.path)
        except TalariaError:
            pass  # the peer was killed: that is the point
        finally:
            os.close(descriptor)


def rulebook(folder: Path) -> str:
    """Every image through a module; results and originals into a folder."""
    return f"""
settings: {{series_quiet: 1s}}
targets:
  share: {{kind: folder, path: {folder}/out, retry: {{first: 1s, most: 2s}}}}
modules:
  same: {{builtin: pass}}
rules:
  all: {{when: "True", action: process, process: [same], keep_inputs: true, send: [share]}}
"""


def kill_in_mid_transfer(serving: Serving, number: int, chance: random.Random, *, slices: int) -> list[Path]:
    """Start everything, send with two senders, kill all process groups at some moment; what was acknowledged."""
    serving.start()
    senders = []
    for which in range(2):
        folder = serving.folder / f"in-{number}-{which}"
        files = synthetic_ct(folder, seed=100 * number + which, slices=slices, side=64).paths
        senders.append(LedgerSender(serving.dicom_port, files, serving.folder / "acknowledged"))
    for sender in senders:
        sender.start()
    time.sleep(chance.uniform(0.1, 2.0))  # the moment of the kill is what is tried here
    serving.kill()
    for sender in senders:
        sender.join(30)
    return [path for sender in senders for path in sender.acknowledged]


def all_arrives(serving: Serving, acknowledged: Sequence[Path]) -> None:
    """After a last start everything acknowledged is delivered, byte for byte, and no job has failed."""
    serving.start()
    until(serving.is_idle, seconds=240, what="the deliveries")
    delivered = files_of(serving.folder / "out")
    expected = data_sets(acknowledged)

    assert {} == {uid: "lost" for uid in expected if uid not in delivered}
    assert expected == {uid: delivered[uid] for uid in expected}
    assert [] == serving.json("jobs", "list", "--state", "failed")["items"]
    assert [] == serving.json("jobs", "list", "--state", "held")["items"]
    assert 0 == serving.stop()


@ON_BOTH
def test_killed_many_times_in_mid_transfer_loses_nothing(tmp_path: Path, serving: Serving) -> None:
    """
    All process groups are killed again and again at random moments while two senders send; after the last restart
    every acknowledged instance is in the folder, byte for byte, and no job has failed.
    """
    chance = random.Random(20260105)
    (tmp_path / "out").mkdir()
    serving.apply(rulebook(tmp_path))
    acknowledged: list[Path] = []
    for number in range(KILLS_APART if serving.apart else KILLS):
        acknowledged += kill_in_mid_transfer(serving, number, chance, slices=150)

    assert len(acknowledged) > 50
    all_arrives(serving, acknowledged)


@pytest.mark.soak
@ON_BOTH
def test_killed_for_as_long_as_it_is_given_loses_nothing(tmp_path: Path, serving: Serving) -> None:
    """
    The same for `TALARIA_SOAK_MINUTES`, with a look at everything after each hundred kills; prints what was counted.
    """
    minutes = float(os.environ.get("TALARIA_SOAK_MINUTES", "60"))
    seed = int(os.environ.get("TALARIA_SOAK_SEED", str(time.time_ns())))
    chance = random.Random(seed)
    (tmp_path / "out").mkdir()
    serving.apply(rulebook(tmp_path))
    acknowledged: list[Path] = []
    kills = 0
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        acknowledged += kill_in_mid_transfer(serving, kills, chance, slices=400)
        kills += 1
        if kills % 100 == 0:
            all_arrives(serving, acknowledged)
    all_arrives(serving, acknowledged)
    print(f"\nseed {seed}: {kills} kills, {len(acknowledged)} acknowledged, 0 lost")
