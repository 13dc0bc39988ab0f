"""The ledger's tables; what `migrations/` builds step by step, as it is now."""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

#: The last of the steps in `migrations/`; each sorts after the one before it.
REVISION = "0002"


class UTCTime(TypeDecorator[datetime]):
    """An aware moment in UTC; `timestamptz` on PostgreSQL, sortable text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC, and without its zone where the database has no type for one."""
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Always aware, always UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: A key that counts up; SQLite counts by itself only where the type is exactly INTEGER.
Key = BigInteger().with_variant(Integer, "sqlite")

#: States of a job that waits.
_WAITING = "('pending', 'deferred')"

#: Conditions of indexes, as statements have to say them: a database that is given bound values does not see that
#: they fit. Of a series that a module made:
MADE = "origin_job <> 0"
#: Of a job that is not over, or that somebody may still do something about:
OPEN = "state NOT IN ('done', 'cancelled')"
#: Of a series that a study is still received by:
ARRIVING = "origin_job = 0 AND dropped IS NULL AND (NOT settled OR due IS NOT NULL)"

#: Of a job that is over; said so that no index by state is taken in place of the one that answers alone.
OVER = "state NOT IN ('pending', 'active', 'deferred', 'held', 'failed')"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _where(name: str, condition: str, *columns: str) -> Index:
    """An index over some rows only: it does not grow with what is over."""
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


#: Facts about the ledger itself: its identity.
facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

studies = Table(
    "studies",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study_instance_uid", String(64), nullable=False, unique=True),
    Column("patient_id", Text, nullable=False),
    Column("patient_name", Text, nullable=False),
    Column("accession_number", Text, nullable=False),
    Column("study_date", Text, nullable=False),
    Column("study_description", Text, nullable=False),
    Column("first_received", UTCTime, nullable=False),
    Column("last_received", UTCTime, nullable=False),
    Index(None, "last_received", "id"),
    Index(None, "patient_id"),
    Index(None, "accession_number"),
)

#: A series of a study, or what a module made of one: then *origin_job* is the process job, else 0.
series = Table(
    "series",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study_id", Key, ForeignKey("studies.id"), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("origin_job", Key, nullable=False, server_default=text("0")),
    Column("modality", Text, nullable=False),
    Column("series_description", Text, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("tags", Text, nullable=False),  # JSON, of the first instance received
    Column("instances", Integer, nullable=False),  # that are current
    Column("size_bytes", BigInteger, nullable=False),
    Column("first_received", UTCTime, nullable=False),
    Column("last_received", UTCTime, nullable=False),  # by the clock of the indexer: quiet time counts from here
    Column("portions", Integer, nullable=False, server_default=text("0")),  # closed so far
    Column("asked", Text, nullable=False, server_default="[]"),  # JSON: names of the rules already asked
    Column("settled", Boolean, nullable=False, server_default=text("false")),  # every rule was asked
    Column("superseded", Boolean, nullable=False, server_default=text("false")),  # results made again since
    Column("due", UTCTime),  # when the router looks again; NULL: nothing to do
    Column("dropped", UTCTime),  # when retention took its files; NULL again when it is sent again
    Column("dropping", Boolean, nullable=False, server_default=text("false")),  # files are still to be removed
    Column("version", Integer, nullable=False, server_default=text("0")),  # counts every change, for compare-and-set
    Column("forced", Text, nullable=False, server_default=""),  # the rule that takes it whatever the others say
    Column("held", Text, nullable=False, server_default=""),  # why no rule is asked until a person decides
    Column("reduced", Boolean, nullable=False, server_default=text("false")),  # only its lasting tags are left
    UniqueConstraint("study_id", "series_instance_uid", "origin_job"),
    Index(None, "series_instance_uid"),
    _where("ix_series_soon", "due IS NOT NULL", "due"),
    _where("ix_series_arriving", ARRIVING, "study_id"),
    _where("ix_series_made", MADE, "origin_job"),
    _where("ix_series_kept", "dropped IS NULL", "last_received", "id"),
    _where("ix_series_dropping", "dropping", "id"),
    _where("ix_series_whole", "dropped IS NOT NULL AND NOT reduced", "last_received", "id"),
)

#: One file of the spool. *portion* says together with which others it was closed over; NULL: not yet.
instances = Table(
    "instances",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("series_id", Key, ForeignKey("series.id"), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary(32), nullable=False),
    Column("spool", String(64), nullable=False),
    Column("association", String(26), nullable=False),
    Column("received", UTCTime, nullable=False),
    Column("portion", Integer),
    Column("superseded_by", String(26)),  # another version of the same SOP instance came later
    Column("repeats", Integer, nullable=False, server_default=text("0")),  # identical copies that came again
    Column("repeated", UTCTime),  # when the last of them came
    Column("flags", Text, nullable=False, server_default=""),  # oddities of its header, blank between
    Column("dropped", UTCTime),  # when retention removed the file
    Index(None, "series_id", "portion"),
    Index(None, "sop_instance_uid"),
)

#: What a rule acts on. *series_id* is 0 where the case is a study; *rule* is empty where none took it.
cases = Table(
    "cases",
    metadata,
    Column("id", Key, primary_key=True),
    Column("study_id", Key, ForeignKey("studies.id"), nullable=False),
    Column("series_id", Key, nullable=False),
    Column("rule", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # collecting, closed, discarded, held, cleaned
    Column("reason", Text, nullable=False),
    Column("opened", UTCTime, nullable=False),
    Column("updated", UTCTime, nullable=False),
    Column("supplement", Integer, nullable=False, server_default=text("0")),  # how often it was closed again
    Column("due", UTCTime),  # of a study case: when the router looks again
    Column("version", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("study_id", "series_id", "rule"),
    _where("ix_cases_soon", "due IS NOT NULL", "due"),
    Index(None, "series_id"),
    Index(None, "state", "updated"),
)

#: The series of a case, and up to which portion its jobs have them.
case_series = Table(
    "case_series",
    metadata,
    Column("case_id", Key, ForeignKey("cases.id"), primary_key=True, autoincrement=False),
    Column("series_id", Key, ForeignKey("series.id"), primary_key=True, autoincrement=False),
    Column("covered", Integer, nullable=False),
    Index(None, "series_id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Key, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("study_id", Key, ForeignKey("studies.id"), nullable=False),
    Column("series_id", Key, nullable=False),  # 0: the case is a study
    Column("case_id", Key, ForeignKey("cases.id"), nullable=False),
    Column("rule", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("target", Text),
    Column("parent", Key),  # the process job whose results it delivers
    Column("priority", Integer, nullable=False),
    Column("supplement", Integer, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("reason", Text, nullable=False, server_default=""),
    Column("created", UTCTime, nullable=False),
    Column("due", UTCTime, nullable=False),
    Column("updated", UTCTime, nullable=False),
    Column("since", UTCTime, nullable=False),  # when its present patience began: made, retried or restarted
    Column("owner", String(80)),
    Column("lease", UTCTime),  # the owner must be heard of before this
    Column("spool", String(64), nullable=False),  # only a worker that has it mounted may claim
    Column("ready", Boolean, nullable=False, server_default=text("true")),  # waits, and its time has come
    Column("key", String(160), nullable=False, unique=True),  # the same thing is never asked twice
    _where("ix_jobs_ready", "ready", "kind", "spool", "target", "priority", "due", "id"),
    _where("ix_jobs_waiting", f"NOT ready AND state IN {_WAITING}", "kind", "due"),
    _where("ix_jobs_active", "state = 'active'", "kind", "lease"),
    _where("ix_jobs_over", OVER, "kind", "state"),
    _where("ix_jobs_open", OPEN, "kind", "target", "state", "created", "id"),
    Index(None, "state", "id"),
    Index(None, "kind", "id"),
    Index(None, "rule", "id"),
    Index(None, "target", "id"),
    Index(None, "study_id"),
    Index(None, "case_id"),
    Index(None, "parent"),
    sqlite_autoincrement=True,
)

#: Which portions of which series a job is about.
job_series = Table(
    "job_series",
    metadata,
    Column("job_id", Key, ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("series_id", Key, ForeignKey("series.id"), primary_key=True, autoincrement=False),
    Column("first", Integer, nullable=False),
    Column("last", Integer, nullable=False),
    Index(None, "series_id"),
)

#: The record of a dispatch job.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("job_id", Key, ForeignKey("jobs.id"), nullable=False, unique=True),
    Column("target", Text, nullable=False),
    Column("total", Integer, nullable=False),
    Column("sent", Integer, nullable=False, server_default=text("0")),
    Column("size_bytes", BigInteger, nullable=False, server_default=text("0")),  # sent, all attempts together
    Column("seconds", Float, nullable=False, server_default=text("0")),  # spent sending, all attempts together
    Column("compacted", UTCTime),  # when the plain outcomes became a count and a digest
    Column("digest", LargeBinary(32)),  # of the outcomes that were compacted
    Column("plain", Text),  # JSON: what these outcomes had in common, and how many they were
    Index(None, "target", "job_id"),
    _where("ix_deliveries_whole", "compacted IS NULL", "job_id"),
)

outcomes = Table(
    "outcomes",
    metadata,
    Column("delivery_id", String(26), ForeignKey("deliveries.id"), primary_key=True),
    Column("instance_id", String(26), ForeignKey("instances.id"), primary_key=True),
    Column("standing", String(16), nullable=False),
    Column("status", Integer),
    Column("detail", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("times_sent", Integer, nullable=False),
    Column("time", UTCTime, nullable=False),
    Index(None, "instance_id"),
)

#: One step of one attempt of a process job.
runs = Table(
    "runs",
    metadata,
    Column("job_id", Key, ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("module", Text, nullable=False),
    Column("code", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("log", Text, nullable=False),
    Column("ended", UTCTime, nullable=False),
    _where("ix_runs_log", "log <> ''", "ended"),
)

#: What a step of a module wrote into `result.json`, whole.
results = Table(
    "results",
    metadata,
    Column("id", Key, primary_key=True),
    Column("job_id", Key, ForeignKey("jobs.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("study_id", Key, ForeignKey("studies.id"), nullable=False),
    Column("series_id", Key, nullable=False),  # 0: the case is a study
    Column("module", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("value", Text, nullable=False),  # JSON
    Column("created", UTCTime, nullable=False),
    Column("superseded", Boolean, nullable=False, server_default=text("false")),  # made again since
    UniqueConstraint("job_id", "attempt", "step"),
    Index(None, "module", "id"),
    Index(None, "study_id"),
)

#: What a person has stopped for a while: a kind of work, or one target of it; *target* is empty for the whole kind.
pauses = Table(
    "pauses",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("target", Text, primary_key=True),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("since", UTCTime, nullable=False),
)

#: What was received over all time, by who sent it: a count that nothing takes from.
received = Table(
    "received",
    metadata,
    Column("calling_ae", Text, primary_key=True),
    Column("instances", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),  # identical copies; no instances of their own
)

#: How long deliveries took over all time, by target: how many took up to *bound* seconds and longer than the bound
#: before; 0: longer than all of them.
delivered = Table(
    "delivered",
    metadata,
    Column("target", Text, primary_key=True),
    Column("bound", Integer, primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),  # so that those who count seldom meet
    Column("deliveries", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
)

#: What happened, only ever added to.
events = Table(
    "events",
    metadata,
    Column("id", Key, primary_key=True),
    Column("time", UTCTime, nullable=False),
    Column("kind", String(48), nullable=False),
    Column("actor", Text, nullable=False),
    Column("study_id", Key),
    Column("series_id", Key),
    Column("instance_id", String(26)),
    Column("case_id", Key),
    Column("job_id", Key),
    Column("detail", Text, nullable=False),  # JSON
    Index(None, "study_id", "id"),
    Index(None, "job_id", "id"),
    _where("ix_events_instance", "instance_id IS NOT NULL", "instance_id", "id"),
    sqlite_autoincrement=True,
)

#: The rulebook, as it was written.
revisions = Table(
    "revisions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("author", Text, nullable=False),
    Column("created", UTCTime, nullable=False),
    Column("note", Text, nullable=False),
    Column("warnings", Text, nullable=False),  # JSON
)

#: Tokens, one-time links and sessions: only their digests.
credentials = Table(
    "credentials",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),  # token, link, session
    Column("name", Text, nullable=False),
    Column("created", UTCTime, nullable=False),
    Column("expires", UTCTime),
    Column("seen", UTCTime),
    Column("scope", String(16), nullable=False, server_default="administer"),  # the most it is good for
    Column("parent", String(64)),  # of a session: the digest of the token it was made from
)

#: The services that were heard of lately.
workers = Table(
    "workers",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("service", String(32), nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started", UTCTime, nullable=False),
    Column("seen", UTCTime, nullable=False),
)
