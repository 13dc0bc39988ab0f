"""
From what is known of a series or a study, and a rulebook, to what is to be done: equal inputs give equal plans.

A series is asked about rule by rule, each once, when it has been quiet for that rule's time. Rules that match open
cases: a series rule its own, closed at once; a study rule one for the study, which collects until the study is
complete. Closing a case makes jobs over *portions*: the instances that a series had got since it was last closed
over. What comes later is a new portion, and a supplement to the same case. What a person decides instead of the
rules is planned by `route_series` and `route_study`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from talaria.model.completion import Wait, series_verdict, study_verdict
from talaria.model.dicom import Series, Tags
from talaria.model.errors import ConfigError, Refused, RuleError
from talaria.model.job import Extent, Kind, Priority
from talaria.model.rulebook import Action, Collect, Late, Rule, Rulebook, Trigger
from talaria.model.rules import Context

#: Gives the rulebook of a revision.
Revisions = Callable[[int], Rulebook]


class CaseState(StrEnum):
    """Where a case stands."""

    COLLECTING = "collecting"
    CLOSED = "closed"
    DISCARDED = "discarded"
    HELD = "held"
    CLEANED = "cleaned"
    """Its files are gone; the series is asked anew when it is sent again."""


@dataclass(frozen=True, kw_only=True)
class CaseView:
    """A case as it stands, seen from one of its series."""

    id: int
    rule: str
    """Empty where no rule took the series."""
    revision: int
    is_study: bool
    state: CaseState
    supplement: int
    covered: int | None
    """The last portion of this series that its jobs have; None: the series is not in it."""


@dataclass(frozen=True, kw_only=True)
class SeriesView:
    """A series as the router sees it."""

    series: Series
    version: int
    portions: int
    """Closed so far."""
    fresh: int
    """Instances not yet in a portion."""
    asked: frozenset[str]
    settled: bool
    cases: tuple[CaseView, ...]
    """Its own, and all of its study's study cases."""
    siblings: tuple[Tags, ...]
    """Of every series of the study so far, this one included."""
    sent: Mapping[str, int]
    """The last portion that a dispatch job of this series' own cases has, by target."""
    forced: str = ""
    """The rule that takes it whatever the others say."""
    held: str = ""
    """Why no rule is asked until a person decides."""

    @property
    def last(self) -> int:
        """The number of its last portion once what is fresh is closed over."""
        return self.portions + (1 if self.fresh else 0)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A series of a study case."""

    series_id: int
    last_received: datetime
    portions: int
    fresh: int
    settled: bool
    covered: int
    """The last portion that the case's jobs have; 0: none."""
    is_discarded: bool
    """A rule discarded it: no case may send it."""
    is_match: bool
    """Its own tags matched the rule."""
    is_held: bool = False
    """A person has to decide first: no case may send it."""

    @property
    def last(self) -> int:
        """The number of its last portion once what is fresh is closed over."""
        return self.portions + (1 if self.fresh else 0)


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """A study case as the router sees it."""

    case: CaseView
    version: int
    study_id: int
    members: tuple[Member, ...]
    """Every received series of the study."""
    sent: Mapping[tuple[str, int], int]
    """The last portion that a dispatch job of the study's study cases has, by target and series."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A case to be opened, or joined where it is open."""

    rule: str
    revision: int
    state: CaseState
    reason: str
    is_study: bool = False
    anew: bool = False
    """Where the case is there, whatever its state: it begins again. Else only one that has nothing does."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job to be made for a case."""

    case: str
    """The rule whose case it is."""
    kind: Kind
    rule: str
    revision: int
    extents: tuple[Extent, ...]
    target: str | None
    priority: Priority
    supplement: int
    held: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done; nothing of it was done yet."""

    due: datetime | None
    """When to look again; None: not before something arrives."""
    why: str = ""
    """Why the case is complete, in words."""
    close: frozenset[int] = frozenset()
    """Series whose fresh instances become a portion."""
    asked: frozenset[str] = frozenset()
    """All rules asked by now."""
    settled: bool = False
    """Of a series: every rule was asked; of a study case: it collects no more."""
    openings: tuple[Opening, ...] = ()
    jobs: tuple[PlannedJob, ...] = ()
    covered: Mapping[tuple[str, bool, int], int] = field(default_factory=dict)
    """(rule, is it a study case, series) -> the last portion that its jobs now have."""
    supplemented: frozenset[tuple[str, bool]] = frozenset()
    """Cases that were closed once more."""
    wake: datetime | None = None
    """When the study's cases are to be looked at, if this changes anything for them."""
    fired: tuple[str, ...] = ()
    """Rules that matched now."""
    dismissed: Mapping[int, str] = field(default_factory=dict)
    """Cases that end here and cover nothing any more, by id -> why."""
    is_decided: bool = False
    """A person chose: what was forced or held of the series is over."""


# -- a series --


def plan_series(
    view: SeriesView, *, active: Rulebook, revisions: Revisions, now: datetime, watched: timedelta = timedelta(0)
) -> Plan:
    """
    What is to be done about a series now.

    A case whose revision cannot be read here, since a plug it names is gone, is held with that reason; all others act.

    Args:
        view: The series as it stands.
        active: Asked of it.
        revisions: Gives the rulebook that a case began with: supplements stay with it; raises ConfigError.
        now: Against which quiet time is measured.
        watched: As for `series_verdict`.
    """
    if view.held:
        return _hold(view, active, now, watched)
    plan = Plan(due=None, asked=view.asked, settled=view.settled)
    if view.forced and _case_of(view, view.forced) is None:
        plan = _force(plan, view, active, now, watched)
    elif not view.settled:
        plan = _ask(plan, view, active, revisions, now, watched)
    return _supplement(plan, view, active, revisions, now, watched)


def _hold(view: SeriesView, book: Rulebook, now: datetime, watched: timedelta) -> Plan:
    """A held case instead of an answer; the rules are asked once a person has released it."""
    plan = Plan(due=None, asked=view.asked, settled=view.settled)
    quiet = book.settings.series_quiet
    verdict = series_verdict(view.series.last_received, quiet=quiet, now=now, watched=watched)
    if isinstance(verdict, Wait):
        return replace(plan, due=verdict.until)
    return _keep_back(plan, view, book, reason=view.held, why=verdict.why)


def _keep_back(plan: Plan, view: SeriesView, book: Rulebook, *, reason: str, why: str) -> Plan:
    opening = Opening(rule="", revision=book.number, state=CaseState.HELD, reason=reason)
    return replace(
        plan, why=why, close=frozenset({view.series.id}), settled=True, openings=(opening,),
        covered={("", False, view.series.id): view.last},
    )  # fmt: skip


def _force(plan: Plan, view: SeriesView, book: Rulebook, now: datetime, watched: timedelta) -> Plan:
    """One rule was asked for by name: it takes the series, unasked, when it is quiet; no other is asked."""
    rule = next((rule for rule in book.rules if rule.name == view.forced), None)
    quiet = book.quiet_of(rule) if rule else book.settings.series_quiet
    verdict = series_verdict(view.series.last_received, quiet=quiet, now=now, watched=watched)
    if isinstance(verdict, Wait):
        return replace(plan, due=verdict.until)
    if rule is None:
        gone = f"rule '{view.forced}' was asked for by name, but is not in revision {book.number}; route it to another"
        return _keep_back(plan, view, book, reason=gone, why=verdict.why)
    if rule.action is Action.DISCARD:
        return replace(_discard(plan, view, book, rule), why=verdict.why)
    plan = replace(
        plan, why=verdict.why, close=frozenset({view.series.id}), asked=_names(book) | view.asked, settled=True,
        openings=(_opening(rule, book.number),), fired=(rule.name,), wake=now,
    )  # fmt: skip
    return _open(plan, view, [rule], book)


def _names(book: Rulebook) -> frozenset[str]:
    return frozenset(rule.name for rule in book.rules)


def _case_of(view: SeriesView, rule: str) -> CaseView | None:
    """The case of a rule that has the series now, its own or its study's."""
    standing = (case for case in view.cases if case.rule == rule and case.covered is not None)
    return next((case for case in standing if case.state is not CaseState.CLEANED), None)


def _ask(plan: Plan, view: SeriesView, book: Rulebook, revisions: Revisions, now: datetime, watched: timedelta) -> Plan:
    """Ask every rule whose quiet time has passed; settle when none is left."""
    waiting = [rule for rule in book.rules if not rule.disabled and rule.name not in view.asked]
    due_now, later = [], []
    for rule in waiting:
        verdict = series_verdict(view.series.last_received, quiet=book.quiet_of(rule), now=now, watched=watched)
        if isinstance(verdict, Wait):
            later.append(verdict.until)
        else:
            plan = replace(plan, why=verdict.why)
            due_now.append(rule)
    if not waiting:
        quiet = book.settings.series_quiet
        verdict = series_verdict(view.series.last_received, quiet=quiet, now=now, watched=watched)
        if isinstance(verdict, Wait):
            return replace(plan, due=verdict.until)
    if later and not due_now:
        return replace(plan, due=min(later))
    return _answer(plan, view, book, revisions, due_now, later, now)


def _answer(
    plan: Plan,
    view: SeriesView,
    book: Rulebook,
    revisions: Revisions,
    rules: Sequence[Rule],
    later: Sequence[datetime],
    now: datetime,
) -> Plan:
    """Ask *rules*, and open what they say."""
    context = _context(view, book, now)
    answers = _Answers.of([rule for rule in rules if not rule.fallback], context, book.number)
    earlier = [c for c in view.cases if c.rule and c.covered is not None and c.state is not CaseState.CLEANED]
    took = any(case.state is not CaseState.HELD for case in earlier)
    asked = view.asked | {rule.name for rule in rules if not rule.fallback}
    if answers.discard is not None:
        return _discard(plan, view, book, answers.discard)
    fallbacks = [rule for rule in book.rules if rule.fallback and not rule.disabled]
    if not later:
        if not answers.matched and not took:
            answers = answers.and_also(_Answers.of(fallbacks, context, book.number))
            if answers.discard is not None:
                return _discard(plan, view, book, answers.discard)
        asked |= {rule.name for rule in fallbacks}
    openings = [*answers.held, *(_opening(rule, book.number) for rule in answers.matched)]
    settled = not later
    if settled and not openings and not earlier:
        openings = _left_over(view, book, revisions)
    plan = replace(
        plan,
        close=frozenset({view.series.id}) if openings or settled else frozenset(),
        asked=asked,
        settled=settled,
        due=min(later) if later else None,
        openings=tuple(openings),
        fired=tuple(rule.name for rule in answers.matched),
        wake=now,
    )
    return _open(plan, view, answers.matched, book)


def _left_over(view: SeriesView, book: Rulebook, revisions: Revisions) -> list[Opening]:
    """The case of a series that no rule took: none where a study's case takes every series, by its own revision."""
    state, reason = CaseState.DISCARDED, "no rule matched"
    for case in view.cases:
        if not case.is_study or case.state is CaseState.CLEANED:
            continue
        try:
            if revisions(case.revision).rule(case.rule).collect is Collect.STUDY:
                return []
        except ConfigError as error:
            state, reason = CaseState.HELD, _unreadable(case, error)
    return [Opening(rule="", revision=book.number, state=state, reason=reason)]


def _unreadable(case: CaseView, error: ConfigError) -> str:
    return f"revision {case.revision} of the rulebook, under which '{case.rule}' took it, cannot be read here: {error}"


def _context(view: SeriesView, book: Rulebook, now: datetime) -> Context:
    return Context(
        tags=view.series.tags,
        now=now.astimezone(book.settings.time_zone),
        count=view.series.instances,
        series=view.siblings,
    )


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What a round of rules said."""

    matched: tuple[Rule, ...] = ()
    held: tuple[Opening, ...] = ()
    discard: Rule | None = None

    @classmethod
    def of(cls, rules: Iterable[Rule], context: Context, revision: int) -> "_Answers":
        """Ask in order; a discard ends the round."""
        matched: list[Rule] = []
        held: list[Opening] = []
        for rule in rules:
            try:
                if not rule.expression.matches(context):
                    continue
            except RuleError as error:
                held.append(
                    Opening(rule=rule.name, revision=revision, state=CaseState.HELD, reason=f"rule in error: {error}")
                )
                continue
            if rule.action is Action.DISCARD:
                return cls(discard=rule, held=tuple(held))
            matched.append(rule)
        return cls(matched=tuple(matched), held=tuple(held))

    def and_also(self, other: "_Answers") -> "_Answers":
        """Both rounds together."""
        return _Answers(
            matched=self.matched + other.matched, held=self.held + other.held, discard=self.discard or other.discard
        )


def _discard(plan: Plan, view: SeriesView, book: Rulebook, rule: Rule) -> Plan:
    opening = Opening(
        rule=rule.name, revision=book.number, state=CaseState.DISCARDED, reason=f"discarded by rule '{rule.name}'"
    )
    return replace(
        plan, close=frozenset({view.series.id}), asked=view.asked | _names(book), settled=True, due=None,
        openings=(opening,), fired=(rule.name,), covered={(rule.name, False, view.series.id): view.last},
    )  # fmt: skip


def _opening(rule: Rule, revision: int) -> Opening:
    is_study = rule.trigger is Trigger.STUDY
    return Opening(
        rule=rule.name,
        revision=revision,
        is_study=is_study,
        state=CaseState.COLLECTING if is_study else CaseState.CLOSED,
        reason="",
    )


def _open(plan: Plan, view: SeriesView, matched: Sequence[Rule], book: Rulebook) -> Plan:
    """Jobs of the series rules that matched; what a study rule matched waits in its case."""
    covered = {(opening.rule, False, view.series.id): view.last for opening in plan.openings if not opening.is_study}
    covered |= {(rule.name, True, view.series.id): 0 for rule in matched if rule.trigger is Trigger.STUDY}
    own = [rule for rule in matched if rule.trigger is Trigger.SERIES]
    jobs: list[PlannedJob] = []
    sent = dict(view.sent)
    for rule in own:
        jobs += _jobs(
            rule, book.number, supplement=0, sent={(t, view.series.id): n for t, n in sent.items()},
            lasts={view.series.id: view.last}, covered={view.series.id: 0},
        )  # fmt: skip
        if rule.action is Action.ROUTE:
            sent |= dict.fromkeys(rule.send, view.last)
    return replace(plan, jobs=tuple(jobs), covered={**plan.covered, **covered})


def _jobs(
    rule: Rule,
    revision: int,
    *,
    supplement: int,
    sent: Mapping[tuple[str, int], int],
    lasts: Mapping[int, int],
    covered: Mapping[int, int],
) -> list[PlannedJob]:
    """
    The jobs of one closing of a case.

    Args:
        rule: Whose case.
        revision: Of the rulebook it is under.
        supplement: 0 for the first closing.
        sent: What targets were asked to get already, by any rule.
        lasts: The last portion of each series of the case.
        covered: The last portion of each series that earlier jobs of the case have.
    """
    whole = supplement > 0 and rule.late is Late.WHOLE
    held = "images came late: release to go on" if supplement and rule.late is Late.HOLD else ""

    def extents(already: Mapping[int, int]) -> tuple[Extent, ...]:
        return tuple(
            Extent(series_id=series_id, first=1 if whole else already.get(series_id, 0) + 1, last=last)
            for series_id, last in sorted(lasts.items())
            if last and (whole or last > already.get(series_id, 0))
        )

    def job(kind: Kind, target: str | None, what: tuple[Extent, ...]) -> PlannedJob:
        return PlannedJob(
            case=rule.name, kind=kind, rule=rule.name, revision=revision, extents=what, target=target,
            priority=rule.priority, supplement=supplement, held=held,
        )  # fmt: skip

    if rule.action is Action.PROCESS:
        what = extents(covered)
        return [job(Kind.PROCESS, None, what)] if what else []
    planned = []
    for target in rule.send if rule.action is Action.ROUTE else ():
        what = extents({series_id: sent.get((target, series_id), 0) for series_id in lasts})
        if what and any(e.last > sent.get((target, e.series_id), 0) for e in what):
            planned.append(job(Kind.DISPATCH, target, what))
    return planned


def _supplement(
    plan: Plan, view: SeriesView, active: Rulebook, revisions: Revisions, now: datetime, watched: timedelta
) -> Plan:
    """What came late to cases that were closed before."""
    already = {opening.rule for opening in plan.openings}
    for case in view.cases:
        if case.is_study or case.covered is None or case.covered >= view.last or case.rule in already:
            continue
        if case.state is CaseState.CLEANED:
            continue
        try:
            book, trouble = revisions(case.revision), ""
        except ConfigError as error:
            book, trouble = active, _unreadable(case, error)
        rule = book.rule(case.rule) if case.rule and not trouble else None
        quiet = book.quiet_of(rule) if rule else book.settings.series_quiet
        verdict = series_verdict(view.series.last_received, quiet=quiet, now=now, watched=watched)
        if isinstance(verdict, Wait):
            plan = replace(plan, due=min(plan.due, verdict.until) if plan.due else verdict.until)
        else:
            plan = _supplement_case(plan, view, case, rule, trouble=trouble, why=verdict.why)
    if view.fresh and any(case.is_study for case in view.cases):
        plan = replace(plan, wake=now)
    if view.settled and view.fresh and not plan.close and plan.due is None:
        return replace(plan, close=frozenset({view.series.id}))
    return plan


def _supplement_case(
    plan: Plan, view: SeriesView, case: CaseView, rule: Rule | None, *, trouble: str, why: str
) -> Plan:
    covered = {**plan.covered, (case.rule, False, view.series.id): view.last}
    plan = replace(plan, close=frozenset({view.series.id}), covered=covered)
    if trouble and case.state is CaseState.CLOSED:
        held = Opening(rule=case.rule, revision=case.revision, state=CaseState.HELD, reason=trouble)
        return replace(plan, openings=(*plan.openings, held))
    if rule is None or case.state is not CaseState.CLOSED or _is_discarded(plan, view):
        return plan  # discarded or held: what comes late shares that
    sent = {(target, view.series.id): last for target, last in view.sent.items()}
    sent |= {(job.target or "", e.series_id): e.last for job in plan.jobs for e in job.extents}
    jobs = _jobs(
        rule, case.revision, supplement=case.supplement + 1, sent=sent,
        lasts={view.series.id: view.last}, covered={view.series.id: case.covered or 0},
    )  # fmt: skip
    return replace(
        plan,
        jobs=(*plan.jobs, *jobs),
        supplemented=plan.supplemented | {(case.rule, False)},
        why=plan.why or why,
    )


def _is_discarded(plan: Plan, view: SeriesView) -> bool:
    """Whether a rule discards the series; that wins over the rules that took it before."""
    states = [(case.state, case.rule) for case in view.cases if case.id not in plan.dismissed]
    states += [(opening.state, opening.rule) for opening in plan.openings]
    return any(state is CaseState.DISCARDED and rule != "" for state, rule in states)


# -- a study --


def plan_study(view: StudyView, *, revisions: Revisions, now: datetime, watched: timedelta = timedelta(0)) -> Plan:
    """
    What is to be done about a study case now: wait, close it, or close it once more over what came late.

    One whose files are gone, or that is held, is left alone; one whose revision cannot be read here is held.
    """
    if view.case.state in {CaseState.CLEANED, CaseState.HELD}:
        return Plan(due=None)
    try:
        book = revisions(view.case.revision)
    except ConfigError as error:
        reason = _unreadable(view.case, error)
        held = Opening(
            rule=view.case.rule, revision=view.case.revision, state=CaseState.HELD, reason=reason, is_study=True
        )
        return Plan(due=None, openings=(held,))
    rule = book.rule(view.case.rule)
    members = [m for m in view.members if not m.is_discarded and (rule.collect is Collect.STUDY or m.is_match)]
    is_waited_for = any(member.is_held for member in members)
    members = [member for member in members if not member.is_held]
    pending = [m for m in members if m.last > m.covered]
    unsettled = any(not member.settled for member in view.members)
    if not pending:
        is_over = not unsettled and not is_waited_for and view.case.state is CaseState.COLLECTING
        return Plan(due=None, settled=is_over, why="every series of it was discarded" if is_over else "")
    verdict = study_verdict(
        max(member.last_received for member in members),
        quiet=book.study_quiet_of(rule),
        series_waiting=unsettled,
        now=now,
        watched=watched,
    )
    if isinstance(verdict, Wait):
        return Plan(due=verdict.until)
    return _close_study(view, rule, members, why=verdict.why)


def _close_study(view: StudyView, rule: Rule, members: Sequence[Member], *, why: str) -> Plan:
    again = view.case.state is CaseState.CLOSED
    supplement = view.case.supplement + 1 if again else 0
    jobs = _jobs(
        rule, view.case.revision, supplement=supplement, sent=view.sent,
        lasts={m.series_id: m.last for m in members}, covered={m.series_id: m.covered for m in members},
    )  # fmt: skip
    return Plan(
        due=None,
        why=why,
        settled=True,
        close=frozenset(member.series_id for member in members if member.fresh),
        jobs=tuple(jobs),
        covered={(view.case.rule, True, member.series_id): member.last for member in members},
        supplemented=frozenset({(view.case.rule, True)}) if again else frozenset(),
    )


# -- what a person decides --


#: What a person's choice puts an end to.
_STOPPED = frozenset({CaseState.DISCARDED, CaseState.HELD})


def route_series(view: SeriesView, rule: Rule, *, book: Rulebook, actor: str, now: datetime, whole: bool) -> Plan:
    """
    Take a series to a rule that a person chose, complete or not, whatever the rule says of it.

    What discards or holds it ends. Where the rule took it before, only what is not in a portion yet goes. Rules that
    were not asked yet still are, unless the series was held.

    Args:
        view: The series as it stands.
        rule: Of *book*: a series rule, or one that discards.
        book: The one that runs.
        actor: Who chose.
        now: When.
        whole: Whether the choice is for the whole study, so that its held study cases end, too.

    Raises:
        Refused: The rule has all of it.
    """
    reason = f"routed to rule '{rule.name}' by {actor}"
    before = _own_case(view, rule.name)
    if before is not None and before.state is not CaseState.HELD and (before.covered or 0) >= view.last:
        raise Refused(f"rule '{rule.name}' has all of series {view.series.series_instance_uid} already")
    ended = {
        case.id: reason
        for case in view.cases
        if (whole or not case.is_study) and case.rule != rule.name and case.state in _STOPPED
    }
    plan = Plan(
        due=now, why=reason, close=frozenset({view.series.id}), asked=view.asked | {rule.name},
        settled=view.settled or bool(view.held), fired=(rule.name,), wake=now, is_decided=True, dismissed=ended,
    )  # fmt: skip
    if before is not None and before.state is CaseState.CLOSED:
        unheld = rule if rule.late is not Late.HOLD else replace(rule, late=Late.NEW)
        return _supplement_case(plan, view, replace(before, revision=book.number), unheld, trouble="", why=reason)
    if rule.action is Action.DISCARD:
        opening = replace(_discard(plan, view, book, rule).openings[0], reason=f"discarded: {reason}", anew=True)
        return replace(_discard(plan, view, book, rule), openings=(opening,))
    return _open(replace(plan, openings=(replace(_opening(rule, book.number), anew=True),)), view, [rule], book)


def _own_case(view: SeriesView, rule: str) -> CaseView | None:
    """The case of a rule over this series alone, if it has it now."""
    own = (case for case in view.cases if case.rule == rule and not case.is_study and case.covered is not None)
    return next((case for case in own if case.state is not CaseState.CLEANED), None)


def route_study(view: StudyView, rule: Rule, *, book: Rulebook, actor: str) -> Plan:
    """
    Take a study to a study rule that a person chose: one case with every member, closed now.

    Raises:
        Refused: The rule has all of it.
    """
    begun = view.case.state in {CaseState.CLOSED, CaseState.HELD}
    covered = {m.series_id: m.covered if begun else 0 for m in view.members}
    if view.case.state is CaseState.CLOSED and all(m.last <= covered[m.series_id] for m in view.members):
        raise Refused(f"rule '{rule.name}' has all of the study already")
    again = any(covered.values())
    unheld = rule if rule.late is not Late.HOLD else replace(rule, late=Late.NEW)
    jobs = _jobs(
        unheld, book.number, supplement=view.case.supplement + 1 if again else 0, sent=view.sent,
        lasts={m.series_id: m.last for m in view.members}, covered=covered,
    )  # fmt: skip
    return Plan(
        due=None,
        why=f"routed to rule '{rule.name}' by {actor}",
        settled=True,
        close=frozenset(member.series_id for member in view.members if member.fresh),
        jobs=tuple(jobs),
        covered={(rule.name, True, member.series_id): member.last for member in view.members},
        supplemented=frozenset({(rule.name, True)}) if again else frozenset(),
        fired=(rule.name,),
        is_decided=True,
    )
