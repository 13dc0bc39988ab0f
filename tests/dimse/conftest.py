"""A listener on an in-memory sink, and what was logged."""

from collections.abc import Callable, Iterator, MutableMapping
from datetime import timedelta

import pytest
import structlog

from talaria.dimse.scp import Limits, Listener
from wire import BUGS, MemorySink, guard


@pytest.fixture(autouse=True)
def _no_bugs() -> Iterator[None]:
    """No test leaves a bug behind that it did not ask for."""
    BUGS.clear()
    yield
    assert [] == [bug for bug in BUGS if str(bug) != "asked for"]


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, object]]]:
    """What was logged, and nothing on the screen."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def listen(sink: MemorySink) -> Iterator[Callable[..., Listener]]:
    """Makes listeners on the sink, at free ports, with short time-outs; stops them after the test."""
    made: list[Listener] = []

    def listen(limits: Limits | None = None, **settings: object) -> Listener:
        listener = Listener(
            host="127.0.0.1",
            port=0,
            sink=sink,
            guard=guard,
            limits=limits or Limits(),
            **settings,
        )
        listener.start()
        made.append(listener)
        return listener

    yield listen
    for listener in made:
        listener.stop(timedelta(0))
