"""The site as a whole: headers, limits, health, and what is answered when something breaks."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from talaria.store.listing import Listing
from talaria.store.operations import Operations
from talaria.web.site import create_site
from world import World

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

EVERYWHERE = [
    "/", "/login", "/studies/1.2.826.1", "/api/v1/studies", "/api/v1/jobs/0", "/nothing", "/health/live",
    "/health/ready", "/static/site.css", "/api/v1/openapi.json",
]  # fmt: skip


@pytest.mark.parametrize("path", EVERYWHERE)
def test_headers_on_every_answer(still: World, path: str) -> None:
    """
    Every answer, good or bad, signed in or not, holds the browser to the policy, and data is kept nowhere.
    """
    for client in (still.browser(), still.client()):
        headers = client.get(path).headers

        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == ("no-cache" if "/static/" in path else "no-store")


def test_static_files(still: World) -> None:
    """
    Style and script are served under an address that changes with them, and nothing beside them is.
    """
    client = still.client()
    address = client.get("/login").text.split('rel="stylesheet" href="')[1].split('"')[0]
    style = client.get(address)

    assert style.headers["content-type"] == "text/css; charset=utf-8"
    assert style.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert client.get("/static/live.js").headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    "name",
    [
        "..%2Fsite.py",
        "../site.py",
        "%2e%2e/site.py",
        "..%5Csite.py",
        "%2Fetc%2Fpasswd",
        "site.css%00",
        "",
        ".",
        "x.css",
    ],
)
def test_nothing_else_is_served(still: World, name: str) -> None:
    """
    A static file is found by its name alone: no way leads out of the folder.
    """
    assert still.client().get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_long_body_is_refused(world: World, path: str) -> None:
    """
    A body over the limit is refused, said to be long or not; what is under it is read.
    """
    client = world.browser()
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    assert client.post(path, content=b"a=" + b"x" * 70_000, headers=form).status_code == 413
    assert client.post(path, content=(b"x" * 1000 for _ in range(100)), headers=form).status_code == 413
    assert client.post("/login", content=b"a=" + b"x" * 60_000, headers=form).status_code == 401


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\xff\xfe%ZZ&&==&", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % number for number in range(5000)), "application/x-www-form-urlencoded"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data"),
        (b"{", "application/json"),
        (b"token=" + b"y" * 600, "application/x-www-form-urlencoded"),
        (b"token=%00&next=%0d%0aX:y", "application/x-www-form-urlencoded"),
    ],
)
def test_odd_forms(world: World, content: bytes, kind: str) -> None:
    """
    A form that is none is refused with a 4xx, never a 500.
    """
    for path in ("/login", "/logout"):
        answer = world.browser().post(path, content=content, headers={"Content-Type": kind})

        assert 400 <= answer.status_code < 500


# -- when something breaks --


def test_away_ledger_is_told_to_machines(busy: World) -> None:
    """
    With the ledger away the API answers 503 with a problem document, and names no address.
    """
    client = busy.program()
    busy.break_ledger()
    answer = client.get("/api/v1/jobs")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["detail"] == (
        "the ledger cannot be reached; images go on being accepted, and nothing is lost; try again in a moment"
    )
    assert "ledger.db" not in answer.text


def test_away_ledger_is_told_to_people(busy: World) -> None:
    """
    With the ledger away a page says what that means, what goes on, and tries again by itself.
    """
    client = busy.browser()
    busy.break_ledger()
    for answer in (client.get("/"), client.post("/login", data={"token": "x"})):
        assert answer.status_code == 503
        assert "Degraded: the ledger cannot be reached" in answer.text
        assert '<meta http-equiv="refresh" content="5">' in answer.text
        assert "ledger.db" not in answer.text
    assert client.get("/login").status_code == 200
    assert client.get("/static/site.css").status_code == 200


class Broken(Listing):
    """A listing with a bug."""

    def jobs(self, **_: Any) -> Any:
        """Break, with something in the message that nobody is to see."""
        raise RuntimeError("ZZPHI^SENTINEL")

    def queue(self) -> Any:
        """The same, for a page."""
        raise RuntimeError("ZZPHI^SENTINEL")


@pytest.mark.parametrize("path", ["/", "/api/v1/jobs"])
def test_bug_shows_no_traceback(world: World, path: str) -> None:
    """
    A bug is answered 500 in the form of its surface, under all headers, without a word of itself.
    """
    world.listing = Broken(world.ledger)
    answer = world.browser().get(path)

    assert answer.status_code == 500
    assert "ZZPHI" not in answer.text
    assert "Traceback" not in answer.text
    assert "a bug stopped this request; the log has its place" in answer.text
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-store"


# -- health --


def test_live_is_open(world: World) -> None:
    """
    That the process answers is told to everybody, ledger or not.
    """
    client = world.client()
    world.break_ledger()
    answer = client.get("/health/live")

    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})
    assert client.head("/health/live").status_code == 200


def test_ready_tells_everybody_yes_or_no(busy: World) -> None:
    """
    Whether all is there is told to everybody, and no more than that.
    """
    answer = busy.client().get("/health/ready")

    assert (answer.status_code, answer.json()) == (200, {"ready": True})

    busy.break_ledger()
    answer = busy.client().get("/health/ready")

    assert (answer.status_code, answer.json()) == (503, {"ready": False})


def test_ready_tells_who_shows_a_token(still: World) -> None:
    """
    With a token each dependency and queue is told.
    """
    found = still.program().get("/health/ready").json()
    dependencies = {each["name"]: each["ready"] for each in found["dependencies"]}

    assert dependencies == {
        f"spool {still.spool.root}": True, "ledger": True, "service bookkeeper": True, "service cleaner": True,
        "service dispatcher": True, "service processor": True, "service receiver": True, "service router": True,
        "service web": True,
    }  # fmt: skip
    assert found["queues"] == [
        {"kind": "dispatch", "target": "archive", "states": {"failed": 1, "pending": 1}, "oldest_seconds": 47.0,
         "paused": False},
        {"kind": "dispatch", "target": "pacs", "states": {"deferred": 1, "pending": 1}, "oldest_seconds": 47.0,
         "paused": False},
    ]  # fmt: skip
    assert found["pauses"] == []


def test_pauses_and_drain_are_told(busy: World) -> None:
    """
    Who shows a token learns what is paused, and by whom; a drain makes us unready, since nothing new is accepted.
    """
    operations, now = Operations(busy.ledger, busy.rulebooks), busy.clock.now()
    operations.pause("dispatch", "pacs", actor="ada", reason="being moved", now=now)
    found = busy.program().get("/health/ready").json()

    assert found["ready"] is True
    assert found["pauses"] == [
        {"kind": "dispatch", "target": "pacs", "actor": "ada", "reason": "being moved", "since": "2026-01-05T08:05:47Z"}
    ]
    assert [queue["paused"] for queue in found["queues"]] == [False, True]

    operations.drain(actor="ada", reason="upgrade", now=now)
    answer = busy.program().get("/health/ready")

    assert (answer.status_code, busy.client().get("/health/ready").json()) == (503, {"ready": False})
    assert all(queue["paused"] for queue in answer.json()["queues"])
    assert {
        "name": "drain", "ready": False,
        "detail": "nothing new is accepted, asked by ada: upgrade; end it with `talaria drain --end`",
    } in answer.json()["dependencies"]  # fmt: skip


def test_silent_service_is_not_ready(busy: World) -> None:
    """
    A service that ended without a word makes us unready until it is back; another process of it is as good.
    """
    busy.clock.move(timedelta(seconds=20))
    busy.services("receiver", "router", "processor", "cleaner", "bookkeeper", "web")
    answer = busy.program().get("/health/ready")

    assert answer.status_code == 503
    assert [each for each in answer.json()["dependencies"] if not each["ready"]] == [
        {"name": "service dispatcher", "ready": False, "detail": "not heard of for 27 s"}
    ]

    busy.services("dispatcher")

    assert busy.client().get("/health/ready").status_code == 200


def test_nothing_running_is_not_ready(world: World) -> None:
    """
    Where no service was ever heard of, nothing is ready.
    """
    answer = world.program().get("/health/ready")

    assert answer.status_code == 503
    assert {"name": "services", "ready": False, "detail": "none was heard of; start them with `talaria serve`"} in (
        answer.json()["dependencies"]
    )


def test_unmounted_spool_is_not_ready(busy: World) -> None:
    """
    A spool whose disk is gone makes us unready, and the overview says so.
    """
    (busy.spool.root / busy.spool.MARKER).unlink()
    answer = busy.program().get("/health/ready")
    trouble = f"spool {busy.spool.root}: its marker file is gone; is the disk mounted?"

    assert answer.status_code == 503
    assert {"name": f"spool {busy.spool.root}", "ready": False, "detail": trouble} in answer.json()["dependencies"]
    assert trouble in busy.browser().get("/").text


def test_full_disk_is_not_ready(busy: World) -> None:
    """
    With less room than the reserve nothing is accepted, and that is told.
    """
    site = create_site(
        ledger=busy.ledger, listing=busy.listing, access=busy.access, spools=[busy.spool], rulebooks=busy.rulebooks,
        clock=busy.clock.now, secure_cookies=False, reserve_bytes=1 << 60,
    )  # fmt: skip
    busy.__dict__["site"] = site

    assert busy.client().get("/health/ready").status_code == 503
    assert "Nothing more is accepted." in busy.browser().get("/").text


def test_package_has_its_files() -> None:
    """
    Templates and static files lie inside the package, and each template is used.
    """
    folder = Path(create_site.__code__.co_filename).parent

    assert {file.name for file in (folder / "static").iterdir()} == {"site.css", "live.js", "icon.svg"}
    assert {file.name for file in (folder / "templates").iterdir()} == {
        "layout.html", "signed_in.html", "macros.html", "overview.html", "study.html", "login.html", "error.html",
        "degraded.html",
    }  # fmt: skip
