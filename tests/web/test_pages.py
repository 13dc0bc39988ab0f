"""The pages: what they show, and that what they show is text."""

from datetime import timedelta

import pytest

from talaria.model.job import Event, Kind
from talaria.store.operations import Operations
from world import World

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


def page(world: World, path: str = "/") -> str:
    """A page as its reader gets it."""
    answer = world.browser().get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_empty_pages_say_what_to_do(world: World) -> None:
    """
    A new installation shows what to do next instead of empty tables.
    """
    text = page(world)

    assert "<code>talaria serve</code>" in text
    assert "<code>talaria apply FILE</code>" in text
    assert "<code>talaria send FOLDER --to HOST:PORT --called TALARIA</code>" in text
    assert "Nothing waits" in text
    assert "Every sender is accepted." in text


def test_overview_shows_how_it_goes(still: World) -> None:
    """
    Services, disk, queue and studies stand on one page, states as words, ages with their moment.
    """
    text = page(still)

    for name in ("receiver", "router", "processor", "dispatcher", "cleaner", "bookkeeper", "web"):
        assert f'<span class="name">{name}</span>' in text
    assert '<span class="state failed">failed</span>' in text
    assert '<span class="state receiving">receiving</span>' in text
    assert '<a href="/studies/1.2.826.4">Prüfkörper, Žofie</a>' in text
    assert "cannot be made: Permission denied; check its rights" in text.replace("&#39;", "'")
    assert '<time datetime="2026-01-05T08:05:40Z" title="2026-01-05T08:05:40+00:00">7 s ago</time>' in text
    assert "free</span>" in text
    assert '<span class="faint">revision</span> 1' in text


def test_silent_services_are_told(busy: World) -> None:
    """
    A service that was not heard of for a while is named, with what to do.
    """
    busy.clock.move(timedelta(minutes=1))
    busy.services("receiver", "router", "processor", "cleaner", "bookkeeper", "web")
    text = page(busy)

    assert "Silent: dispatcher." in text
    assert "<code>talaria serve dispatcher</code>" in text


def test_listed_senders_silence_the_warning(world: World) -> None:
    """
    With senders in the rulebook nobody is warned that everybody may send.
    """
    world.apply("senders:\n  ct1: {ae: CT1}\nrules: {}\n")

    assert "Every sender is accepted." not in page(world)
    assert "The rulebook has no rules." in page(world)


def test_moments_are_shown_on_the_clock_of_the_rulebook(world: World) -> None:
    """
    The exact moment is told in the rulebook's time zone, and in UTC for machines.
    """
    world.apply("settings: {time_zone: Europe/Berlin}\nrules: {}\n")
    world.receive(1)

    assert '<time datetime="2026-01-05T08:00:00Z" title="2026-01-05T09:00:00+01:00">just now</time>' in page(world)


def test_study_shows_its_life(still: World) -> None:
    """
    A study's page shows its series, cases, jobs, deliveries per target and what happened, in words.
    """
    text = page(still, "/studies/1.2.826.2")

    assert "2 of 3" in text
    assert "1 of 3" in text
    assert 'again <time datetime="2026-01-05T08:09:00Z"' in text
    assert "the first image arrived" in text
    assert "made: dispatch for rule ct, target archive" in text
    assert "CT1 <span" in text


def test_module_runs_show_their_log(still: World) -> None:
    """
    What a module said is on the page, folded away.
    """
    text = page(still, "/studies/1.2.826.4")

    assert "<pre" in text
    assert "read 2 files\nwrote 2 files" in text


def test_unknown_study_is_a_page(still: World) -> None:
    """
    A study that is not there is told on a page, and an impossible UID as well.
    """
    missing, impossible = still.browser().get("/studies/1.2.3"), still.browser().get("/studies/..;")

    assert (missing.status_code, impossible.status_code) == (404, 422)
    assert "no study 1.2.3 is known here" in missing.text
    assert missing.headers["content-type"].startswith("text/html")


def test_stored_html_is_text(world: World) -> None:
    """
    Whatever stands in a tag, an AE title, a reason or a log is shown as text on every page.
    """
    world.apply()
    fields = ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "AccessionNumber")
    uid = world.receive(1, modality="MR", tags=dict.fromkeys(fields, HOSTILE))
    world.receive(2, modality=HOSTILE, tags=dict.fromkeys(fields, HOSTILE))
    world.clock.move(timedelta(minutes=5))
    world.route()
    claim = world.claim(Kind.PROCESS)
    world.run_module(claim, log=HOSTILE, reason=HOSTILE, code=1)
    world.end(claim, Event.FAIL, reason=HOSTILE)
    texts = [page(world), page(world, f"/studies/{uid}"), page(world, "/studies/1.2.826.2")]

    assert all("&lt;script&gt;" in text for text in texts)
    for text in texts:
        assert "<script>" not in text
        assert "<img src=x" not in text
        assert "49" not in text.split("<main", 1)[1].split("alert", 1)[1][:80]


@pytest.mark.parametrize(
    "path", ["/login?link=", "/login?next=/", "/studies/", "/nothing/", "/static/"],
)  # fmt: skip
def test_html_in_an_address_is_text(still: World, path: str) -> None:
    """
    What stands in an address is shown as text, too.
    """
    text = still.browser().get(path + HOSTILE).text

    assert "<script>" not in text
    assert "onerror=alert(1)>" not in text


def test_no_script_or_style_in_a_page(still: World) -> None:
    """
    Pages hold to their own policy: no inline script, no inline style, nothing from elsewhere.
    """
    for path in ("/", "/studies/1.2.826.2", "/login", "/nothing"):
        text = still.browser().get(path).text

        assert "<style" not in text
        assert " style=" not in text
        assert " onclick=" not in text
        assert "http://" not in text
        assert "https://" not in text
        assert all(script.startswith(' src="/static/') for script in text.split("<script")[1:])


def test_page_works_without_script(still: World) -> None:
    """
    Without script a page fetches itself anew.
    """
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in page(still)


def test_many_studies_are_cut(world: World) -> None:
    """
    The last fifty studies are shown, and how to see the others is told.
    """
    world.apply()
    for number in range(60):
        world.receive(number + 1, images=1)
    text = page(world)

    assert text.count('href="/studies/') == 50
    assert "<code>talaria studies list</code>" in text


def test_what_is_paused_is_told(world: World) -> None:
    """
    A pause and a drain stand on the first page with who, why, and how to end them; hostile reasons are text.
    """
    now = world.clock.now()
    operations = Operations(world.ledger, world.rulebooks)
    operations.pause("process", actor="local:ada", reason=HOSTILE, now=now)
    operations.drain(actor="token:upgrade", now=now)
    text = page(world)

    assert "<strong>Paused: process.</strong>" in text
    assert "<code>talaria resume process</code>" in text
    assert "by token:upgrade. End it with <code>talaria drain --end</code>" in text
    assert "<script>alert" not in text
