"""Who may ask: tokens, one-time links and sessions, of which only digests are kept."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from talaria.store.ledger import Ledger, Subject, insert_ignoring, write_event
from talaria.store.schema import credentials


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

        Returns:
            The secret: shown once, kept nowhere.
        """
        text = secret or secrets.token_urlsafe(32)
        row = {
            "digest": digest(text), "kind": kind, "name": name, "created": now,
            "expires": None if lifetime is None else now + lifetime,
        }  # fmt: skip
        with self._ledger.writing("access.issue") as connection:
            known = connection.execute(
                sa.select(sa.func.count()).where(credentials.c.digest == row["digest"])
            ).scalar_one()
            insert_ignoring(connection, credentials, [row])
            if not known:
                write_event(
                    connection, f"access.{kind}", now=now, subject=Subject(), actor=actor, name=name,
                )  # fmt: skip
        return text

    def find(self, secret: str, kind: CredentialKind, *, now: datetime) -> Credential | None:
        """The credential of a secret; None if there is none of that kind, or it has expired."""
        with self._ledger.reading() as connection:
            row = connection.execute(
                sa.select(credentials).where(credentials.c.digest == digest(secret), credentials.c.kind == kind)
            ).first()
        if row is None or (row.expires is not None and row.expires <= now):
            return None
        return Credential(kind=CredentialKind(row.kind), name=row.name, created=row.created, expires=row.expires)

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
        return self.issue(CredentialKind.SESSION, name=row.name, actor=row.name, now=now, lifetime=session)

    def list(self, kind: CredentialKind) -> list[Credential]:
        """All of one kind, the oldest first; no secrets."""
        with self._ledger.reading() as connection:
            rows = connection.execute(
                sa.select(credentials).where(credentials.c.kind == kind).order_by(credentials.c.created)
            ).all()
        return [
            Credential(kind=CredentialKind(r.kind), name=r.name, created=r.created, expires=r.expires) for r in rows
        ]

    def revoke(self, *, kind: CredentialKind, name: str = "", secret: str = "", actor: str, now: datetime) -> int:
        """Make a credential worthless, by name or by the secret itself; how many there were."""
        with self._ledger.writing("access.revoke") as connection:
            which = credentials.c.digest == digest(secret) if secret else credentials.c.name == name
            revoked = connection.execute(sa.delete(credentials).where(credentials.c.kind == kind, which)).rowcount
            if revoked:
                write_event(
                    connection, "access.revoked", now=now, subject=Subject(), actor=actor, kind_of=kind, name=name
                )
        return revoked
