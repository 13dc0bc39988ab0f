"""Who works on a ledger, and who works no more."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

from talaria.store.ledger import Ledger
from talaria.store.listing import Listing
from talaria.store.workers import Process, Workers, is_dead
from talaria.testing import MovedClock


def test_living_process_is_not_dead() -> None:
    """
    A process of this host that runs is alive, whatever lane is named after it.
    """
    own = Process.own()

    assert not is_dead(own.owner, host=own.host)
    assert not is_dead(f"{own.owner}/3", host=own.host)


def test_ended_process_is_dead() -> None:
    """
    A process that ended is dead, also when its number is used again by another.
    """
    own = Process.own()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    assert is_dead(replace(own, pid=ended.pid).owner, host=own.host)
    assert is_dead(replace(own, started="1").owner, host=own.host)


def test_other_hosts_are_not_judged() -> None:
    """
    Of a process of another host nothing can be told, nor of an owner that is none of ours.
    """
    own = Process.own()

    assert not is_dead(replace(own, pid=999_999_999).owner, host="another")
    assert not any(is_dead(owner, host=own.host) for owner in ("", own.host, f"{own.host}/x/1"))


def test_services_are_heard_of(ledger: Ledger, clock: MovedClock) -> None:
    """
    A service that says that it lives is listed with when it began and was heard of, once; one that stopped is not.
    """
    workers, own = Workers(ledger), Process.own()
    began = clock.now()
    for _ in range(3):
        workers.seen(own, "router", started=began, now=clock.move(timedelta(seconds=5)))
    (line,) = Listing(ledger).workers(since=began)

    assert ("router", os.getpid(), began, clock.now()) == (line.service, line.pid, line.started, line.seen)
    assert () == Listing(ledger).workers(since=clock.now() + timedelta(seconds=1))
    workers.gone(own, "router")
    assert () == Listing(ledger).workers(since=began)
