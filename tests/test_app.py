"""The only page of composition: which rulebook a service starts with, and a supervisor that nothing ends."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from rows import HEAD, SHELVES, TO_X
from talaria.app import Supervisor
from talaria.model.config import Config
from talaria.model.errors import ConfigError
from talaria.store.ledger import Ledger
from talaria.store.revisions import Revisions, Rulebooks
from talaria.testing import MovedClock

GOOD = f"{HEAD}  {TO_X}\n"
BAD = GOOD.replace("kind: nowhere", "kind: somewhere")


def rulebooks(ledger: Ledger, tmp_path: Path) -> Rulebooks:
    return Rulebooks(Revisions(ledger), shelves=SHELVES, cache=tmp_path / "running.yaml")


def save(ledger: Ledger, *texts: str) -> None:
    for text in texts:
        Revisions(ledger).save(text, author="eve", now=MovedClock().now())


@pytest.mark.parametrize("is_cached", [True, False])
def test_start_with_a_rulebook_that_is_not_understood(ledger: Ledger, tmp_path: Path, is_cached: bool) -> None:
    """
    Where the newest revision names a plug that is gone, the last good one runs, and the reason is told.
    """
    save(ledger, GOOD, GOOD)
    if is_cached:
        rulebooks(ledger, tmp_path).refresh()
    save(ledger, BAD, BAD)
    books = rulebooks(ledger, tmp_path)
    with pytest.raises(ConfigError, match="somewhere"):
        books.refresh()

    assert 2 == books.running().number == books.follow(MovedClock().now()).number


def test_nothing_is_decided_by_no_rulebook(ledger: Ledger, tmp_path: Path) -> None:
    """
    Where no revision can be understood, nobody is told that the empty rulebook runs.
    """
    save(ledger, BAD)
    books = rulebooks(ledger, tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match="somewhere"):
            books.follow(MovedClock().now())


class Forks:
    """Stands in for fork(2): answers from a list, and then asks the supervisor to end."""

    def __init__(self, *answers: int | OSError) -> None:
        self.answers: Iterator[int | OSError] = iter(answers)

    def __call__(self) -> int:
        answer = next(self.answers, None)
        if answer is None:
            os.kill(os.getpid(), signal.SIGTERM)
            return 999_999_999
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    """One of a single service, whose handlers of signals are undone in the end."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    address = SecretStr(f"sqlite:///{tmp_path}/ledger.db")
    config = Config(home=tmp_path, database_url=address, spool=tmp_path / "spool", secret_key_file=tmp_path / "key")
    yield Supervisor(config, ["router"])
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_fork_that_fails_is_tried_again(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where there is no process to be had, the supervisor goes on and tries again; so it does where a child is nobody's.
    """
    forks = Forks(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 999_999_999)
    monkeypatch.setattr("os.fork", forks)
    supervisor.run()

    assert None is next(forks.answers, None)


def test_ignored_ends_of_children_are_told_again(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A supervisor that was started with SIGCHLD ignored hears of its children nevertheless.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    monkeypatch.setattr("os.fork", Forks())
    supervisor.run()
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])

    assert 3 == child.wait(20)
