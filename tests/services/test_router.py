"""The router when the clock is set back, and when an old rulebook cannot be read any more."""

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestra import Orchestra
from talaria.services.router import Router
from talaria.store.cases import Cases
from talaria.store.schema import cases
from talaria.testing import FailingTarget, synthetic_ct

SECOND = timedelta(seconds=1)
QUIETS = "settings: {series_quiet: 10s, study_quiet: 40s}\n"


def states(orchestra: Orchestra) -> dict[str, str]:
    """The state of each case, by its rule."""
    with orchestra.ledger.reading() as connection:
        return dict(connection.execute(sa.select(cases.c.rule, cases.c.state)).all())  # type: ignore[arg-type]  # pairs


def arrived(folder: Path) -> int:
    return len(list(folder.rglob("*#*.dcm")))


@pytest.mark.parametrize("trigger", ["series", "study"])
@pytest.mark.parametrize("step", [timedelta(hours=6), timedelta(days=400)], ids=str)
def test_clock_set_back_stops_no_routing(tmp_path: Path, step: timedelta, trigger: str) -> None:
    """
    What came before the clock was set back is routed within the hour, when its quiet time was watched.
    """
    (tmp_path / "out").mkdir()
    orchestra = Orchestra(tmp_path)
    passed = [timedelta(0)]
    orchestra.router = Router(
        cases=Cases(orchestra.ledger), rulebooks=orchestra.rulebooks, uptime=lambda: passed[0]
    )  # fmt: skip
    orchestra.workers[0] = orchestra.router
    orchestra.apply(
        QUIETS + f"targets: {{out: {{kind: folder, path: {tmp_path}/out}}}}\n"
        f"rules: {{all: {{when: 'True', trigger: {trigger}, send: [out]}}}}"
    )
    orchestra.receive(synthetic_ct(tmp_path / "ct", slices=2, side=16).paths)
    orchestra.clock.move(-step)
    for _ in range(70):
        orchestra.clock.move(timedelta(minutes=1))
        passed[0] += timedelta(minutes=1)
        orchestra.step()

    assert 2 == arrived(tmp_path / "out")


def test_old_revision_that_cannot_be_read_stops_no_other_rule(tmp_path: Path) -> None:
    """
    A case under a rulebook whose plug is gone is held with the reason, and every other rule acts on the series.
    """
    for name in ("out", "new"):
        (tmp_path / name).mkdir()
    out, new = (f"{name}: {{kind: folder, path: {tmp_path}/{name}}}" for name in ("out", "new"))
    odd = f"odd: {{kind: failing, journal: {tmp_path}/journal}}"
    images = synthetic_ct(tmp_path / "ct", slices=2, side=16).paths
    first = Orchestra(tmp_path, targets={"failing": FailingTarget})
    first.apply(
        QUIETS + f"targets: {{{odd}, {out}}}\nrules:\n  a: {{when: 'True', send: [out]}}\n"
        "  s: {when: 'True', trigger: study, send: [out]}\n  late: {when: 'False', send: [out], complete: {quiet: 1h}}"
    )
    first.receive(images[:1])
    first.wait(20 * SECOND)
    second = Orchestra(tmp_path)
    second.clock.move(first.clock.now() - second.clock.now())
    second.apply(
        QUIETS + f"targets: {{{out}, {new}}}\nrules:\n  a: {{when: 'True', send: [out]}}\n"
        "  c: {when: 'True', send: [new], complete: {quiet: 1h}}"
    )
    second.receive(images[1:])
    second.wait(timedelta(hours=2), step=timedelta(minutes=1))

    assert 2 == arrived(tmp_path / "new")
    assert {"a": "held", "s": "held", "c": "closed"} == states(second)
    assert None is second.router._cases.next_due()
