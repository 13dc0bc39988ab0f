"""What a journal keeps, what of it is left when its process dies, and what nobody can understand."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from talaria import failpoint
from talaria.model.dicom import UID, Instance, Origin, Tags
from talaria.model.errors import NoRoom
from talaria.model.extensions import Outcome, Standing
from talaria.model.job import Event
from talaria.model.result import StepResult
from talaria.store.deliveries import Noted
from talaria.store.journal import Ended, Entry, Journal, Leftover
from talaria.store.results import Made, Output, RunRecord
from talaria.testing import MovedClock

NOW = MovedClock().now()
CT = UID("1.2.840.10008.5.1.4.1.1.2")
OUTPUT = Output(
    instance=Instance(
        id="0" * 26, sop_instance_uid=UID("1.2.3"), sop_class_uid=CT, series_instance_uid=UID("1.2"),
        study_instance_uid=UID("1"), transfer_syntax_uid=UID("1.2.840.10008.1.2.1"), size_bytes=7, sha256="ab" * 32,
        spool="S", received=NOW,
    ),
    tags=Tags({"PatientName": "Prüfkörper^Žofie", "PatientID": None}), flags=("odd",),
)  # fmt: skip
MADE = Made(
    rule="r", send=("x",), keep_inputs=True, origin=Origin(calling_ae="CT1", called_ae="T", address="::1"),
    outputs=(OUTPUT,), found=(StepResult(step=1, module="m", version="1", value='{"a":1}', trouble=""),), time=NOW,
)  # fmt: skip
NOTED = Noted(
    delivery_id="D", job_id=1, attempt=2, time=NOW, seconds=0.5, size_bytes=7,
    found=(Outcome(instance_id="i", standing=Standing.WARNED, detail="a\nb\0\u2028", status=0xB000),),
)  # fmt: skip
RUN = RunRecord(job_id=1, attempt=2, step=1, module="m", code=0, reason="", seconds=1.5, log="line\n", ended=NOW)
END = Ended(
    job_id=1, owner="here/1/1", attempt=2, event=Event.DEFER, reason="gone", due=NOW + timedelta(hours=1), time=NOW
)  # fmt: skip
FINISH = Ended(job_id=1, owner="here/1/1", attempt=2, event=Event.FINISH, reason="", due=None, time=NOW, made=MADE)
ALL: tuple[Entry, ...] = (NOTED, RUN, END, FINISH)


def journal_of(folder: Path) -> Journal:
    return Journal(folder / "journal", clock=MovedClock().now)


def written(folder: Path, *entries: Entry) -> Path:
    """A journal that its process left behind."""
    journal = journal_of(folder)
    for entry in entries:
        journal.append(entry)
    journal.close()
    (path,) = (folder / "journal").glob("*.journal")
    return path


def left(folder: Path) -> list[Leftover]:
    with journal_of(folder).left() as found:
        assert found is not None
        return list(found)


def test_entries_come_back_as_they_were(tmp_path: Path) -> None:
    """
    Whoever comes next finds every entry, in order, whole.
    """
    written(tmp_path, *ALL)
    (leftover,) = left(tmp_path)

    assert (ALL, "") == (leftover.entries, leftover.damage)


def test_file_is_for_its_owner_and_group(tmp_path: Path) -> None:
    """
    A journal names patients as the ledger does, and is as private.
    """
    assert 0o640 == written(tmp_path, END).stat().st_mode & 0o777


def test_nothing_waits_nothing_is_left(tmp_path: Path) -> None:
    """
    There is no file before the first entry, an empty one when the ledger has all, and none after an end in good order.
    """
    journal = journal_of(tmp_path)
    assert not (tmp_path / "journal").exists()
    for entry in ALL:
        journal.append(entry)
    for entry in ALL:
        journal.drop(entry)
    (path,) = (tmp_path / "journal").glob("*.journal")

    assert (0, True) == (path.stat().st_size, journal.is_empty)
    journal.close()
    assert not path.exists()


def test_living_process_keeps_its_journal(tmp_path: Path) -> None:
    """
    A journal whose process lives is nobody else's.
    """
    journal = journal_of(tmp_path)
    journal.append(END)

    assert [] == left(tmp_path)
    journal.close()
    assert 1 == len(left(tmp_path))


def test_one_at_a_time(tmp_path: Path) -> None:
    """
    While somebody is at what the dead left, another one is told so.
    """
    written(tmp_path, END)
    with journal_of(tmp_path).left() as first, journal_of(tmp_path).left() as second:
        assert first is not None
        assert second is None


@pytest.mark.parametrize("missing", [1, 5, 30])
def test_torn_last_line_is_left_out(tmp_path: Path, missing: int) -> None:
    """
    A line that was being written when its process died promised nothing; those before it are whole.
    """
    path = written(tmp_path, NOTED, RUN, END)
    os.truncate(path, path.stat().st_size - missing)
    (leftover,) = left(tmp_path)

    kept = leftover.entries if missing > 1 else leftover.entries[:2]  # a line without its end says all it has to
    assert ((NOTED, RUN), "") == (kept, leftover.damage)


def test_every_prefix_is_understood(tmp_path: Path) -> None:
    """
    Wherever the file ends, what is whole before that is found, and nothing is taken for damage.
    """
    path = written(tmp_path, NOTED, RUN, END)
    data = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(data) if byte == ord("\n")]
    for length in range(len(data)):
        found = Leftover(path, data[:length])
        whole = sum(end - 1 <= length for end in ends)
        assert ((NOTED, RUN, END)[:whole], "") == (found.entries, found.damage)


def test_damage_keeps_outcomes_and_drops_ends(tmp_path: Path) -> None:
    """
    After a line that nobody understands outcomes still count, but no end: what went before it is not known.
    """
    path = written(tmp_path, RUN, NOTED, NOTED, END)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"warned", b"failed")
    found = Leftover(path, b"".join(lines))

    assert ((RUN, NOTED), "line 2 cannot be understood") == (found.entries, found.damage)


def test_kind_that_is_not_known_is_damage(tmp_path: Path) -> None:
    """
    What a later version wrote is not understood, and not taken for anything else.
    """
    path = written(tmp_path, NOTED, END)
    found = Leftover(path, b'24 d7b6c8a0e2ac2ce6 {"kind":"x","entry":{}}\n' + path.read_bytes())

    assert ((NOTED,), "line 1 cannot be understood") == (found.entries, found.damage)


def test_set_aside_is_kept_and_not_found_again(tmp_path: Path) -> None:
    """
    What was set aside lies there for people, byte for byte, and nobody replays it.
    """
    path = written(tmp_path, *ALL)
    data = path.read_bytes()
    (leftover,) = left(tmp_path)
    aside = leftover.set_aside()

    assert (data, []) == (aside.read_bytes(), left(tmp_path))


def test_full_disk_is_told_and_made_good(tmp_path: Path) -> None:
    """
    An entry that cannot be synced is told, waits in memory, and is written with the next.
    """
    journal = journal_of(tmp_path)
    journal.append(NOTED)
    failpoint.arm("journal.entry.written=enospc")
    with pytest.raises(NoRoom, match="cannot be written: No space left on device"):
        journal.append(RUN)
    failpoint.arm("")
    journal.append(END)
    assert (NOTED, RUN, END) == journal.entries()
    journal.close()

    assert (NOTED, RUN, END) == left(tmp_path)[0].entries


@pytest.mark.parametrize("point", ["file.named", "entry.written", "entry.synced", "file.emptied"])
def test_killed_at_any_point(tmp_path: Path, point: str) -> None:
    """
    Whenever its process is killed, a journal has every entry that was promised, and can be read.
    """
    pid = os.fork()
    if not pid:
        try:
            failpoint.arm(f"journal.{point}=kill")
            journal = journal_of(tmp_path)
            journal.append(NOTED)
            journal.drop(NOTED)
        finally:
            os._exit(1)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    (leftover,) = left(tmp_path)

    expected = (NOTED,) if point.startswith("entry") else ()
    assert (expected, "") == (leftover.entries, leftover.damage)
