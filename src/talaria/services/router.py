"""The router: asks the rulebook about series and studies that are complete, and makes jobs of the answers."""

from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from talaria.model.errors import LedgerAway, Overtaken
from talaria.model.plan import Plan, plan_series, plan_study
from talaria.services.loop import guarded, told
from talaria.store.cases import Cases
from talaria.store.revisions import Rulebooks

log = structlog.get_logger()

#: A series or case that a bug stops is looked at again after this long; the others go on.
_AFTER_A_BUG = timedelta(minutes=5)


class Router:
    """One step looks at one series or study case that is due."""

    name = "router"
    lanes = 1

    def __init__(self, *, cases: Cases, rulebooks: Rulebooks) -> None:
        self._cases, self._rulebooks = cases, rulebooks

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
        plan = plan_series(view, active=book, revisions=self._rulebooks.of, now=now)
        made = self._cases.apply_series(view, plan, revision=book.number, now=now)
        _say(plan, made, series=series_id)

    def route_study(self, case_id: int, now: datetime) -> None:
        """Plan for one study case, and make the plan true."""
        view = self._cases.study_view(case_id)
        plan = plan_study(view, revisions=self._rulebooks.of, now=now)
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


def _say(plan: Plan, made: list[int], **subject: int) -> None:
    if plan.openings or made:
        log.info("routed", rules=list(plan.fired), jobs=made, why=plan.why, **subject)
