"""What people decide, told on a whole orchestrator: other ways for cases, pauses, and images from files."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestra import Orchestra, data_sets, files_of
from talaria.model.errors import Overtaken, Refused
from talaria.model.job import Event, Kind, Priority, State
from talaria.model.plan import route_study
from talaria.store.cases import Cases
from talaria.store.operations import Operations
from talaria.store.schema import cases, events, jobs, series
from talaria.store.selection import Selection
from talaria.testing import synthetic_ct

MINUTE = timedelta(minutes=1)
HEAD = "settings: {series_quiet: 10s, study_quiet: 40s}\n"
NEVER = "  never: {when: 'False', send: [out]}\n"
WHOLE = "  whole: {when: 'False', trigger: study, send: [out], priority: urgent}\n"
WORK = "  work: {when: 'False', action: process, process: [copy], send: [out]}\n"
BROKEN = "  broken: {when: 'int(tags.Modality) > 1', send: [out]}\n"
ALWAYS = "  always: {when: 'True', send: [out]}\n"
BIN = "  bin: {when: 'False', action: discard}\n"


class Stage:
    """An orchestrator with two folders to deliver to, and a person."""

    def __init__(self, home: Path, url: str = "") -> None:
        self.home = home
        for name in ("out", "other"):
            (home / name).mkdir()
        self.orchestra = Orchestra(home, url=url)
        self.operations = Operations(self.orchestra.ledger, self.orchestra.rulebooks)

    def apply(self, *rules: str) -> None:
        """Let rules run."""
        targets = "".join(f"  {name}: {{kind: folder, path: {self.home}/{name}}}\n" for name in ("out", "other"))
        book = f"{HEAD}targets:\n{targets}modules: {{copy: {{builtin: pass}}}}\nrules:\n{''.join(rules)}"
        self.orchestra.apply(book)

    def images(self, name: str = "a", *, slices: int = 3) -> list[Path]:
        """Files of a new study of one series."""
        return list(synthetic_ct(self.home / name, slices=slices, side=16).paths)

    def receive(self, paths: list[Path]) -> str:
        """Let them arrive and be asked about; the study's UID."""
        self.orchestra.receive(paths)
        self.orchestra.wait(2 * MINUTE)
        return self.study()

    def study(self) -> str:
        """The UID of the study that was heard of last."""
        return self.orchestra.listing.studies().items[0].study_uid

    def route(self, study_uid: str, rule: str) -> tuple[int, ...]:
        """Take it to a rule, and let that be done."""
        made = self.operations.route(study_uid, rule, actor="ada", now=self.orchestra.clock.now())
        self.orchestra.wait(MINUTE)
        return made

    def arrived(self, name: str = "out") -> dict[str, bytes]:
        """What a folder has."""
        return files_of(self.home / name)

    def cases(self) -> dict[str, tuple[str, str]]:
        """State and reason of each case, by its rule."""
        with self.orchestra.ledger.reading() as connection:
            rows = connection.execute(sa.select(cases.c.rule, cases.c.state, cases.c.reason).order_by(cases.c.id))
            return {row.rule: (row.state, row.reason) for row in rows}

    def told(self, kind: str) -> list[str]:
        """Who did what an event says, each time."""
        with self.orchestra.ledger.reading() as connection:
            return list(connection.execute(sa.select(events.c.actor).where(events.c.kind == kind)).scalars())


@pytest.fixture
def stage(tmp_path: Path, ledger_url: str) -> Stage:
    return Stage(tmp_path, ledger_url)


# -- to a chosen rule --


@pytest.mark.parametrize(("rule", "name"), [(NEVER, "never"), (WHOLE, "whole"), (WORK, "work")])
def test_discarded_case_is_taken_to_a_rule(stage: Stage, rule: str, name: str) -> None:
    """
    What no rule took goes where a person says, whatever the rule says of it; the discarded case is over.
    """
    stage.apply(rule)
    images = stage.images()
    study = stage.receive(images)
    assert ("discarded", "no rule matched") == stage.cases()[""]
    made = stage.route(study, name)

    assert 1 == len(made)
    assert data_sets(images) == stage.arrived()
    assert ("closed", f"routed to rule '{name}' by ada") == stage.cases()[""]
    assert "done" == stage.orchestra.listing.study(study).line.state
    assert ["ada"] == stage.told("study.routed" if name == "whole" else "series.routed")


def test_priority_is_that_of_the_rule(stage: Stage) -> None:
    """
    What is taken to a rule goes as soon as the rule's own.
    """
    stage.apply(WHOLE)
    (job_id,) = stage.route(stage.receive(stage.images()), "whole")

    assert Priority.URGENT is stage.orchestra.jobs.show(job_id).priority


def test_held_case_is_released_by_another_way(stage: Stage) -> None:
    """
    A rule in error holds its case; taken to another rule it is over, and late images do not come back to it.
    """
    stage.apply(BROKEN, NEVER)
    images = stage.images(slices=4)
    study = stage.receive(images[:3])
    assert "held" == stage.cases()["broken"][0]
    stage.route(study, "never")
    stage.receive(images[3:])

    assert ("closed", "routed to rule 'never' by ada") == stage.cases()["broken"]
    assert data_sets(images) == stage.arrived()
    assert 2 == len(stage.orchestra.listing.jobs().items)


def test_finished_case_is_taken_to_another_rule(stage: Stage) -> None:
    """
    What went one way goes another as well; a target that has the originals is named and gets no second job.
    """
    stage.apply(ALWAYS, "  both: {when: 'False', send: [out, other]}\n")
    images = stage.images()
    study = stage.receive(images)
    made = stage.operations.route(study, "both", actor="ada", now=stage.orchestra.clock.now())
    stage.orchestra.wait(MINUTE)

    assert (1, ("out",)) == (len(made), made.there)
    assert data_sets(images) == stage.arrived("other")


def test_rule_that_has_it_refuses_and_says_what_to_do(stage: Stage) -> None:
    """
    The same rule again is refused with the job to restart; new images that it has not yet are taken.
    """
    stage.apply(NEVER)
    images = stage.images(slices=4)
    study = stage.receive(images[:3])
    (job_id,) = stage.route(study, "never")
    with pytest.raises(Refused, match=rf"\(job {job_id}, done\); `talaria jobs restart {job_id}` does it again"):
        stage.route(study, "never")
    stage.orchestra.receive(images[3:])
    made = stage.route(study, "never")

    assert (1, data_sets(images)) == (len(made), stage.arrived())


def test_study_rule_that_has_it_refuses(stage: Stage) -> None:
    """
    A study case that has all is not made twice; a late image is taken at once.
    """
    stage.apply(WHOLE)
    images = stage.images(slices=4)
    study = stage.receive(images[:3])
    stage.route(study, "whole")
    with pytest.raises(Refused, match="rule 'whole' has all of the study already"):
        stage.route(study, "whole")
    stage.orchestra.receive(images[3:])

    assert 1 == len(stage.route(study, "whole"))
    assert data_sets(images) == stage.arrived()


def test_series_that_still_arrives_is_taken_now(stage: Stage) -> None:
    """
    A person need not wait for the quiet time; what comes after is a supplement, and the other rules are asked as ever.
    """
    stage.apply("  other: {when: 'True', send: [other]}\n", NEVER)
    images = stage.images()
    stage.orchestra.receive(images[:2])
    stage.route(stage.study(), "never")
    stage.orchestra.receive(images[2:])
    stage.orchestra.wait(MINUTE)

    assert data_sets(images) == stage.arrived() == stage.arrived("other")


def test_discarding_rule_discards(stage: Stage) -> None:
    """
    Taken to a rule that discards, a study is discarded, and what comes late with it.
    """
    stage.apply(BROKEN, BIN)
    images = stage.images()
    study = stage.receive(images[:2])

    assert () == stage.route(study, "bin")
    stage.receive(images[2:])
    assert ("discarded", "discarded: routed to rule 'bin' by ada") == stage.cases()["bin"]
    assert ("closed", {}) == (stage.cases()["broken"][0], stage.arrived())


@pytest.mark.parametrize(
    ("study", "rule", "said"),
    [
        ("", "nevr", "rule 'nevr' is not in revision 1 of the rulebook, which runs"),
        ("1.2.3", "never", "no study 1.2.3 is known here; `talaria studies list` shows all"),
    ],
)
def test_what_is_not_there_is_refused(stage: Stage, study: str, rule: str, said: str) -> None:
    """
    A rule or study that is not there is named.
    """
    stage.apply(NEVER)
    found = stage.receive(stage.images())

    with pytest.raises(Refused) as refusal:
        stage.route(study or found, rule)
    assert str(refusal.value).startswith(said)


def test_files_that_are_gone_are_told(stage: Stage) -> None:
    """
    What retention has removed can be taken nowhere; it says to send it again.
    """
    stage.apply(NEVER)
    study = stage.receive(stage.images())
    with stage.orchestra.ledger.writing("test.drop") as connection:
        connection.execute(sa.update(series).values(dropped=stage.orchestra.clock.now()))

    for act in (lambda: stage.route(study, "never"), lambda: send(stage, study, "out")):
        with pytest.raises(Refused, match="were removed by retention; send it again, or import it"):
            act()


def test_arrival_overtakes_a_choice(stage: Stage) -> None:
    """
    What was looked at before something arrived is not acted on: the whole is looked at again.
    """
    stage.apply(WHOLE)
    images = stage.images()
    study = stage.receive(images[:2])
    store, now = Cases(stage.orchestra.ledger), stage.orchestra.clock.now()
    book = stage.orchestra.rulebooks.running()
    view = store.chosen_view(list(store.received(study)), "whole", revision=1)
    plan = route_study(view, book.rule("whole"), book=book, actor="ada")
    stage.orchestra.receive(images[2:])

    with pytest.raises(Overtaken):
        store.apply_chosen(view, plan, revision=1, actor="ada", now=now)
    assert 1 == len(stage.route(study, "whole"))
    assert data_sets(images) == stage.arrived()


@pytest.mark.parametrize("rule", ["never", "whole", "work"])
def test_two_people_at_once_make_one_job(stage: Stage, rule: str) -> None:
    """
    Of two who choose the same way at once one makes the job, and the other is told so.
    """
    stage.apply(NEVER, WHOLE, WORK)
    study = stage.receive(stage.images())
    now = stage.orchestra.clock.now()

    def choose(who: str) -> int:
        try:
            return len(stage.operations.route(study, rule, actor=who, now=now))
        except Refused:
            return 0

    with ThreadPoolExecutor(2) as people:
        made = sorted(people.map(choose, ["ada", "bob"]))

    assert [0, 1] == made
    assert 1 == len(stage.orchestra.listing.jobs().items)


# -- back to the rules --


def test_release_asks_the_rules_again(stage: Stage) -> None:
    """
    A corrected rulebook takes what the broken one held, once a person says so.
    """
    stage.apply(BROKEN)
    images = stage.images()
    study = stage.receive(images)
    stage.apply("  broken: {when: 'True', send: [out]}\n")
    found = stage.operations.release(study, actor="ada", now=stage.orchestra.clock.now())
    stage.orchestra.wait(MINUTE)

    assert (1, data_sets(images)) == (len(found), stage.arrived())
    assert "closed" == stage.cases()["broken"][0]
    with pytest.raises(Refused, match=r"nothing of study .* waits for a decision"):
        stage.operations.release(study, actor="ada", now=stage.orchestra.clock.now())


def test_release_of_what_no_rule_takes_discards(stage: Stage) -> None:
    """
    Asked again, a rule that says no leaves the series discarded, as it would have been.
    """
    stage.apply(BROKEN, ALWAYS.replace("True", "False"))
    study = stage.receive(stage.images())
    stage.apply("  broken: {when: 'False', send: [out]}\n")
    stage.operations.release(study, actor="ada", now=stage.orchestra.clock.now())
    stage.orchestra.wait(MINUTE)

    assert {"broken": "closed", "": "discarded"} == {rule: state for rule, (state, _) in stage.cases().items()}


def test_released_rule_does_not_bother_those_that_acted(stage: Stage) -> None:
    """
    A rule that took the series before is not asked again: nothing is processed or sent twice.
    """
    stage.apply("  done: {when: 'True', action: process, process: [copy], send: [other]}\n", BROKEN)
    images = stage.images(slices=4)
    stage.receive(images[:3])
    study = stage.receive(images[3:])
    before = len(stage.orchestra.listing.jobs().items)
    stage.apply(
        "  done: {when: 'True', action: process, process: [copy], send: [other]}\n",
        "  broken: {when: 'True', send: [out]}\n",
    )
    stage.operations.release(study, actor="ada", now=stage.orchestra.clock.now())
    stage.orchestra.wait(MINUTE)

    assert before + 1 == len(stage.orchestra.listing.jobs().items)
    assert data_sets(images) == stage.arrived()


@pytest.mark.parametrize("by", ["release", "route"])
def test_series_kept_back_waits_for_a_person(stage: Stage, by: str) -> None:
    """
    A series that is held is asked about by no rule and sent with no study, until it is released or taken to a rule.
    """
    stage.apply(ALWAYS, WHOLE.replace("'False'", "'True'"))
    images = stage.images()
    stage.orchestra.receive(images)
    with stage.orchestra.ledger.writing("test.hold") as connection:
        connection.execute(sa.update(series).values(held="restored from a backup"))
    stage.orchestra.wait(2 * MINUTE)
    assert {"": ("held", "restored from a backup")} == stage.cases()
    assert {} == stage.arrived()

    now = stage.orchestra.clock.now()
    if by == "release":
        stage.operations.release(stage.study(), actor="ada", now=now)
        stage.orchestra.wait(2 * MINUTE)
    else:
        stage.route(stage.study(), "always")
    assert data_sets(images) == stage.arrived()
    assert "closed" == stage.cases()[""][0]


# -- straight to a target --


def send(stage: Stage, study: str, target: str) -> tuple[int, ...]:
    """Send it, and let that be done."""
    made = stage.operations.send(study, target, actor="ada", now=stage.orchestra.clock.now())
    stage.orchestra.wait(MINUTE)
    return made


def test_every_request_to_send_is_a_job(stage: Stage) -> None:
    """
    What a person sends is sent each time it is asked, outside of any rule, and recorded as any delivery.
    """
    stage.apply(NEVER)
    images = stage.images()
    study = stage.receive(images)
    first, second = send(stage, study, "other"), send(stage, study, "other")
    (one, other) = (stage.orchestra.jobs.show(job_id) for job_id in (*first, *second))

    assert first != second
    assert ["sent by: ada"] * 2 == [one.rule, other.rule]
    assert [State.DONE] * 2 == [one.state, other.state]
    assert data_sets(images) == stage.arrived("other")
    assert ("closed", "sent by ada") == stage.cases()["sent by: ada"]
    assert [3, 3] == [line.sent for line in stage.orchestra.listing.deliveries().items]


def test_what_was_sent_by_hand_is_nothing_to_the_rules(stage: Stage) -> None:
    """
    Rules act as if nobody had sent anything: late images go where they say, and only there.
    """
    stage.apply(ALWAYS, WHOLE.replace("False", "True"))
    images = stage.images()
    stage.orchestra.receive(images[:2])
    stage.operations.send(stage.study(), "out", actor="ada", now=stage.orchestra.clock.now())
    stage.receive(images[2:])
    totals = sorted((line.rule, line.total) for line in stage.orchestra.listing.deliveries().items)

    assert data_sets(images) == stage.arrived()
    assert [("always", 3), ("sent by: ada", 2), ("whole", 3)] == totals


def test_unknown_target_is_refused(stage: Stage) -> None:
    """
    A target that is not in the running rulebook is named, with what is near.
    """
    stage.apply(NEVER)
    study = stage.receive(stage.images())

    with pytest.raises(Refused, match="target 'othr' is not in revision 1 of the rulebook"):
        send(stage, study, "othr")


# -- pauses --


def test_pause_of_routing(stage: Stage) -> None:
    """
    While routing is paused nothing is asked; after it all that waits is.
    """
    stage.apply(ALWAYS)
    now = stage.orchestra.clock.now()
    stage.operations.pause("route", actor="ada", reason="new rules come", now=now)
    stage.receive(stage.images())
    assert ({}, None) == (stage.cases(), stage.orchestra.router._cases.next_due())
    assert ["route, by ada: new rules come"] == [str(pause) for pause in stage.operations.paused()]
    stage.operations.resume("route", actor="ada", now=now)
    stage.orchestra.wait(MINUTE)

    assert 3 == len(stage.arrived())
    assert (["ada"], ["ada"]) == (stage.told("work.paused"), stage.told("work.resumed"))


def test_pause_of_a_target(stage: Stage) -> None:
    """
    A paused target gets nothing, and the others all; a drain stops them, too.
    """
    stage.apply("  both: {when: 'True', send: [out, other]}\n")
    now = stage.orchestra.clock.now()
    stage.operations.pause("dispatch", "out", actor="ada", now=now)
    stage.receive(stage.images())
    assert (0, 3) == (len(stage.arrived()), len(stage.arrived("other")))
    stage.operations.drain(actor="ada", now=now)
    stage.operations.resume("dispatch", "out", actor="ada", now=now)
    stage.orchestra.wait(MINUTE)
    assert 0 == len(stage.arrived())
    assert stage.operations.undrain(actor="ada", now=now)
    assert not stage.operations.undrain(actor="ada", now=now)
    stage.orchestra.wait(MINUTE)

    assert 3 == len(stage.arrived())


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        ("cooking", "", "'cooking' is no kind of work; these can be paused: process, dispatch, notify, route"),
        ("process", "out", "process has no targets; pause it whole, or pause dispatch to 'out'"),
        ("dispatch", "nowhere", "target 'nowhere' is not in revision 1 of the rulebook"),
    ],
)
def test_what_cannot_be_paused_is_told(stage: Stage, kind: str, target: str, said: str) -> None:
    """
    Only what exists is paused: a slip of the pen would stop nothing.
    """
    stage.apply(ALWAYS)

    with pytest.raises(Refused) as refusal:
        stage.operations.pause(kind, target, actor="ada", now=stage.orchestra.clock.now())
    assert str(refusal.value).startswith(said)


def test_resume_of_what_is_not_paused_is_refused(stage: Stage) -> None:
    """
    It says what is paused instead.
    """
    stage.apply(ALWAYS)
    now = stage.orchestra.clock.now()
    stage.operations.pause("process", actor="ada", now=now)

    with pytest.raises(Refused, match="dispatch to out is not paused; paused now: process"):
        stage.operations.resume("dispatch", "out", actor="ada", now=now)


def test_act_on_a_delivery_is_an_act_on_its_job(stage: Stage) -> None:
    """
    A delivery is its job's record: held by its id, the job is held.
    """
    stage.apply(ALWAYS)
    stage.operations.pause("dispatch", actor="ada", now=stage.orchestra.clock.now())
    stage.receive(stage.images())
    (line,) = stage.orchestra.listing.deliveries().items
    ids = stage.operations.jobs_of([line.id])
    acted = stage.operations.act(
        Selection(ids=ids, kind=Kind.DISPATCH), Event.HOLD, actor="ada", now=stage.orchestra.clock.now()
    )

    assert ((line.job_id,), 1) == (ids, acted.done)
    assert State.HELD is stage.orchestra.jobs.show(line.job_id).state
    with pytest.raises(Refused, match="there is no delivery nonsense"):
        stage.operations.jobs_of(["nonsense"])
    with stage.orchestra.ledger.reading() as connection:
        assert 1 == connection.execute(sa.select(sa.func.count()).select_from(jobs)).scalar_one()
