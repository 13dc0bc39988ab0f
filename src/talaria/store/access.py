"""Who may ask: tokens, one-time links and sessions, of which only digests are kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa
from sqlalchemy import Connection

from talaria.model.errors import Refused
from talaria.store.ledger import AnyRow, Ledger, Subject, insert_ignoring, write_event
from talaria.store.schema import credentials

#: When a credential was seen last is written down no more often.
SEEN_EVERY = timedelta(minutes=1)

#: Sessions and links that are over are forgotten after this; tokens stay listed until somebody revokes them.
_FORGOTTEN_AFTER = timedelta(days=1)


class Scope(StrEnum):
    """The most that a credential is good for; each has what those before it have."""

    VIEW = "view"
    """To look."""
    OPERATE = "operate"
    """To act on studies and jobs, and to pause work."""
    ADMINISTER = "administer"
    """To change the rulebook."""


class CredentialKind(StrEnum):
    """What a credential is good for."""

    TOKEN = "token"  # noqa: S105 - a word, not a secret
    """The `Authorization: Bearer` header, until it expires."""
    LINK = "link"
    """Signing in once."""
    SESSION = "session"
    """A browser's cookie."""


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A credential that was found good."""

    kind: CredentialKind
    name: str
    created: datetime
    expires: datetime | None
    """None: when it is revoked."""
    scope: Scope
    seen: datetime | None
    """When it was used last, to the minute; None: never."""
    of_token: bool
    """Whether it is a session that was made from a token."""

    def is_expired(self, now: datetime) -> bool:
        """Whether it is good for nothing any more."""
        return self.expires is not None and self.expires <= now


def digest(secret: str) -> str:
    """What is kept of a secret of 128 bits and more; it needs no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Access:
    """Credentials in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def issue(
        self,
        kind: CredentialKind,
        *,
        name: str,
        actor: str,
        now: datetime,
        lifetime: timedelta | None,
        secret: str | None = None,
        scope: Scope = Scope.ADMINISTER,
        parent: str = "",
    ) -> str:
        """
        Make a credential.

        Args:
            kind: What it is good for.
            name: By which people know it.
            actor: Who makes it; audited.
            now: When.
            lifetime: None: until it is revoked.
            secret: Given from outside for automation; None: made here.
            scope: The most that it is good for.
            parent: The token that a session is made from, itself; it ends when the token is revoked.

        Returns:
            The secret: shown once, kept nowhere.

        Raises:
            Refused: The parent is not there any more.
        """
        text = secret or secrets.token_urlsafe(32)
        with self._ledger.writing("access.issue") as connection:
            if parent and not _is_kept(connection, digest(parent)):
                raise Refused(f"the token '{name}' was revoked meanwhile; ask for another")
            _insert(
                connection, text, kind=kind, name=name, actor=actor, now=now, lifetime=lifetime, scope=scope,
                parent=parent,
            )  # fmt: skip
        return text

    def find(self, secret: str, kind: CredentialKind, *, now: datetime) -> Credential | None:
        """The credential of a secret; None if there is none of that kind, or it has expired."""
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(credentials).where(credentials.c.digest == digest(secret), credentials.c.kind == kind)
            ).first()
        found = None if row is None else _credential(row)
        return None if found is None or found.is_expired(now) else found

    def saw(self, secret: str, *, now: datetime) -> None:
        """Write down that a credential was used, once in `SEEN_EVERY`."""
        is_due = sa.or_(credentials.c.seen.is_(None), credentials.c.seen <= now - SEEN_EVERY)
        with self._ledger.writing("access.seen") as connection:
            connection.execute(
                sa.update(credentials).where(credentials.c.digest == digest(secret), is_due).values(seen=now)
            )

    def redeem(self, link: str, *, now: datetime, session: timedelta) -> str | None:
        """Exchange a one-time link for a session; None when it is used up, expired or unknown."""
        with self._ledger.writing("access.redeem") as connection:
            row = connection.execute(
                sa.select(credentials).where(
                    credentials.c.digest == digest(link), credentials.c.kind == CredentialKind.LINK
                )
            ).first()
            if row is None or (row.expires is not None and row.expires <= now):
                return None
            if connection.execute(sa.delete(credentials).where(credentials.c.digest == row.digest)).rowcount != 1:
                return None  # somebody else was first
            text = secrets.token_urlsafe(32)
            _insert(
                connection, text, kind=CredentialKind.SESSION, name=row.name, actor=row.name, now=now,
                lifetime=session, scope=Scope(row.scope),
            )  # fmt: skip
        return text

    def list(self, kind: CredentialKind) -> list[Credential]:
        """All of one kind, the oldest first; no secrets."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(credentials).where(credentials.c.kind == kind).order_by(credentials.c.created)
            ).all()
        return [_credential(row) for row in rows]

    def revoke(self, *, kind: CredentialKind, name: str = "", secret: str = "", actor: str, now: datetime) -> int:
        """
        Make a credential worthless, by name or by the secret itself, and the sessions made from it; how many there
        were, sessions not counted.
        """
        with self._ledger.writing("access.revoke") as connection:
            which = credentials.c.digest == digest(secret) if secret else credentials.c.name == name
            own = sa.and_(credentials.c.kind == kind, which)
            locked = sa.select(credentials.c.digest).where(own).with_for_update()  # who signs in with it has done so
            digests = connection.execute(locked).scalars().all()
            connection.execute(sa.delete(credentials).where(credentials.c.parent.in_(digests)))
            revoked = connection.execute(sa.delete(credentials).where(own)).rowcount
            if revoked:
                write_event(
                    connection, "access.revoked", now=now, subject=Subject(), actor=actor, kind_of=kind, name=name
                )
        return revoked


def _credential(row: AnyRow) -> Credential:
    return Credential(
        kind=CredentialKind(row.kind), name=row.name, created=row.created, expires=row.expires,
        scope=Scope(row.scope), seen=row.seen, of_token=row.parent is not None,
    )  # fmt: skip


def _insert(
    connection: Connection, secret: str, *, kind: CredentialKind, name: str, actor: str, now: datetime,
    lifetime: timedelta | None, scope: Scope, parent: str = "",
) -> None:  # fmt: skip
    """Keep a credential; one that is there stays as it is."""
    row = {
        "digest": digest(secret), "kind": kind, "name": name, "created": now,
        "expires": None if lifetime is None else now + lifetime, "scope": scope,
        "parent": digest(parent) if parent else None,
    }  # fmt: skip
    known = connection.execute(sa.select(sa.func.count()).where(credentials.c.digest == row["digest"])).scalar_one()
    insert_ignoring(connection, credentials, [row])
    if not known:
        write_event(connection, f"access.{kind}", now=now, subject=Subject(), actor=actor, name=name, scope=scope)
        connection.execute(sa.delete(credentials).where(_is_over(now)))


def _is_kept(connection: Connection, parent: str) -> bool:
    """Whether a credential is there, and stays until the transaction ends."""
    own = sa.select(credentials.c.digest).where(credentials.c.digest == parent).with_for_update(read=True)
    return connection.execute(own).first() is not None


def _is_over(now: datetime) -> sa.ColumnElement[bool]:
    """Whether a session or a link is good for nothing any more, and has been for a while."""
    return sa.and_(
        credentials.c.kind != CredentialKind.TOKEN,
        credentials.c.expires.is_not(None),
        credentials.c.expires <= now - _FORGOTTEN_AFTER,
    )
