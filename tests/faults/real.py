"""A real `talaria serve` that is armed, one fail point after the other, while small studies go all the way."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from checker import Checker, Counts
from ledger_scu import Freight, LedgerSCU, freight_of
from stage import Pool

from serving import Serving, until
from sink import Sink
from talaria.model.job import State
from talaria.store.ledger import Ledger
from talaria.store.schema import cases, instances, jobs, series

RULEBOOK = """\
settings: {{series_quiet: 1s, study_quiet: 1s, retention: {{done: 1s, discarded: 1s}}}}
targets:
  share: {{kind: folder, path: {folder}/out, retry: {{first: 1s, most: 2s}}}}
  results: {{kind: dicom, host: 127.0.0.1, port: {port}, called_ae: SINK, calling_ae: RESULTS,
    retry: {{first: 1s, most: 2s}}}}
modules:
  same: {{builtin: pass}}
rules:
  plain: {{when: tags.SenderAET == "CT1", action: route, send: [share]}}
  made: {{when: tags.SenderAET == "CT1", action: process, process: [same], send: [results]}}
  whole: {{when: tags.SenderAET == "STUDY", trigger: study, action: route, send: [share, results]}}
"""

#: Of whose states nothing more comes by itself.
_OVER = ("done", "failed", "held", "cancelled")


@dataclass
class Real:
    """A served home, a sender, the far ends, and the file that arms points."""

    serving: Serving
    far_end: Sink
    pool: Pool
    used: int = 0
    kills: int = 0
    waiting: list[Freight] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.serving.folder

    @property
    def spool(self) -> Path:
        """Where the images lie."""
        return Path(self.serving.environment.get("TALARIA_SPOOL", str(self.folder / "home" / "spool")))

    @property
    def faults(self) -> Path:
        """What is armed."""
        return self.folder / "armed"

    def prepare(self) -> None:
        """A home with a rulebook, as a test build."""
        (self.folder / "out").mkdir()
        self.serving.environment |= {"TALARIA_TEST_BUILD": "1", "TALARIA_FAILPOINTS": str(self.faults)}
        self.serving.run("init")
        self.serving.apply(RULEBOOK.format(folder=self.folder, port=self.far_end.port))

    def arm(self, *entries: str) -> None:
        """Arm points, all of them or none."""
        for mark in self.folder.glob("armed.*.fired"):
            mark.unlink()
        fresh = self.folder / "fresh"
        fresh.write_text(",".join(entries))
        os.rename(fresh, self.faults)

    def has_fired(self, entry: str) -> bool:
        """Whether a point, `SERVICE:NAME` as it was armed, has acted."""
        return Path(f"{self.faults}.{entry}.fired").exists()

    def send(self, *, calling_ae: str = "CT1", studies: int = 1, repeats: bool = False) -> list[Freight]:
        """Send fresh studies, and what was not acknowledged before; what was not this time either."""
        if calling_ae == "CT1":
            for number in range(self.used, self.used + studies):
                self.waiting += freight_of(self.pool.study(number))
            self.used += studies
            sent = list(self.waiting)
            self.waiting = self.scu().send(self.waiting)
            if repeats:
                self.scu().send(sent)
            return self.waiting
        fresh = freight_of(self.pool.study(self.used))
        self.used += 1
        while fresh:
            fresh = self.scu(calling_ae).send(fresh)
        return fresh

    def scu(self, calling_ae: str = "CT1") -> LedgerSCU:
        """A sender."""
        return LedgerSCU(self.serving.dicom_port, self.folder / "books", calling_ae=calling_ae)

    def settle(self, *, seconds: float = 30) -> float:
        """Until all that was sent is acknowledged and everywhere; how long it took."""
        began = time.monotonic()
        while self.waiting:
            self.waiting = self.scu().send(self.waiting)
            assert time.monotonic() - began < seconds, "it takes no images"
            time.sleep(0.05 if self.waiting else 0)
        with self.opened() as ledger:
            until(lambda: self._is_idle(ledger), seconds=seconds, what="rest")
        return time.monotonic() - began

    @contextlib.contextmanager
    def opened(self) -> Iterator[Ledger]:
        """The ledger, from outside."""
        ledger = Ledger.open(self.serving.url)
        try:
            yield ledger
        finally:
            ledger.close()

    def count(self, state: State) -> int:
        """Jobs that stand so."""
        with self.opened() as ledger, ledger.reading() as connection:
            found = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == state)
            return int(connection.execute(found).scalar_one())

    def _is_idle(self, ledger: Ledger) -> bool:
        if any((self.spool / "new").iterdir()):
            return False
        with ledger.reading() as connection:
            open_jobs = sa.select(jobs.c.id).where(jobs.c.state.not_in(_OVER)).limit(1)
            due_series = sa.select(series.c.id).where(series.c.due.is_not(None)).limit(1)
            due_cases = sa.select(cases.c.id).where(cases.c.due.is_not(None)).limit(1)
            some = sa.select(instances.c.id).limit(1)
            return connection.execute(some).first() is not None and not any(
                connection.execute(question).first() for question in (open_jobs, due_series, due_cases)
            )

    def check(self) -> Counts:
        """Everything at its place."""
        return Checker(
            home=self.folder / "home", url=self.serving.url, books=self.folder / "books",
            folders=[self.folder / "out"], journals=[self.far_end.copies()], spool=self.spool,
        ).check()  # fmt: skip
