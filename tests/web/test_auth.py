"""Who may see what: every route is behind the gate, and only what is good opens it."""

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from talaria.store.access import CredentialKind, Scope
from talaria.testing import MovedClock
from talaria.web.auth import (
    COOKIE,
    GRANTS,
    GatedRoute,
    Permission,
    Throttle,
    csrf_token,
    is_foreign,
    local_path,
)
from talaria.web.site import create_site
from world import ADDRESS, OWN_PAGE, World

UID = "1.2.826.1"

#: The whole route table: who adds a route says here what it asks.
TABLE = {
    ("GET", "/"): Permission.VIEW,
    ("GET", "/studies/{study_uid}"): Permission.VIEW,
    ("GET", "/login"): Permission.OPEN,
    ("POST", "/login"): Permission.OPEN,
    ("POST", "/logout"): Permission.VIEW,
    ("GET", "/static/{name}"): Permission.OPEN,
    ("GET", "/health/live"): Permission.OPEN,
    ("GET", "/health/ready"): Permission.OPEN,
    ("GET", "/metrics"): Permission.VIEW,
    ("GET", "/api/v1/openapi.json"): Permission.OPEN,
    ("GET", "/api/v1/studies"): Permission.VIEW,
    ("GET", "/api/v1/studies/{study_uid}"): Permission.VIEW,
    ("POST", "/api/v1/studies/{study_uid}/route"): Permission.OPERATE,
    ("POST", "/api/v1/studies/{study_uid}/send"): Permission.OPERATE,
    ("POST", "/api/v1/studies/{study_uid}/release"): Permission.OPERATE,
    ("GET", "/api/v1/instances/{sop_instance_uid}"): Permission.VIEW,
    ("GET", "/api/v1/jobs"): Permission.VIEW,
    ("GET", "/api/v1/jobs/{job_id}"): Permission.VIEW,
    ("POST", "/api/v1/jobs/{act}"): Permission.OPERATE,
    ("POST", "/api/v1/jobs/{job_id}/{act}"): Permission.OPERATE,
    ("GET", "/api/v1/deliveries"): Permission.VIEW,
    ("GET", "/api/v1/events"): Permission.VIEW,
    ("GET", "/api/v1/results"): Permission.VIEW,
    ("GET", "/api/v1/pauses"): Permission.VIEW,
    ("PUT", "/api/v1/pauses/{kind}"): Permission.OPERATE,
    ("DELETE", "/api/v1/pauses/{kind}"): Permission.OPERATE,
    ("PUT", "/api/v1/pauses/{kind}/{target}"): Permission.OPERATE,
    ("DELETE", "/api/v1/pauses/{kind}/{target}"): Permission.OPERATE,
    ("GET", "/api/v1/drain"): Permission.VIEW,
    ("PUT", "/api/v1/drain"): Permission.OPERATE,
    ("DELETE", "/api/v1/drain"): Permission.OPERATE,
    ("GET", "/api/v1/rulebook"): Permission.VIEW,
    ("PUT", "/api/v1/rulebook"): Permission.ADMINISTER,
    ("GET", "/api/v1/rulebook/revisions"): Permission.VIEW,
    ("GET", "/api/v1/rulebook/revisions/{number}"): Permission.VIEW,
    ("GET", "/api/v1/rulebook/diff"): Permission.VIEW,
    ("POST", "/api/v1/rulebook/rollback"): Permission.ADMINISTER,
    ("POST", "/api/v1/targets/{target}/check"): Permission.OPERATE,
}

CLOSED = [(method, path) for (method, path), permission in TABLE.items() if permission is not Permission.OPEN]


def somewhere(path: str) -> str:
    """A path of a route with something in its blanks."""
    return path.format(
        study_uid=UID, sop_instance_uid=UID, job_id=1, name="site.css", act="retry", kind="dispatch", target="archive",
        number=1,
    )  # fmt: skip


def is_turned_away(client: TestClient, method: str, path: str) -> bool:
    """Whether nobody comes in there: 401 from the API, the sign-in from a page."""
    answer = client.request(method, somewhere(path))
    if path.startswith(("/api/", "/metrics")):
        return answer.status_code == 401 and answer.headers["content-type"] == "application/problem+json"
    return answer.status_code == 303 and answer.headers["location"].startswith("/login")


def test_every_route_declares_a_permission(world: World) -> None:
    """
    Every route of the site is gated, declares a permission, and stands in the table of this file.
    """
    routes = [route for route in world.site.routes if isinstance(route, GatedRoute)]
    declared = {
        (method, route.path): route.permission
        for route in routes for method in route.methods if method != "HEAD"
    }  # fmt: skip

    assert len(routes) == len(world.site.routes)
    assert declared == TABLE


def test_route_without_permission_is_closed(world: World) -> None:
    """
    A route that was added beside the table answers nobody, not even an administrator.
    """
    world.site.get("/api/v1/secret")(lambda: {"it": "leaks"})

    assert world.client().get("/api/v1/secret").status_code == 403
    assert world.program().get("/api/v1/secret").status_code == 403


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_nobody_is_turned_away(still: World, method: str, path: str) -> None:
    """
    Without credentials, with a session or token of nobody, or one of the wrong kind, no closed route answers.
    """
    forged = still.client()
    forged.cookies.set(COOKIE, "A" * 43, domain="talaria.test")
    token_as_cookie = still.client(**OWN_PAGE)
    token_as_cookie.cookies.set(COOKIE, still.token(), domain="talaria.test")
    session = still.browser().cookies[COOKIE]

    assert is_turned_away(still.client(), method, path)
    assert is_turned_away(forged, method, path)
    assert is_turned_away(token_as_cookie, method, path)
    assert is_turned_away(still.client(Authorization=f"Bearer {session}"), method, path)
    assert is_turned_away(still.client(Authorization="Bearer "), method, path)
    assert is_turned_away(still.client(Authorization="Basic YWRhOmFkYQ=="), method, path)
    assert is_turned_away(still.client(Authorization=f"Bearer {'A' * 10_000}"), method, path)


def test_expired_session_is_turned_away(busy: World) -> None:
    """
    Twelve hours after signing in a session is worth nothing, and so is a token past its time.
    """
    browser = busy.browser()
    program = busy.client(Authorization=f"Bearer {busy.token(lifetime=timedelta(hours=1))}")
    busy.clock.move(timedelta(hours=12))

    assert all(is_turned_away(browser, method, path) for method, path in CLOSED)
    assert all(is_turned_away(program, method, path) for method, path in CLOSED)


def test_wrong_token_is_not_mended_by_a_session(still: World) -> None:
    """
    A token that is given counts alone: a wrong one is refused though a good session comes with it.
    """
    answer = still.browser().get("/api/v1/jobs", headers={"Authorization": "Bearer wrong"})

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="talaria"'


def test_closed_routes_open_for_token_and_session(still: World) -> None:
    """
    A token and a session open what can be read, pages and API alike.
    """
    for path in ("/", f"/studies/{UID}", "/api/v1/studies", "/api/v1/jobs/1", "/api/v1/events"):
        assert still.program().get(path).status_code == 200
        assert still.browser().get(path).status_code == 200


# -- scopes --

ACTS = [key for key, permission in TABLE.items() if permission in {Permission.OPERATE, Permission.ADMINISTER}]
CHANGES = [key for key, permission in TABLE.items() if permission is Permission.ADMINISTER]


def refusal(world: World, client: TestClient, method: str, path: str) -> tuple[int, str]:
    """What a client is told where it may not go."""
    answer = client.request(method, somewhere(path))
    return answer.status_code, answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), ACTS)
def test_viewer_acts_on_nothing(still: World, method: str, path: str) -> None:
    """
    A token to look with gets 403 from everything that acts, before its body is looked at, and is told what it lacks.
    """
    client = still.client(Authorization=f"Bearer {still.token('vic', scope=Scope.VIEW)}")
    asked = TABLE[method, path]

    assert (403, f"token:vic may view, and this asks for {asked}; use a token with that scope") == refusal(
        still, client, method, path
    )


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_operator_changes_no_rulebook(still: World, method: str, path: str) -> None:
    """
    A token to act with gets 403 from what changes the rulebook.
    """
    client = still.client(Authorization=f"Bearer {still.token('olga', scope=Scope.OPERATE)}")

    assert (403, "token:olga may operate, and this asks for administer; use a token with that scope") == refusal(
        still, client, method, path
    )


@pytest.mark.parametrize(("method", "path"), ACTS)
def test_expired_token_acts_on_nothing(busy: World, method: str, path: str) -> None:
    """
    A token past its time is nobody's, whatever it was good for.
    """
    client = busy.client(Authorization=f"Bearer {busy.token(lifetime=timedelta(hours=1))}")
    busy.clock.move(timedelta(hours=1))

    assert is_turned_away(client, method, path)


def test_scopes_hold_what_those_before_them_hold() -> None:
    """
    Who may administer may operate, who may operate may view.
    """
    assert GRANTS[Scope.VIEW] < GRANTS[Scope.OPERATE] < GRANTS[Scope.ADMINISTER] == set(Permission)


def test_session_may_what_its_token_may(busy: World) -> None:
    """
    A session that was made from a token does no more than it, under its name, and ends when it is revoked.
    """
    client = busy.client(**OWN_PAGE)
    sign_in(client, token=busy.token("vic", scope=Scope.VIEW))
    client.headers["X-CSRF-Token"] = csrf_token(client.cookies[COOKIE])

    assert client.get("/api/v1/jobs").status_code == 200
    assert (403, "token:vic may view, and this asks for operate; use a token with that scope") == refusal(
        busy, client, "POST", "/api/v1/jobs/{job_id}/{act}"
    )

    busy.access.revoke(kind=CredentialKind.TOKEN, name="vic", actor="test", now=busy.clock.now())

    assert client.get("/api/v1/jobs").status_code == 401


def test_session_of_a_link_administers(world: World) -> None:
    """
    The first administrator's link leads to a session that may all.
    """
    client = world.client(**OWN_PAGE)
    sign_in(client, link=world.link())
    answer = client.put(
        "/api/v1/rulebook", content="rules: {}\n",
        headers={
            "Content-Type": "application/yaml", "If-Match": "*", "X-CSRF-Token": csrf_token(client.cookies[COOKIE]),
        },
    )  # fmt: skip

    assert (200, 1) == (answer.status_code, answer.json()["revision"])
    assert "ada" == world.rulebooks.revisions.get(1).author


def test_session_needs_its_csrf_token_for_the_api(busy: World) -> None:
    """
    A cookie alone acts on nothing, since another site can have it sent.
    """
    browser = busy.browser()

    assert browser.post("/api/v1/jobs/1/hold").status_code == 403
    assert browser.put("/api/v1/drain").status_code == 403
    assert browser.delete("/api/v1/pauses/dispatch").status_code == 403


def test_use_of_a_token_is_seen_to_the_minute(busy: World) -> None:
    """
    When a token was used last is written down, once a minute at most.
    """
    client = busy.client(Authorization=f"Bearer {busy.token('ada')}")
    began = busy.clock.now()
    for seconds, seen in ((0, 0), (59, 0), (1, 60), (30, 60)):
        busy.clock.move(timedelta(seconds=seconds))
        client.get("/api/v1/jobs")

        assert [began + timedelta(seconds=seen)] == [c.seen for c in busy.access.list(CredentialKind.TOKEN)]


# -- signing in --


def sign_in(client: TestClient, **form: str) -> int:
    """Send the sign-in form; the status."""
    return client.post("/login", data=form).status_code


def test_signing_in_with_a_token(world: World) -> None:
    """
    A token is exchanged for a session in a cookie that scripts and other sites do not get.
    """
    client = world.client(**OWN_PAGE)
    answer = client.post("/login", data={"token": f" {world.token()}\n", "next": "/studies/1.2"})
    cookie = answer.headers["set-cookie"]

    assert (answer.status_code, answer.headers["location"]) == (303, "/studies/1.2")
    assert f"{COOKIE}=" in cookie
    assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Max-Age=43200", "Path=/"))
    assert "Secure" not in cookie
    assert client.get("/").status_code == 200


def test_cookie_is_secure_over_tls(world: World) -> None:
    """
    Where the site is served over TLS, its cookie goes over nothing less.
    """
    site = create_site(
        ledger=world.ledger, listing=world.listing, access=world.access, spools=[], rulebooks=world.rulebooks,
        clock=world.clock.now, secure_cookies=True,
    )  # fmt: skip
    client = TestClient(site, base_url="https://talaria.test", follow_redirects=False)

    assert "Secure" in client.post("/login", data={"token": world.token()}).headers["set-cookie"]


def test_session_lives_no_longer_than_its_token(world: World) -> None:
    """
    A session that came of a token with an hour to live ends with it.
    """
    client = world.client(**OWN_PAGE)
    sign_in(client, token=world.token(lifetime=timedelta(hours=1)))
    world.clock.move(timedelta(minutes=59))

    assert client.get("/").status_code == 200

    world.clock.move(timedelta(minutes=2))

    assert client.get("/").status_code == 303


def test_link_signs_in_once(world: World) -> None:
    """
    Looking at a one-time link does not use it up; the button does, and then it is worth nothing.
    """
    link, client = world.link(), world.client(**OWN_PAGE)
    for _ in range(3):
        page = client.get(f"/login?link={link}")
        assert (page.status_code, link in page.text) == (200, True)

    assert sign_in(client, link=link) == 303
    assert client.get("/").status_code == 200
    assert sign_in(world.client(), link=link) == 401


def test_expired_link_is_refused(world: World) -> None:
    """
    A link past its time signs nobody in, and says so.
    """
    link, client = world.link(), world.client()
    world.clock.move(timedelta(hours=2))
    answer = client.post("/login", data={"link": link})

    assert answer.status_code == 401
    assert "This link was used before, or has expired." in answer.text
    assert "set-cookie" not in answer.headers


def test_link_and_session_are_no_tokens(world: World) -> None:
    """
    The form takes tokens alone: a link's code or a session typed into it signs nobody in.
    """
    assert sign_in(world.client(), token=world.link()) == 401
    assert sign_in(world.client(), token=world.browser().cookies[COOKIE]) == 401
    assert sign_in(world.client()) == 401


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "\\\\elsewhere.example",
        "/\t/elsewhere.example", "javascript:alert(1)", "/a\r\nSet-Cookie: x=1", "", "studies", "/" + "a" * 1500,
    ],
)  # fmt: skip
def test_no_way_elsewhere(world: World, elsewhere: str) -> None:
    """
    Signing in leads to a path of this server, whatever `next` says.
    """
    assert local_path(elsewhere) == "/"

    answer = world.client().post("/login", data={"token": world.token(), "next": elsewhere})

    assert answer.headers["location"] == "/"


def test_sign_in_leads_back(still: World) -> None:
    """
    Who is sent to the sign-in comes back to the page they wanted.
    """
    client = still.client(**OWN_PAGE)
    there = client.get(f"/studies/{UID}?a=1&b=2").headers["location"]
    page = client.get(there).text

    assert there == f"/login?next=/studies/{UID}%3Fa%3D1%26b%3D2"
    assert f'name="next" value="/studies/{UID}?a=1&amp;b=2"' in page


def test_guessing_is_slowed_down(world: World) -> None:
    """
    After five failures an address waits, each failure doubling it, even with the right token; then it comes in.
    """
    client = world.client()
    for _ in range(5):
        assert sign_in(client, token="wrong") == 401
    answer = client.post("/login", data={"token": world.token()})

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "Too many failed attempts; try again in 1 s." in answer.text

    world.clock.move(timedelta(seconds=1))
    assert sign_in(client, token="wrong") == 401

    assert client.post("/login", data={"token": "wrong"}).headers["retry-after"] == "2"

    world.clock.move(timedelta(seconds=2))
    assert sign_in(client, token=world.token()) == 303


def test_throttle_is_bounded() -> None:
    """
    Failures of ever new addresses take no more memory than those of so many, and one IPv6 network is one address.
    """
    clock, throttle = MovedClock(), Throttle(size=100)
    for number in range(1000):
        throttle.failed(f"10.0.{number // 256}.{number % 256}", now=clock.now())
    for number in range(5):
        throttle.failed(f"2001:db8::{number}", now=clock.now())

    assert len(throttle._failures) == 100
    assert throttle.wait("2001:db8::ffff", now=clock.now()) == timedelta(seconds=1)
    assert throttle.wait("2001:db8:0:1::1", now=clock.now()) == timedelta(0)


def test_throttle_waits_a_quarter_of_an_hour_at_most() -> None:
    """
    However many failures there were, the wait has an end.
    """
    clock, throttle = MovedClock(), Throttle()
    for _ in range(1000):
        throttle.failed("10.0.0.1", now=clock.now())

    assert throttle.wait("10.0.0.1", now=clock.now()) == timedelta(minutes=15)


# -- leaving, and what other sites send --


def test_logout_ends_the_session(world: World) -> None:
    """
    After signing out the session's cookie opens nothing, wherever it was copied to.
    """
    client = world.browser()
    session = client.cookies[COOKIE]
    answer = client.post("/logout", data={"csrf": csrf_token(session)})
    copied = world.client()
    copied.cookies.set(COOKIE, session, domain="talaria.test")

    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert copied.get("/").status_code == 303
    assert world.access.list(CredentialKind.SESSION) == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": ""},
        {"Origin": "http://talaria.test.elsewhere.example"},
        {"Origin": "http://[broken"},
        {},
    ],
)
def test_foreign_post_is_refused(world: World, headers: dict[str, str]) -> None:
    """
    What does not come from our own pages changes nothing, though cookie and token are right.
    """
    client = world.browser()
    del client.headers["Sec-Fetch-Site"]
    answer = client.post("/logout", data={"csrf": csrf_token(client.cookies[COOKIE])}, headers=headers)

    assert answer.status_code == 403
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("form", [{}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": "é"}])
def test_post_without_csrf_token_is_refused(world: World, form: dict[str, str]) -> None:
    """
    A page's form carries the token of its session; another's, or none, is refused.
    """
    client = world.browser()

    assert client.post("/logout", data=form).status_code == 403
    assert client.post("/logout", data={"csrf": csrf_token("another session")}).status_code == 403
    assert client.get("/").status_code == 200


def test_csrf_token_may_come_in_a_header(world: World) -> None:
    """
    A script of ours sends the token in a header.
    """
    client = world.browser()
    answer = client.post("/logout", headers={"X-CSRF-Token": csrf_token(client.cookies[COOKIE]), "Origin": ADDRESS})

    assert answer.status_code == 303


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"sec-fetch-site": "same-origin"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "http://a", "host": "a"}, True),
        ({"origin": "https://a:8443", "host": "A:8443"}, False),
        ({"origin": "https://a", "host": "a:8443"}, True),
        ({"origin": "null", "host": "a"}, False),
        ({"host": "a"}, True),
    ],
)
def test_where_a_request_comes_from(headers: dict[str, str], answer: bool) -> None:
    """
    The browser's word counts, the newer header before the older.
    """
    assert is_foreign(headers) is answer


def test_forms_work_over_plain_http(world: World) -> None:
    """
    Where a browser tells no origin, as over plain HTTP under our referrer policy, the token of the page decides.
    """
    client = world.browser()
    del client.headers["Sec-Fetch-Site"]
    right, wrong = csrf_token(client.cookies[COOKIE]), csrf_token("another session")

    assert client.post("/logout", data={"csrf": wrong}, headers={"Origin": "null"}).status_code == 403
    assert client.post("/logout", data={"csrf": right}, headers={"Origin": "null"}).status_code == 303


def test_get_changes_nothing(world: World) -> None:
    """
    No route that changes something answers GET.
    """
    answer = world.browser().get("/logout")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_secrets_are_kept_as_digests(world: World, tmp_path: Path) -> None:
    """
    Neither token nor session nor link stands in the database as it is.
    """
    secrets = [world.token(), world.link(), world.browser().cookies[COOKIE]]
    content = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))

    assert not [secret for secret in secrets if secret.encode() in content]
    assert all(hashlib.sha256(secret.encode()).hexdigest().encode() in content for secret in secrets)
