"""What is to be done about a series or a study: values in, plans out."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talaria.model.dicom import UID, Series, Tags
from talaria.model.errors import ConfigError, Refused
from talaria.model.extensions import Module, Target
from talaria.model.job import Extent, Kind, Priority
from talaria.model.plan import (
    CaseState,
    CaseView,
    Member,
    Opening,
    Plan,
    PlannedJob,
    SeriesView,
    StudyView,
    plan_series,
    plan_study,
    route_series,
    route_study,
)
from talaria.model.rulebook import Rulebook, Shelves, parse

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
CT = {"Modality": "CT", "SeriesDescription": "AX"}
MR = {"Modality": "MR", "SeriesDescription": "SAG"}


class Nowhere(Target):
    """A target that nothing is delivered to."""

    kind: ClassVar[str] = "nowhere"


class Nothing(Module):
    """A module that is not run."""

    kind: ClassVar[str] = "nothing"


SHELVES = Shelves(targets={"nowhere": Nowhere}, modules={"nothing": Nothing})
HEAD = """\
settings: {series_quiet: 60s, study_quiet: 10m}
targets: {x: {kind: nowhere}, y: {kind: nowhere}, z: {kind: nowhere}}
modules: {nothing: {builtin: nothing}}
rules:
"""
TO_X = 'to-x: {when: tags.Modality == "CT", send: [x]}'
BROKEN = "broken: {when: 'int(tags.SeriesDescription) > 1', send: [z]}"
FALLBACK = "rest: {when: true, fallback: true, send: [z]}"


def book_of(*rules: str, number: int = 1) -> Rulebook:
    """A rulebook of rules, a line each."""
    return parse(HEAD + "".join(f"  {rule}\n" for rule in rules), shelves=SHELVES, number=number)


def none(number: int) -> Rulebook:
    """Revisions where no case was made under any."""
    raise ConfigError(f"revision {number} was asked for")


def always(book: Rulebook) -> Callable[[int], Rulebook]:
    """Revisions that are all alike."""
    return lambda number: book


def series_of(tags: Mapping[str, str] = CT, *, last: datetime = NOON, instances: int = 3) -> Series:
    return Series(
        id=1, series_instance_uid=UID("1.2.1"), study_instance_uid=UID("1.2"), tags=Tags(dict(tags)),
        instances=instances, first_received=last, last_received=last,
    )  # fmt: skip


def view_of(
    tags: Mapping[str, str] = CT,
    *,
    portions: int = 0,
    fresh: int = 3,
    asked: frozenset[str] = frozenset(),
    settled: bool = False,
    cases: tuple[CaseView, ...] = (),
    sent: Mapping[str, int] | None = None,
) -> SeriesView:
    """A series that three images came of at noon."""
    return SeriesView(
        series=series_of(tags), version=1, portions=portions, fresh=fresh, asked=asked, settled=settled, cases=cases,
        siblings=(Tags(dict(tags)),), sent=sent or {},
    )  # fmt: skip


def case_of(
    rule: str,
    *,
    state: CaseState = CaseState.CLOSED,
    covered: int | None = 1,
    is_study: bool = False,
    supplement: int = 0,
    revision: int = 1,
) -> CaseView:
    return CaseView(
        id=1, rule=rule, revision=revision, is_study=is_study, state=state, supplement=supplement, covered=covered
    )


def ask(book: Rulebook, view: SeriesView | None = None, *, seconds: int = 60) -> Plan:
    """What *book* says of a series so many seconds after noon."""
    return plan_series(view or view_of(), active=book, revisions=always(book), now=NOON + seconds * SECOND)


def sends(plan: Plan) -> list[tuple[str, str | None, list[tuple[int, int, int]]]]:
    """Rule, target and (series, first, last) of the planned jobs."""
    return [(job.rule, job.target, [(e.series_id, e.first, e.last) for e in job.extents]) for job in plan.jobs]


# -- a series --


def test_series_is_left_alone_until_quiet() -> None:
    """
    A series that is not quiet yet is looked at again when it may be, and nothing else is done.
    """
    assert Plan(due=NOON + 60 * SECOND) == ask(book_of(TO_X), seconds=59)


def test_quiet_series_goes_where_its_rule_says() -> None:
    """
    A rule that matches opens a case, closes what came as the first portion, and sends it.
    """
    book = book_of(TO_X)
    job = PlannedJob(
        case="to-x", kind=Kind.DISPATCH, rule="to-x", revision=1, extents=(Extent(series_id=1, first=1, last=1),),
        target="x", priority=Priority.NORMAL, supplement=0,
    )  # fmt: skip
    plan = Plan(
        due=None, why="no new image for 60 s", close=frozenset({1}), asked=frozenset({"to-x"}), settled=True,
        openings=(Opening(rule="to-x", revision=1, state=CaseState.CLOSED, reason=""),), jobs=(job,),
        covered={("to-x", False, 1): 1}, wake=NOON + 60 * SECOND, fired=("to-x",),
    )  # fmt: skip

    assert plan == ask(book)


def test_every_rule_that_matches_acts() -> None:
    """
    Several rules may match one series, and each acts.
    """
    plan = ask(book_of(TO_X, "to-y: {when: true, send: [y]}", 'mr: {when: tags.Modality == "MR", send: [z]}'))

    assert [("to-x", "x", [(1, 1, 1)]), ("to-y", "y", [(1, 1, 1)])] == sends(plan)
    assert ("to-x", "to-y") == plan.fired


def test_disabled_rule_is_not_asked() -> None:
    """
    A disabled rule takes nothing, and nothing waits for its quiet time.
    """
    plan = ask(book_of("off: {when: true, send: [x], disabled: true, complete: {quiet: 5m}}"))

    assert [CaseState.DISCARDED] == [opening.state for opening in plan.openings]
    assert (True, None) == (plan.settled, plan.due)


def test_each_rule_has_its_own_quiet_time() -> None:
    """
    A rule is asked when the series was quiet for that rule's time; the others are asked later.
    """
    book = book_of("soon: {when: true, send: [x], complete: {quiet: 10s}}", "late: {when: true, send: [y]}")
    first = ask(book, seconds=10)
    view = view_of(portions=1, fresh=0, asked=first.asked, cases=(case_of("soon"),), sent={"x": 1})
    second = ask(book, view)

    assert [("soon", "x", [(1, 1, 1)])] == sends(first)
    assert (NOON + 60 * SECOND, False, frozenset({"soon"})) == (first.due, first.settled, first.asked)
    assert [("late", "y", [(1, 1, 1)])] == sends(second)
    assert (None, True) == (second.due, second.settled)


def test_rule_is_asked_once() -> None:
    """
    A rule that was asked before is not asked again before the series is settled.
    """
    book = book_of("soon: {when: true, send: [x], complete: {quiet: 10s}}", 'late: {when: "False", send: [y]}')
    view = view_of(portions=1, fresh=0, asked=frozenset({"soon"}), cases=(case_of("soon"),), sent={"x": 1})

    assert () == ask(book, view).fired


def test_discard_wins() -> None:
    """
    A rule that discards ends the evaluation and wins over rules that matched before it.
    """
    plan = ask(book_of(TO_X, "junk: {when: true, action: discard}", "to-y: {when: true, send: [y]}"))

    assert [] == sends(plan)
    assert [("junk", CaseState.DISCARDED, "discarded by rule 'junk'")] == [
        (opening.rule, opening.state, opening.reason) for opening in plan.openings
    ]
    assert (True, None, frozenset({1})) == (plan.settled, plan.due, plan.close)


def test_what_comes_after_a_discard_is_not_sent() -> None:
    """
    A discard wins over a rule with a shorter quiet time too: what came since is not sent, now and later.
    """
    book = book_of(
        "soon: {when: true, send: [x], complete: {quiet: 10s}}", "junk: {when: true, action: discard}",
    )  # fmt: skip
    soon = case_of("soon")
    view = view_of(portions=1, fresh=1, asked=frozenset({"soon"}), cases=(soon,), sent={"x": 1})
    discarded = case_of("junk", state=CaseState.DISCARDED, covered=2)
    later = view_of(portions=2, fresh=1, settled=True, cases=(replace(soon, covered=2), discarded), sent={"x": 1})

    assert [] == sends(ask(book, view))
    assert [] == sends(ask(book, later))
    assert {("soon", False, 1): 3, ("junk", False, 1): 3} == ask(book, later).covered


def test_fallback_acts_when_nothing_else_matched() -> None:
    """
    A fallback rule takes what no other rule took.
    """
    assert [("rest", "z", [(1, 1, 1)])] == sends(ask(book_of(FALLBACK, TO_X), view_of(MR)))


def test_fallback_is_not_asked_when_something_matched() -> None:
    """
    A fallback rule leaves alone what another rule took, wherever it stands in the file.
    """
    assert ["to-x"] == [job.rule for job in ask(book_of(FALLBACK, TO_X)).jobs]


def test_fallback_waits_for_every_other_rule() -> None:
    """
    A fallback rule with a short quiet time still waits until the last of the others was asked.
    """
    rest = "rest: {when: true, fallback: true, send: [z], complete: {quiet: 5s}}"
    early = ask(book_of(rest, TO_X), view_of(MR), seconds=5)

    assert ([], NOON + 60 * SECOND, False) == (sends(early), early.due, early.settled)
    assert ["rest"] == [job.rule for job in ask(book_of(rest, TO_X), view_of(MR)).jobs]


def test_fallback_is_not_asked_when_an_earlier_look_matched() -> None:
    """
    A series that a rule took at an earlier look is not for fallback rules.
    """
    book = book_of("soon: {when: true, send: [x], complete: {quiet: 10s}}", 'no: {when: "False", send: [y]}', FALLBACK)
    view = view_of(portions=1, fresh=0, asked=frozenset({"soon"}), cases=(case_of("soon"),), sent={"x": 1})
    plan = ask(book, view)

    assert ([], True) == (sends(plan), plan.settled)


def test_discarding_fallback_discards() -> None:
    """
    A fallback rule may discard by name what no rule took.
    """
    plan = ask(book_of("bin: {when: true, fallback: true, action: discard}", TO_X), view_of(MR))

    assert [("bin", CaseState.DISCARDED)] == [(opening.rule, opening.state) for opening in plan.openings]


def test_rule_in_error_is_held_and_others_act() -> None:
    """
    A rule that breaks is held with its reason; the others act as ever.
    """
    plan = ask(book_of(BROKEN, TO_X))
    held = plan.openings[0]

    assert [("to-x", "x", [(1, 1, 1)])] == sends(plan)
    assert ("broken", CaseState.HELD) == (held.rule, held.state)
    assert held.reason.startswith("rule in error: ")
    assert 1 == plan.covered["broken", False, 1]


def test_rule_in_error_is_not_no_match() -> None:
    """
    A series whose only rule broke is held, not discarded.
    """
    assert [CaseState.HELD] == [opening.state for opening in ask(book_of(BROKEN)).openings]


def test_nothing_matched_is_discarded() -> None:
    """
    A series that no rule took is discarded, with the reason in words, and can be routed later.
    """
    plan = ask(book_of(TO_X), view_of(MR))

    assert (Opening(rule="", revision=1, state=CaseState.DISCARDED, reason="no rule matched"),) == plan.openings
    assert ((), True, frozenset({1})) == (plan.jobs, plan.settled, plan.close)
    assert {("", False, 1): 1} == plan.covered


def test_no_rules_at_all_still_waits_for_quiet() -> None:
    """
    Without any rule a series is discarded, though not before it was quiet.
    """
    book = parse("rules: {}\n", shelves=SHELVES, number=1)

    assert Plan(due=NOON + 60 * SECOND) == ask(book, seconds=30)
    assert [CaseState.DISCARDED] == [opening.state for opening in ask(book).openings]


def test_process_rule_makes_one_process_job() -> None:
    """
    A rule that processes makes one process job; its targets come after it.
    """
    plan = ask(book_of("work: {when: true, action: process, process: [nothing], send: [x], priority: urgent}"))

    assert [(Kind.PROCESS, None, Priority.URGENT)] == [(job.kind, job.target, job.priority) for job in plan.jobs]


def test_originals_go_to_one_target_once() -> None:
    """
    However many rules ask, the originals of a series go to a target once, for the first in the file.
    """
    plan = ask(book_of("a: {when: true, send: [x, y]}", "b: {when: true, send: [y, z]}"))

    assert [("a", "x", [(1, 1, 1)]), ("a", "y", [(1, 1, 1)]), ("b", "z", [(1, 1, 1)])] == sends(plan)


@pytest.mark.parametrize("late", ["new", "whole", "hold"])
def test_originals_go_once_with_different_quiet_times(late: str) -> None:
    """
    A rule that is asked later sends what the earlier one has not sent to the same target, and no more.
    """
    book = book_of(
        "soon: {when: true, send: [x], complete: {quiet: 10s}}", f"slow: {{when: true, send: [x, y], late: {late}}}"
    )
    view = view_of(portions=1, fresh=2, asked=frozenset({"soon"}), cases=(case_of("soon"),), sent={"x": 1})

    assert [("slow", "x", [(1, 2, 2)]), ("slow", "y", [(1, 1, 2)])] == sends(ask(book, view))


# -- what comes late --


def late(rule: str, *, covered: int = 1, sent: int = 1) -> Plan:
    """What is done about two images that came after the case of *rule* was closed."""
    book = book_of(rule)
    name = rule.partition(":")[0]
    view = view_of(portions=1, fresh=2, settled=True, cases=(case_of(name, covered=covered),), sent={"x": sent})
    return ask(book, view)


def test_late_new_sends_only_the_new() -> None:
    """
    With `late: new` a supplement sends what is new, under the same case and revision.
    """
    plan = late("a: {when: true, send: [x]}")

    assert [("a", "x", [(1, 2, 2)])] == sends(plan)
    assert [(1, 1, "")] == [(job.revision, job.supplement, job.held) for job in plan.jobs]
    assert frozenset({("a", False)}) == plan.supplemented
    assert ({("a", False, 1): 2}, frozenset({1})) == (plan.covered, plan.close)


def test_late_whole_sends_everything_again() -> None:
    """
    With `late: whole` a supplement is about the whole case.
    """
    assert [("a", "x", [(1, 1, 2)])] == sends(late("a: {when: true, send: [x], late: whole}"))


def test_late_hold_waits_for_a_person() -> None:
    """
    With `late: hold` the supplement's job is made, and held.
    """
    plan = late("a: {when: true, send: [x], late: hold}")

    assert [("a", "x", [(1, 2, 2)])] == sends(plan)
    assert ["images came late: release to go on"] == [job.held for job in plan.jobs]


def test_late_for_processing_is_whole_by_default() -> None:
    """
    A chain runs again on the whole case, unless its rule says otherwise.
    """
    plan = late("a: {when: true, action: process, process: [nothing]}")

    assert [(Kind.PROCESS, 1, [(1, 1, 2)])] == [
        (job.kind, job.supplement, [(e.series_id, e.first, e.last) for e in job.extents]) for job in plan.jobs
    ]


def test_late_images_wait_for_quiet() -> None:
    """
    What comes late waits for the rule's quiet time, too.
    """
    book = book_of(TO_X)
    view = view_of(portions=1, fresh=2, settled=True, cases=(case_of("to-x"),), sent={"x": 1})

    assert (NOON + 60 * SECOND, ()) == (ask(book, view, seconds=5).due, ask(book, view, seconds=5).jobs)


def test_supplement_is_under_the_revision_of_its_case() -> None:
    """
    What comes late is treated by the rulebook under which its case was opened, whatever runs now.
    """
    books = {1: book_of(TO_X), 2: book_of("to-x: {when: true, send: [y]}", number=2)}
    view = view_of(portions=1, fresh=2, settled=True, cases=(case_of("to-x"),), sent={"x": 1})
    plan = plan_series(view, active=books[2], revisions=books.__getitem__, now=NOON + 60 * SECOND)

    assert [("to-x", 1)] == [(job.rule, job.revision) for job in plan.jobs]
    assert [("to-x", "x", [(1, 2, 2)])] == sends(plan)


def test_new_rules_are_not_asked_of_a_settled_series() -> None:
    """
    A rule that was written after a series was settled is not asked of what comes late.
    """
    books = {1: book_of(TO_X), 2: book_of(TO_X, "new: {when: true, send: [z]}", number=2)}
    view = view_of(portions=1, fresh=2, settled=True, cases=(case_of("to-x"),), sent={"x": 1})

    assert () == plan_series(view, active=books[2], revisions=books.__getitem__, now=NOON + 60 * SECOND).fired


@pytest.mark.parametrize(("rule", "state"), [("", "discarded"), ("junk", "discarded"), ("junk", "held")])
def test_late_images_share_the_fate_of_their_series(rule: str, state: str) -> None:
    """
    What comes late to a discarded or held series is discarded or held with it.
    """
    book = book_of("junk: {when: true, action: discard}")
    view = view_of(portions=1, fresh=1, settled=True, cases=(case_of(rule, state=CaseState(state)),))
    plan = ask(book, view)

    assert ((), frozenset({1}), {(rule, False, 1): 2}) == (plan.jobs, plan.close, plan.covered)


def test_two_rules_send_what_is_late_once() -> None:
    """
    What comes late goes to a target once, though two rules sent there.
    """
    book = book_of("a: {when: true, send: [x]}", "b: {when: true, send: [x, y]}")
    cases = (case_of("a"), case_of("b"))
    plan = ask(book, view_of(portions=1, fresh=2, settled=True, cases=cases, sent={"x": 1, "y": 1}))

    assert [("a", "x", [(1, 2, 2)]), ("b", "y", [(1, 2, 2)])] == sends(plan)


def test_cleaned_series_is_asked_anew() -> None:
    """
    A series that is sent again after its files were cleaned is asked anew, and goes out again.
    """
    cleaned = case_of("to-x", state=CaseState.CLEANED)
    plan = ask(book_of(TO_X, FALLBACK), view_of(portions=1, fresh=3, cases=(cleaned,), sent={"x": 1}))

    assert [("to-x", "x", [(1, 2, 2)])] == sends(plan)
    assert (("to-x",), 0) == (plan.fired, plan.jobs[0].supplement)


def test_cleaned_series_does_not_count_as_taken() -> None:
    """
    A series sent again after cleaning that no rule takes any more is for fallback rules, or discarded.
    """
    cleaned = case_of("to-x", state=CaseState.CLEANED)
    view = view_of(MR, portions=1, fresh=3, cases=(cleaned,), sent={"x": 1})

    assert ["rest"] == [job.rule for job in ask(book_of(TO_X, FALLBACK), view).jobs]
    assert [CaseState.DISCARDED] == [opening.state for opening in ask(book_of(TO_X), view).openings]


# -- a study --

STUDY = 'whole: {when: tags.Modality == "CT", trigger: study, send: [x]}'
MATCHING = 'part: {when: tags.Modality == "CT", trigger: study, collect: matching, send: [x]}'
COLLECTING = case_of("whole", state=CaseState.COLLECTING, is_study=True, covered=None)


def member_of(number: int, **values: object) -> Member:
    """A series of a study: settled, one portion, nothing fresh, the rule's."""
    return replace(
        Member(
            series_id=number, last_received=NOON, portions=1, fresh=0, settled=True, covered=0, is_discarded=False,
            is_match=True,
        ),
        **values,  # type: ignore[arg-type]  # a test names its fields
    )  # fmt: skip


def collect(
    rule: str,
    *members: Member,
    state: CaseState = CaseState.COLLECTING,
    seconds: int = 600,
    sent: Mapping[tuple[str, int], int] | None = None,
) -> Plan:
    """What is done about the study case of *rule*."""
    case = case_of(rule.partition(":")[0], state=state, is_study=True, covered=None)
    view = StudyView(case=case, version=1, study_id=1, members=members, sent=sent or {})
    return plan_study(view, revisions=always(book_of(rule)), now=NOON + seconds * SECOND)


def test_study_rule_opens_a_case_that_collects() -> None:
    """
    A study rule that matches a series opens the study's case, and sends nothing yet.
    """
    plan = ask(book_of(STUDY))

    assert [("whole", CaseState.COLLECTING, True)] == [(o.rule, o.state, o.is_study) for o in plan.openings]
    assert ((), {("whole", True, 1): 0}) == (plan.jobs, plan.covered)
    assert NOON + 60 * SECOND == plan.wake


def test_study_rule_is_asked_at_the_series_quiet_time() -> None:
    """
    The quiet time of a study rule is the study's; its series are asked at the quiet time of series.
    """
    book = book_of('whole: {when: tags.Modality == "CT", trigger: study, send: [x], complete: {quiet: 1h}}')

    assert ("whole",) == ask(book).fired


def test_study_waits_until_it_is_quiet() -> None:
    """
    A study waits for its quiet time after the last image of any of its series.
    """
    plan = collect(STUDY, member_of(1), member_of(2, last_received=NOON + 30 * SECOND))

    assert Plan(due=NOON + 630 * SECOND) == plan


def test_study_waits_for_series_still_quiet_waiting() -> None:
    """
    A quiet study waits on while one of its series was not asked by every rule yet.
    """
    plan = collect(STUDY, member_of(1), member_of(2, settled=False, portions=0, fresh=5))

    assert ((), False) == (plan.jobs, plan.settled)
    assert plan.due is not None
    assert NOON + 600 * SECOND < plan.due


def test_study_collects_every_series() -> None:
    """
    The case of a study is all its series, those that match no rule too.
    """
    plan = collect(STUDY, member_of(1), member_of(2, is_match=False))

    assert [("whole", "x", [(1, 1, 1), (2, 1, 1)])] == sends(plan)
    assert ({("whole", True, 1): 1, ("whole", True, 2): 1}, True) == (plan.covered, plan.settled)


def test_matching_collects_what_matches() -> None:
    """
    With `collect: matching` the case is the series that match.
    """
    assert [("part", "x", [(1, 1, 1)])] == sends(collect(MATCHING, member_of(1), member_of(2, is_match=False)))


def test_discarded_series_is_not_collected() -> None:
    """
    No study case sends a series that a rule discarded.
    """
    assert [("whole", "x", [(1, 1, 1)])] == sends(collect(STUDY, member_of(1), member_of(2, is_discarded=True)))


def test_study_of_discarded_series_is_over() -> None:
    """
    A study case all of whose series were discarded collects no more.
    """
    plan = collect(STUDY, member_of(1, is_discarded=True))

    assert Plan(due=None, settled=True, why="every series of it was discarded") == plan


def test_study_case_ends_though_all_was_sent() -> None:
    """
    A study case whose originals another rule has sent makes no job, and still collects no more.
    """
    plan = collect(STUDY, member_of(1), sent={("x", 1): 1})

    assert ((), True, {("whole", True, 1): 1}) == (plan.jobs, plan.settled, plan.covered)


def test_study_sends_only_what_was_not_sent() -> None:
    """
    The originals of a study go to one target once: the second rule sends the series that the first did not.
    """
    plan = collect(STUDY, member_of(1), member_of(2), sent={("x", 1): 1})

    assert [("whole", "x", [(2, 1, 1)])] == sends(plan)


def test_late_series_of_a_closed_study_is_a_supplement() -> None:
    """
    A series that comes after its study's case was closed is a supplement to it.
    """
    plan = collect(STUDY, member_of(1, covered=1), member_of(2), state=CaseState.CLOSED, sent={("x", 1): 1})

    assert [("whole", "x", [(2, 1, 1)])] == sends(plan)
    assert ([1], frozenset({("whole", True)})) == ([job.supplement for job in plan.jobs], plan.supplemented)


def test_late_series_with_whole_sends_the_whole_study() -> None:
    """
    With `late: whole` a series that comes late makes the whole study go again.
    """
    rule = "whole: {when: true, trigger: study, send: [x], late: whole}"
    plan = collect(rule, member_of(1, covered=1), member_of(2), state=CaseState.CLOSED, sent={("x", 1): 1})

    assert [("whole", "x", [(1, 1, 1), (2, 1, 1)])] == sends(plan)


def test_late_series_is_chained_alone_with_new() -> None:
    """
    With `late: new` a chain runs on what is new to the case.
    """
    rule = "whole: {when: true, trigger: study, action: process, process: [nothing], late: new}"
    plan = collect(rule, member_of(1, covered=1), member_of(2), state=CaseState.CLOSED)

    assert [("whole", None, [(2, 1, 1)])] == sends(plan)


def test_study_with_nothing_new_is_left_alone() -> None:
    """
    A closed study case with nothing new to it makes nothing.
    """
    assert Plan(due=None) == collect(STUDY, member_of(1, covered=1), state=CaseState.CLOSED)


def test_series_collected_by_a_study_is_not_discarded() -> None:
    """
    A series that matches no rule is not discarded where a study case takes every series.
    """
    assert () == ask(book_of(STUDY), view_of(MR, cases=(COLLECTING,))).openings


def test_series_beside_a_matching_study_is_discarded() -> None:
    """
    A series that matches no rule is discarded where the study's case takes only what matches.
    """
    beside = case_of("part", state=CaseState.COLLECTING, is_study=True, covered=None)

    assert [CaseState.DISCARDED] == [o.state for o in ask(book_of(MATCHING), view_of(MR, cases=(beside,))).openings]


def test_the_revision_of_the_case_says_what_it_collects() -> None:
    """
    Whether a study case takes every series stands in the revision that the case is under, not in the running one.
    """
    now_all = 'part: {when: tags.Modality == "CT", trigger: study, collect: study, send: [x]}'
    books = {1: book_of(MATCHING), 2: book_of(now_all, number=2)}
    beside = case_of("part", state=CaseState.COLLECTING, is_study=True, covered=None)
    view = view_of(MR, cases=(beside,))
    plan = plan_series(view, active=books[2], revisions=books.__getitem__, now=NOON + 60 * SECOND)

    assert [CaseState.DISCARDED] == [opening.state for opening in plan.openings]


def test_late_images_wake_the_study() -> None:
    """
    What comes late to a series of a study case makes the case be looked at.
    """
    closed = case_of("whole", is_study=True)
    plan = ask(book_of(STUDY), view_of(portions=1, fresh=2, settled=True, cases=(closed,)))

    assert (NOON + 60 * SECOND, frozenset({1})) == (plan.wake, plan.close)


# -- invariants --


@dataclass
class Row:
    """A series as the ledger would have it."""

    tags: dict[str, str]
    last: datetime = NOON
    fresh: int = 0
    portions: int = 0
    asked: frozenset[str] = frozenset()
    settled: bool = False
    due: datetime | None = None


@dataclass
class Ward:
    """What the ledger does with arrivals and plans, in memory; keeps every job."""

    book: Rulebook
    now: datetime = NOON
    rows: dict[int, Row] = field(default_factory=dict)
    cases: dict[tuple[str, int], CaseView] = field(default_factory=dict)
    covered: dict[tuple[str, int, int], int] = field(default_factory=dict)
    study_due: dict[str, datetime | None] = field(default_factory=dict)
    jobs: list[tuple[int, PlannedJob]] = field(default_factory=list)

    def receive(self, number: int, tags: dict[str, str]) -> None:
        row = self.rows.setdefault(number, Row(tags))
        row.last, row.fresh = self.now, row.fresh + 1
        row.due = min(row.due or self.now + SECOND, self.now + SECOND)

    def settle(self) -> None:
        """Look at all that is due."""
        for _ in range(1000):
            number = next((n for n, row in self.rows.items() if row.due and row.due <= self.now), None)
            rule = next((r for r, due in self.study_due.items() if due and due <= self.now), None)
            if number is not None:
                self.route(number)
            elif rule is not None:
                self.route_study(rule)
            else:
                return
        raise AssertionError("it never comes to rest")

    def route(self, number: int) -> None:
        row = self.rows[number]
        tags = Tags(dict(row.tags))
        seen = [
            replace(case, covered=self.covered.get((case.rule, home, number)))
            for (_, home), case in self.cases.items() if home in {0, number}
        ]  # fmt: skip
        series = replace(series_of(row.tags, last=row.last), id=number)
        view = SeriesView(
            series=series, version=0, portions=row.portions, fresh=row.fresh, asked=row.asked, settled=row.settled,
            cases=tuple(seen), siblings=(tags,),
            sent={target: last for (target, _), last in self.sent(home=number).items()},
        )  # fmt: skip
        plan = plan_series(view, active=self.book, revisions=always(self.book), now=self.now)
        row.asked, row.settled, row.due = plan.asked, plan.settled, plan.due
        self.apply(plan, home=number)
        if plan.wake:
            self.study_due |= dict.fromkeys([rule for rule, home in self.cases if home == 0], plan.wake)

    def route_study(self, rule: str) -> None:
        case = self.cases[rule, 0]
        members = tuple(
            Member(
                series_id=number, last_received=row.last, portions=row.portions, fresh=row.fresh, settled=row.settled,
                covered=self.covered.get((rule, 0, number), 0), is_match=(rule, 0, number) in self.covered,
                is_discarded=any(
                    found.state is CaseState.DISCARDED and found.rule
                    for (_, home), found in self.cases.items() if home == number
                ),
            )
            for number, row in self.rows.items()
        )  # fmt: skip
        view = StudyView(case=case, version=0, study_id=1, members=members, sent=self.sent(home=0))
        plan = plan_study(view, revisions=always(self.book), now=self.now)
        self.study_due[rule] = plan.due
        if plan.settled:
            self.cases[rule, 0] = replace(case, state=CaseState.CLOSED)
        self.apply(plan, home=0)

    def apply(self, plan: Plan, *, home: int) -> None:
        for number in plan.close:
            row = self.rows[number]
            row.portions, row.fresh = row.portions + (row.fresh > 0), 0
        for opening in plan.openings:
            case = case_of(opening.rule, state=opening.state, is_study=opening.is_study, covered=None)
            self.cases.setdefault((opening.rule, 0 if opening.is_study else home), case)
        for (rule, is_study, number), last in plan.covered.items():
            key = (rule, 0 if is_study else number, number)
            self.covered[key] = max(last, self.covered.get(key, 0))
        for rule, is_study in plan.supplemented:
            key_of_case = (rule, 0 if is_study else home)
            found = self.cases[key_of_case]
            self.cases[key_of_case] = replace(found, supplement=found.supplement + 1)
        self.jobs += [(home, job) for job in plan.jobs]

    def sent(self, *, home: int) -> dict[tuple[str, int], int]:
        found: dict[tuple[str, int], int] = {}
        for where, job in self.jobs:
            for extent in job.extents if job.target and where == home else ():
                key = (str(job.target), extent.series_id)
                found[key] = max(extent.last, found.get(key, 0))
        return found

    def portions_sent(self) -> Counter[tuple[bool, str, int, int]]:
        """How often each portion of each series goes to each target, by series cases and by study cases."""
        return Counter(
            (home == 0, str(job.target), extent.series_id, portion)
            for home, job in self.jobs
            for extent in job.extents
            for portion in range(extent.first, extent.last + 1)
        )


CONDITIONS = {"ct": CT, "mr": MR}
RULES = st.builds(
    dict,
    when=st.sampled_from(['tags.Modality == "CT"', 'tags.Modality == "MR"', "True"]),
    trigger=st.sampled_from(["series", "study"]),
    collect=st.sampled_from(["study", "matching"]),
    send=st.sets(st.sampled_from("xyz"), min_size=1).map(sorted),
    quiet=st.sampled_from([5, 20, 60, 200]),
    fallback=st.booleans(),
)
EVENTS = st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0, 1, 4, 10, 30, 90, 700])), min_size=1, max_size=12)


def text_of(number: int, rule: dict[str, object]) -> str:
    targets = ", ".join(str(target) for target in rule["send"])  # type: ignore[attr-defined]  # a list
    words = (
        f"when: '{rule['when']}', trigger: {rule['trigger']}, send: [{targets}], complete: {{quiet: {rule['quiet']}s}}"
    )
    if rule["trigger"] == "study":
        words += f", collect: {rule['collect']}"
    return f"r{number}: {{{words}, fallback: {str(rule['fallback']).lower()}}}"


def ward_after(rules: list[dict[str, object]], events: list[tuple[int, int]]) -> Ward:
    """Images come of up to three series, with pauses; in the end all is quiet."""
    ward = Ward(book_of(*[text_of(number, rule) for number, rule in enumerate(rules)]))
    for number, pause in events:
        ward.receive(number, CT if number < 3 else MR)
        ward.now += pause * SECOND
        ward.settle()
    for _ in range(60):
        ward.now += 30 * SECOND
        ward.settle()
    return ward


def matched(ward: Ward, number: int) -> list[str]:
    """The rules with a case on a series."""
    return [case.rule for (_, home), case in ward.cases.items() if home == number and case.state is CaseState.CLOSED]


def expected_portions(ward: Ward) -> Counter[tuple[bool, str, int, int]]:
    """Each portion of a series once to each target of the rules that took it, of its own cases and of the study's."""
    wanted: set[tuple[bool, str, int, int]] = set()
    for number, row in ward.rows.items():
        everything = range(1, row.portions + 1)
        for name in matched(ward, number):
            wanted |= {(False, target, number, p) for target in ward.book.rule(name).send for p in everything}
        for name in matched(ward, 0):
            if (name, 0, number) in ward.covered:
                wanted |= {(True, target, number, p) for target in ward.book.rule(name).send for p in everything}
    return Counter(wanted)


@settings(max_examples=150, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), EVENTS)
def test_every_portion_goes_to_every_target_once(rules: list[dict[str, object]], events: list[tuple[int, int]]) -> None:
    """
    In whatever order images come and rules are asked, each portion goes to each target of the rules that took it, once.
    """
    ward = ward_after(rules, events)

    assert expected_portions(ward) == ward.portions_sent()


@settings(max_examples=150, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), EVENTS)
def test_in_the_end_all_is_at_rest(rules: list[dict[str, object]], events: list[tuple[int, int]]) -> None:
    """
    When all is quiet no image is without a portion, no rule unasked, no case collecting, and no series without a case.
    """
    ward = ward_after(rules, events)

    assert [0] * len(ward.rows) == [row.fresh for row in ward.rows.values()]
    assert all(row.settled and row.due is None for row in ward.rows.values())
    assert all(case.state is not CaseState.COLLECTING for case in ward.cases.values())
    assert all(due is None for due in ward.study_due.values())
    assert set(ward.rows) == {number for _, _, number in ward.covered}


@settings(max_examples=100, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), EVENTS)
def test_equal_inputs_give_equal_plans(rules: list[dict[str, object]], events: list[tuple[int, int]]) -> None:
    """
    The same story told twice makes the same jobs, in the same order.
    """
    assert ward_after(rules, events).jobs == ward_after(rules, events).jobs


@settings(max_examples=100, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), st.sampled_from([CT, MR]), st.integers(0, 300))
def test_a_plan_looks_again_later_than_now(rules: list[dict[str, object]], tags: dict[str, str], seconds: int) -> None:
    """
    A plan that does nothing but wait is looked at again later than now, so that no router spins.
    """
    plan = ask(book_of(*[text_of(number, rule) for number, rule in enumerate(rules)]), view_of(tags), seconds=seconds)

    assert plan.settled or (plan.due is not None and plan.due > NOON + seconds * SECOND)


def test_no_revision_is_asked_for_without_need() -> None:
    """
    A series without any case needs no rulebook but the running one.
    """
    plan = plan_series(view_of(), active=book_of(TO_X), revisions=none, now=NOON + 60 * SECOND)

    assert ("to-x",) == plan.fired


@settings(max_examples=100, deadline=None)
@given(st.lists(RULES, min_size=1, max_size=4), EVENTS)
def test_who_took_a_series_does_not_depend_on_when_it_was_asked(
    rules: list[dict[str, object]], events: list[tuple[int, int]]
) -> None:
    """
    Whatever the quiet times, a series has a case of each rule that matches it, and of fallbacks where none does.
    """
    ward = ward_after(rules, events)
    for number, row in ward.rows.items():
        said = {f"r{n}": str(rule["when"]) for n, rule in enumerate(rules)}
        fits = {name: when == "True" or row.tags["Modality"] in when for name, when in said.items()}
        first = {name for name, fit in fits.items() if fit and not ward.book.rule(name).fallback}
        wanted = first or {name for name, fit in fits.items() if fit}
        collected = {
            name for name, home, found in ward.covered
            if home == 0 and found == number and str(ward.book.rule(name).collect) == "study"
        }  # fmt: skip
        took = {name for name, _, found in ward.covered if found == number and name}

        assert wanted <= took <= wanted | collected


# -- what a person decides --


def choose(view: SeriesView, rule: str, *rules: str, whole: bool = True) -> Plan:
    """What comes of a person's choice at noon."""
    book = book_of(*rules, number=7)
    return route_series(view, book.rule(rule), book=book, actor="ada", now=NOON, whole=whole)


def test_forced_rule_takes_a_series_unasked() -> None:
    """
    A rule that was asked for by name takes the series once it is quiet, whatever it says, and no other is asked.
    """
    book = book_of('no: {when: "False", send: [x], priority: urgent}', "to-y: {when: true, send: [y]}")
    view = replace(view_of(), forced="no")
    plan = ask(book, view)

    assert Plan(due=NOON + 60 * SECOND) == ask(book, view, seconds=59)
    assert [("no", "x", [(1, 1, 1)])] == sends(plan)
    assert [Priority.URGENT] == [job.priority for job in plan.jobs]
    assert (frozenset({"no", "to-y"}), True, frozenset({1})) == (plan.asked, plan.settled, plan.close)


def test_forced_study_rule_collects() -> None:
    """
    A study rule that was asked for by name opens its case, which collects as ever.
    """
    plan = ask(book_of('no: {when: "False", trigger: study, send: [x]}'), replace(view_of(), forced="no"))

    assert ([("no", CaseState.COLLECTING)], []) == ([(o.rule, o.state) for o in plan.openings], sends(plan))
    assert NOON + 60 * SECOND == plan.wake


def test_forced_rule_that_discards() -> None:
    """
    Asked for by name, a discarding rule discards.
    """
    plan = ask(book_of('bin: {when: "False", action: discard}', TO_X), replace(view_of(), forced="bin"))

    assert [("bin", CaseState.DISCARDED)] == [(o.rule, o.state) for o in plan.openings]


def test_forced_rule_that_is_not_there_holds() -> None:
    """
    Where the rule asked for by name is gone, a person decides, and no other rule takes its place.
    """
    plan = ask(book_of(TO_X), replace(view_of(), forced="gone"))

    assert ([], True) == (sends(plan), plan.settled)
    assert [("", CaseState.HELD)] == [(o.rule, o.state) for o in plan.openings]


def test_forced_rule_that_has_it_is_not_asked_again() -> None:
    """
    What comes late to a forced series is a supplement of its case.
    """
    view = replace(view_of(portions=1, fresh=2, settled=True, cases=(case_of("to-x"),), sent={"x": 1}), forced="to-x")
    plan = ask(book_of(TO_X), view)

    assert ([("to-x", "x", [(1, 2, 2)])], ()) == (sends(plan), plan.openings)


@pytest.mark.parametrize("settled", [False, True])
def test_held_series_is_asked_about_by_nobody(settled: bool) -> None:
    """
    A series that is kept back opens a held case with that text; neither new nor late images go anywhere.
    """
    view = replace(view_of(settled=settled, portions=1, cases=(case_of("to-x"),), sent={"x": 1}), held="restored")
    plan = ask(book_of(TO_X), view)

    assert [("", CaseState.HELD, "restored")] == [(o.rule, o.state, o.reason) for o in plan.openings]
    assert ([], frozenset(), True) == (sends(plan), plan.asked, plan.settled)


def test_choice_ends_what_stops_a_series() -> None:
    """
    A chosen rule takes the series, whatever it says and however fresh; what discarded or held it ends, all else stays.
    """
    cases = (
        replace(case_of("", state=CaseState.DISCARDED), id=5), replace(case_of("broken", state=CaseState.HELD), id=6),
        replace(case_of("to-y"), id=7), replace(case_of("s", state=CaseState.HELD, is_study=True), id=8),
    )  # fmt: skip
    view = view_of(portions=1, fresh=1, settled=True, cases=cases, sent={"y": 1})
    rule = 'no: {when: "False", send: [x, y]}'
    plan = choose(view, "no", rule)

    assert [("no", "x", [(1, 1, 2)]), ("no", "y", [(1, 2, 2)])] == sends(plan)
    assert dict.fromkeys((5, 6, 8), "routed to rule 'no' by ada") == plan.dismissed
    assert {5, 6} == set(choose(view, "no", rule, whole=False).dismissed)
    assert (True, True, NOON) == (plan.is_decided, plan.settled, plan.due)


def test_choice_of_a_rule_that_has_it_is_refused() -> None:
    """
    A rule that has all of a series takes it once; what is in no portion yet it takes as a supplement, not held.
    """
    rule = "to-x: {when: true, send: [x], late: hold}"
    view = view_of(portions=1, fresh=0, settled=True, cases=(case_of("to-x"),), sent={"x": 1})
    with pytest.raises(Refused, match=r"rule 'to-x' has all of series 1\.2\.1 already"):
        choose(view, "to-x", rule)
    plan = choose(replace(view, fresh=2), "to-x", rule)

    assert ([("to-x", "x", [(1, 2, 2)])], [""]) == (sends(plan), [job.held for job in plan.jobs])
    assert frozenset({("to-x", False)}) == plan.supplemented


def test_choice_leaves_the_other_rules_to_be_asked() -> None:
    """
    A series that is not settled yet goes to the chosen rule now, and the others are asked when it is quiet.
    """
    plan = choose(view_of(), "no", 'no: {when: "False", send: [x]}', TO_X)

    assert (frozenset({"no"}), False) == (plan.asked, plan.settled)


def test_choice_for_a_study_closes_one_case_with_every_series() -> None:
    """
    A chosen study rule takes every series, those that were discarded or held too, without waiting.
    """
    book = book_of('s: {when: "False", trigger: study, collect: matching, send: [x]}')
    waiting = StudyView(
        case=case_of("s", state=CaseState.COLLECTING, is_study=True), version=1, study_id=1, sent={},
        members=(member(1, is_discarded=True), member(2, is_held=True), member(3, settled=False)),
    )  # fmt: skip
    plan = route_study(waiting, book.rule("s"), book=book, actor="ada")

    assert [("s", "x", [(1, 1, 1), (2, 1, 1), (3, 1, 1)])] == sends(plan)
    assert (True, frozenset({1, 2, 3})) == (plan.settled, plan.close)
    done = replace(
        waiting, case=replace(waiting.case, state=CaseState.CLOSED),
        members=tuple(replace(m, portions=1, fresh=0, covered=1) for m in waiting.members),
    )  # fmt: skip
    with pytest.raises(Refused, match="rule 's' has all of the study already"):
        route_study(done, book.rule("s"), book=book, actor="ada")


def test_study_does_not_send_what_is_kept_back() -> None:
    """
    A series that a person has to decide on is sent with no study, and the study's case waits for it.
    """
    book = book_of("s: {when: true, trigger: study, send: [x]}")
    waiting = StudyView(
        case=case_of("s", state=CaseState.COLLECTING, is_study=True), version=1, study_id=1, sent={},
        members=(member(1, is_held=True),),
    )  # fmt: skip

    assert Plan(due=None) == plan_study(waiting, revisions=always(book), now=NOON + 3600 * SECOND)


def member(series_id: int, *, is_discarded: bool = False, is_held: bool = False, settled: bool = True) -> Member:
    """A series of three images that came at noon."""
    return Member(
        series_id=series_id, last_received=NOON, portions=0, fresh=3, settled=settled, covered=0,
        is_discarded=is_discarded, is_match=False, is_held=is_held,
    )  # fmt: skip
