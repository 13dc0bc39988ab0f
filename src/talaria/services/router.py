"""The router: asks the rulebook about series and studies that are complete, and makes jobs of the answers."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from talaria.failpoint import failpoint
from talaria.model.errors import LedgerAway, Overtaken
from talaria.model.plan import CaseState, Plan, plan_series, plan_study
from talaria.services.loop import guarded, told
from talaria.store.cases import Cases
from talaria.store.revisions import Rulebooks

log = structlog.get_logger()

#: A series or case that a bug stops is looked at again after this long; the others go on.
_AFTER_A_BUG = timedelta(minutes=5)
#: Of so many series and studies from before a step back of the clock the quiet time is watched at once.
_MOST_WATCHED = 10_000


class Router:
    """One step looks at one series or study case that is due."""

    name = "router"
    lanes = 1

    def __init__(self, *, cases: Cases, rulebooks: Rulebooks, uptime: Callable[[], timedelta] | None = None) -> None:
        self._cases, self._rulebooks = cases, rulebooks
        self._watch = _Watch(uptime or _since_boot)

    def step(self, now: datetime) -> bool:
        """Look at what is due longest; whether there may be more."""
        self._rulebooks.follow(now)
        series_id = self._cases.due_series(now)
        if series_id is not None:
            self._attempt(
                lambda: self.route_series(series_id, now),
                lambda: self._cases.postpone_series(series_id, now + _AFTER_A_BUG),
                series=series_id,
            )
            return True
        case_id = self._cases.due_study(now)
        if case_id is not None:
            self._attempt(
                lambda: self.route_study(case_id, now),
                lambda: self._cases.postpone_case(case_id, now + _AFTER_A_BUG),
                case=case_id,
            )
            return True
        return False

    def idle(self, now: datetime) -> timedelta:
        """Until the next series or case is due."""
        due = self._cases.next_due()
        return timedelta(seconds=1) if due is None else max(due - now, timedelta(0))

    def route_series(self, series_id: int, now: datetime) -> None:
        """Plan for one series, and make the plan true."""
        view = self._cases.series_view(series_id)
        book = self._rulebooks.running()
        watched = self._watch.of("series", series_id, view.series.last_received, now=now)
        plan = plan_series(view, active=book, revisions=self._rulebooks.of, now=now, watched=watched)
        failpoint("router.series.planned")
        made = self._cases.apply_series(view, plan, revision=book.number, now=now)
        _say(plan, made, series=series_id)

    def route_study(self, case_id: int, now: datetime) -> None:
        """Plan for one study case, and make the plan true."""
        view = self._cases.study_view(case_id)
        last = max((member.last_received for member in view.members), default=now)
        watched = self._watch.of("case", case_id, last, now=now)
        plan = plan_study(view, revisions=self._rulebooks.of, now=now, watched=watched)
        failpoint("router.study.planned")
        made = self._cases.apply_study(view, plan, now=now)
        _say(plan, made, case=case_id)

    def _attempt(self, work: Callable[[], None], postpone: Callable[[], None], **subject: int) -> None:
        """One series that a bug stops must not stop the others."""
        bug = guarded(work)
        if bug is None or isinstance(bug, Overtaken):
            return
        if isinstance(bug, LedgerAway):
            raise bug
        log.error("routing failed", bug=told(bug), exc_info=bug, **subject)
        postpone()


class _Watch:
    """How long what came before a step back of the clock was seen to be quiet: the wall clock cannot tell."""

    def __init__(self, uptime: Callable[[], timedelta]) -> None:
        self._uptime = uptime
        self._seen: dict[tuple[str, int], tuple[datetime, timedelta]] = {}

    def of(self, kind: str, number: int, last_received: datetime, *, now: datetime) -> timedelta:
        """Since it was first seen with nothing newer than *last_received*, which is after *now*; else nothing."""
        if last_received <= now:
            self._seen.pop((kind, number), None)
            return timedelta(0)
        seen, since = self._seen.get((kind, number), (None, timedelta(0)))
        if seen != last_received:
            since = self._uptime()
            self._seen[kind, number] = (last_received, since)
            if len(self._seen) > _MOST_WATCHED:
                del self._seen[next(iter(self._seen))]
        return self._uptime() - since


def _since_boot() -> timedelta:
    """A clock that never jumps, the sleep of the machine counted."""
    return timedelta(seconds=time.clock_gettime(time.CLOCK_BOOTTIME))


def _say(plan: Plan, made: list[int], **subject: int) -> None:
    for opening in plan.openings:
        if opening.state is CaseState.HELD:
            log.warning("case held", rule=opening.rule, revision=opening.revision, reason=opening.reason, **subject)
    if plan.openings or made:
        log.info("routed", rules=list(plan.fired), jobs=made, why=plan.why, **subject)
