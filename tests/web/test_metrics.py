"""Figures for Prometheus."""

from datetime import timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from talaria.store.operations import Operations
from talaria.web.site import create_site
from world import World

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(world: World) -> Samples:
    """All figures, as Prometheus reads them."""
    answer = world.program().get("/metrics")
    assert (200, "text/plain; version=0.0.4; charset=utf-8") == (answer.status_code, answer.headers["content-type"])
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """One figure."""
    return samples[name, tuple(sorted(labels.items()))]


def test_figures(busy: World) -> None:
    """
    What came, what waits, how long deliveries took, and what is up, by the names that are promised.
    """
    found = scraped(busy)

    assert 26.0 == value(found, "talaria_instances_received_total", calling_ae="CT1")
    assert 2.0 == value(found, "talaria_jobs", kind="dispatch", state="done")
    assert 1.0 == value(found, "talaria_jobs", kind="process", state="done")
    assert 0.0 == value(found, "talaria_jobs", kind="notify", state="held")
    assert 1.0 == value(found, "talaria_delivery_seconds_count", target="archive")
    assert 1.0 == value(found, "talaria_delivery_seconds_bucket", target="archive", le="+Inf")
    assert 47.0 == value(found, "talaria_queue_oldest_seconds", target="pacs")
    assert value(found, "talaria_disk_free_bytes", spool=str(busy.spool.root)) > 0
    assert 1.0 == value(found, "talaria_service_up", service="router")
    assert (1.0, 1.0) == (value(found, "talaria_ledger_up"), value(found, "talaria_rulebook_revision"))


def test_pauses_are_figures(busy: World) -> None:
    """
    What is paused can be watched.
    """
    Operations(busy.ledger, busy.rulebooks).pause("dispatch", "pacs", actor="ada", now=busy.clock.now())

    assert 1.0 == value(scraped(busy), "talaria_paused", kind="dispatch", target="pacs")


def test_silent_service_is_down(busy: World) -> None:
    """
    A service that is not heard of any more is down.
    """
    busy.clock.move(timedelta(minutes=5))

    assert 0.0 == value(scraped(busy), "talaria_service_up", service="router")


def test_no_patient_is_named(still: World) -> None:
    """
    No figure says whose it is.
    """
    text = still.program().get("/metrics").text

    assert not [word for word in ("Synthetic", "Prüfkörper", "P000", "1.2.826", "CHEST") if word in text]


def test_label_is_escaped(world: World) -> None:
    """
    A sender cannot add a line by the name it gives itself.
    """
    world.receive(1)
    with world.ledger.writing("test.rename") as connection:
        connection.exec_driver_sql("UPDATE received SET calling_ae = 'A\"} 1\n\\'")

    assert 3.0 == value(scraped(world), "talaria_instances_received_total", calling_ae='A"} 1\n\\')


@pytest.mark.parametrize(("is_open", "status"), [(True, 200), (False, 401)])
def test_open_where_the_machine_says_so(busy: World, is_open: bool, status: int) -> None:
    """
    Figures need a token unless `metrics_open` says otherwise.
    """
    busy.__dict__["site"] = create_site(
        ledger=busy.ledger, listing=busy.listing, access=busy.access, spools=[busy.spool], rulebooks=busy.rulebooks,
        clock=busy.clock.now, secure_cookies=False, metrics_open=is_open,
    )  # fmt: skip

    assert status == busy.client().get("/metrics").status_code


def test_ledger_that_is_away_is_a_figure(busy: World) -> None:
    """
    With the ledger away the figures that need none are told, and that it is away.
    """
    busy.__dict__["site"] = create_site(
        ledger=busy.ledger, listing=busy.listing, access=busy.access, spools=[busy.spool], rulebooks=busy.rulebooks,
        clock=busy.clock.now, secure_cookies=False, metrics_open=True,
    )  # fmt: skip
    client = busy.client()
    busy.break_ledger()
    text = client.get("/metrics").text

    assert "talaria_ledger_up 0.0" in text
    assert "talaria_disk_free_bytes{" in text
    assert "talaria_jobs" not in text
