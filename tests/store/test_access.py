"""Tokens, one-time links and sessions."""

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from talaria.model.errors import LedgerAway, Refused
from talaria.store.access import Access, CredentialKind, Scope, digest
from talaria.store.ledger import Ledger
from talaria.store.schema import credentials, events
from talaria.testing import MovedClock

HOUR = timedelta(hours=1)


@pytest.fixture
def access(ledger: Ledger) -> Access:
    return Access(ledger)


def issue(access: Access, clock: MovedClock, kind: CredentialKind, lifetime: timedelta | None = HOUR) -> str:
    return access.issue(kind, name="eve", actor="local:root", now=clock.now(), lifetime=lifetime)


def test_secret_is_found_by_its_kind(access: Access, clock: MovedClock) -> None:
    """
    A secret is good for what it was issued for, and for nothing else.
    """
    secret = issue(access, clock, CredentialKind.TOKEN)
    found = access.find(secret, CredentialKind.TOKEN, now=clock.now())

    assert found is not None
    assert ("eve", clock.now() + HOUR) == (found.name, found.expires)
    assert None is access.find(secret, CredentialKind.SESSION, now=clock.now())
    assert None is access.find(secret + "x", CredentialKind.TOKEN, now=clock.now())


def test_credential_expires(access: Access, clock: MovedClock) -> None:
    """
    A credential is worth nothing from the moment at which it expires; one without end stays.
    """
    short, ever = issue(access, clock, CredentialKind.TOKEN), issue(access, clock, CredentialKind.TOKEN, None)
    clock.move(HOUR)

    assert None is access.find(short, CredentialKind.TOKEN, now=clock.now())
    assert None is not access.find(ever, CredentialKind.TOKEN, now=clock.now())


def test_secrets_are_not_kept(access: Access, ledger: Ledger, clock: MovedClock) -> None:
    """
    The ledger has a digest of a secret, and neither it nor the event log has the secret.
    """
    secret = issue(access, clock, CredentialKind.TOKEN)
    with ledger.reading() as connection:
        kept = connection.execute(sa.select(credentials)).one()
        told = connection.execute(sa.select(events)).one()

    assert digest(secret) == kept.digest
    assert secret not in f"{kept}{told}"
    assert ("access.token", "local:root") == (told.kind, told.actor)


def test_given_secret_is_issued_once(access: Access, ledger: Ledger, clock: MovedClock) -> None:
    """
    A secret from outside may be issued at every start; it is there once, and told of once.
    """
    for _ in range(3):
        access.issue(
            CredentialKind.TOKEN, name="ci", actor="local:root", now=clock.now(), lifetime=None, secret="s" * 40
        )

    assert ["ci"] == [found.name for found in access.list(CredentialKind.TOKEN)]
    with ledger.reading() as connection:
        assert 1 == connection.execute(sa.select(sa.func.count()).select_from(events)).scalar_one()


def test_link_is_good_once(access: Access, clock: MovedClock) -> None:
    """
    A one-time link gives one session.
    """
    link = issue(access, clock, CredentialKind.LINK)
    session = access.redeem(link, now=clock.now(), session=HOUR)

    assert session is not None
    assert None is not access.find(session, CredentialKind.SESSION, now=clock.now())
    assert None is access.redeem(link, now=clock.now(), session=HOUR)


def test_link_expires(access: Access, clock: MovedClock) -> None:
    """
    A link that has expired gives nothing, nor does one that never was; one without end is good.
    """
    link, ever = issue(access, clock, CredentialKind.LINK), issue(access, clock, CredentialKind.LINK, None)
    clock.move(HOUR)

    assert None is access.redeem(link, now=clock.now(), session=HOUR)
    assert None is access.redeem("nothing", now=clock.now(), session=HOUR)
    assert None is not access.redeem(ever, now=clock.now(), session=HOUR)


def test_token_is_no_link(access: Access, clock: MovedClock) -> None:
    """
    A token cannot be exchanged for a session.
    """
    assert None is access.redeem(issue(access, clock, CredentialKind.TOKEN), now=clock.now(), session=HOUR)


def test_link_used_by_two_at_once_is_good_once(access: Access, clock: MovedClock) -> None:
    """
    Of several who use one link at the same moment one gets a session.
    """
    for _ in range(5):
        link = issue(access, clock, CredentialKind.LINK)
        got: list[str | None] = []
        gate = threading.Barrier(4)

        def use(link: str = link, got: list[str | None] = got, gate: threading.Barrier = gate) -> None:
            gate.wait(10)
            got.append(access.redeem(link, now=clock.now(), session=HOUR))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert [False, True, True, True] == sorted(session is None for session in got)


def test_revoke_by_name_and_by_secret(access: Access, clock: MovedClock) -> None:
    """
    A credential is revoked by its name or by itself, of its kind alone, and that is told.
    """
    token, session = issue(access, clock, CredentialKind.TOKEN), issue(access, clock, CredentialKind.SESSION)

    assert 0 == access.revoke(kind=CredentialKind.TOKEN, name="adam", actor="a", now=clock.now())
    assert 1 == access.revoke(kind=CredentialKind.TOKEN, name="eve", actor="a", now=clock.now())
    assert None is access.find(token, CredentialKind.TOKEN, now=clock.now())
    assert 1 == access.revoke(kind=CredentialKind.SESSION, secret=session, actor="a", now=clock.now())
    assert [] == access.list(CredentialKind.SESSION)


def test_scope_goes_from_token_to_session_and_ends_with_it(access: Access, clock: MovedClock) -> None:
    """
    A session that was made from a token is revoked with it; one of the same name that was not stays.
    """
    token = access.issue(
        CredentialKind.TOKEN, name="eve", actor="a", now=clock.now(), lifetime=HOUR, scope=Scope.VIEW
    )  # fmt: skip
    own = access.issue(
        CredentialKind.SESSION, name="eve", actor="a", now=clock.now(), lifetime=HOUR, scope=Scope.VIEW, parent=token
    )  # fmt: skip
    other = issue(access, clock, CredentialKind.SESSION)
    found = access.find(own, CredentialKind.SESSION, now=clock.now())

    assert found is not None
    assert (Scope.VIEW, True) == (found.scope, found.of_token)
    assert 1 == access.revoke(kind=CredentialKind.TOKEN, name="eve", actor="a", now=clock.now())
    assert None is access.find(own, CredentialKind.SESSION, now=clock.now())
    assert None is not access.find(other, CredentialKind.SESSION, now=clock.now())


def test_sessions_that_are_over_are_forgotten(access: Access, clock: MovedClock) -> None:
    """
    A day after they ended sessions and links are removed; tokens stay listed, as expired.
    """
    for kind in CredentialKind:
        issue(access, clock, kind)
    clock.move(26 * HOUR)
    issue(access, clock, CredentialKind.SESSION)

    assert [1, 0, 1] == [
        len(access.list(kind)) for kind in (CredentialKind.TOKEN, CredentialKind.LINK, CredentialKind.SESSION)
    ]
    assert access.list(CredentialKind.TOKEN)[0].is_expired(clock.now())


def test_seen_is_written_once_a_minute(access: Access, clock: MovedClock) -> None:
    """
    Between two writes of when a token was used at least a minute passes.
    """
    token, began = issue(access, clock, CredentialKind.TOKEN), clock.now()
    seen = []
    for _ in range(5):
        access.saw(token, now=clock.now())
        seen.append(access.list(CredentialKind.TOKEN)[0].seen)
        clock.move(timedelta(seconds=25))

    assert [began] * 3 + [began + timedelta(seconds=75)] * 2 == seen


def test_token_that_is_revoked_while_it_signs_in_leaves_no_session(access: Access, clock: MovedClock) -> None:
    """
    A session is made from a token that is still there, or not at all.
    """
    now, token = clock.now(), issue(access, clock, CredentialKind.TOKEN)
    access.revoke(kind=CredentialKind.TOKEN, name="eve", actor="test", now=now)
    with pytest.raises(Refused, match="was revoked"):
        access.issue(CredentialKind.SESSION, name="eve", actor="test", now=now, lifetime=HOUR, parent=token)


def test_link_is_not_used_up_by_a_ledger_that_goes_away(access: Access, ledger: Ledger, clock: MovedClock) -> None:
    """
    A link and the session it is exchanged for change places at once, or not at all.
    """
    link = issue(access, clock, CredentialKind.LINK)

    def fail(_c: object, _k: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO credentials"):
            raise sa.exc.OperationalError("", {}, OSError("the server is gone"))

    sa.event.listen(ledger.engine, "before_cursor_execute", fail)
    with pytest.raises(LedgerAway):
        access.redeem(link, now=clock.now(), session=HOUR)
    sa.event.remove(ledger.engine, "before_cursor_execute", fail)

    assert access.redeem(link, now=clock.now(), session=HOUR) is not None
