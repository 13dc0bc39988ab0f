"""Claims by index, pauses, results, compaction, scopes: what operations on many studies need."""

import sqlalchemy as sa
from alembic import op

from talaria.store.schema import Key, UTCTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


_OVER = "state NOT IN ('pending', 'active', 'deferred', 'held', 'failed')"
_ARRIVING = "origin_job = 0 AND dropped IS NULL AND (NOT settled OR due IS NOT NULL)"


def upgrade() -> None:
    """Take the step; jobs that wait are ready, and the first look puts those aside that are not due."""
    _add_columns()
    _add_tables()
    _change_indexes()


def _add_columns() -> None:
    op.add_column("series", sa.Column("forced", sa.Text(), server_default="", nullable=False))
    op.add_column("series", sa.Column("held", sa.Text(), server_default="", nullable=False))
    op.add_column("instances", sa.Column("repeated", UTCTime(), nullable=True))
    op.add_column("jobs", sa.Column("ready", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.execute(sa.text("UPDATE jobs SET ready = false WHERE state <> 'pending'"))
    op.add_column("deliveries", sa.Column("compacted", UTCTime(), nullable=True))
    op.add_column("deliveries", sa.Column("digest", sa.LargeBinary(length=32), nullable=True))
    op.add_column("deliveries", sa.Column("plain", sa.Text(), nullable=True))
    op.add_column("series", sa.Column("reduced", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("credentials", sa.Column("scope", sa.String(length=16), server_default="administer", nullable=False))
    op.add_column("credentials", sa.Column("parent", sa.String(length=64), nullable=True))


def _add_tables() -> None:
    op.create_table(
        "results",
        sa.Column("id", Key, nullable=False),
        sa.Column("job_id", Key, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("study_id", Key, nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created", UTCTime(), nullable=False),
        sa.Column("superseded", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_results_job_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_results_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_results")),
        sa.UniqueConstraint("job_id", "attempt", "step", name=op.f("uq_results_job_id_attempt_step")),
    )
    op.create_index(op.f("ix_results_module_id"), "results", ["module", "id"])
    op.create_index(op.f("ix_results_study_id"), "results", ["study_id"])
    op.create_table(
        "pauses",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", UTCTime(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "target", name=op.f("pk_pauses")),
    )
    op.create_table(
        "delivered",
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("bound", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("deliveries", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("target", "bound", "part", name=op.f("pk_delivered")),
    )
    op.create_table(
        "received",
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("instances", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("repeats", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("calling_ae", name=op.f("pk_received")),
    )
    op.execute(
        "INSERT INTO received (calling_ae, instances, size_bytes, repeats) "
        "SELECT s.calling_ae, count(*), sum(i.size_bytes), sum(i.repeats) FROM instances i "
        "JOIN series s ON s.id = i.series_id WHERE s.origin_job = 0 GROUP BY s.calling_ae"
    )


def _change_indexes() -> None:
    op.drop_index(op.f("ix_jobs_state_kind_priority_due"), "jobs")
    op.drop_index(op.f("ix_jobs_target_state"), "jobs")
    op.create_index(op.f("ix_jobs_state_id"), "jobs", ["state", "id"])
    op.create_index(op.f("ix_jobs_kind_id"), "jobs", ["kind", "id"])
    op.create_index(op.f("ix_jobs_rule_id"), "jobs", ["rule", "id"])
    op.create_index(op.f("ix_jobs_target_id"), "jobs", ["target", "id"])
    op.create_index(op.f("ix_deliveries_target_job_id"), "deliveries", ["target", "job_id"])
    _partial("ix_jobs_ready", "jobs", "ready", ["kind", "spool", "target", "priority", "due", "id"])
    _partial("ix_jobs_waiting", "jobs", "NOT ready AND state IN ('pending', 'deferred')", ["kind", "due"])
    _partial("ix_jobs_active", "jobs", "state = 'active'", ["kind", "lease"])
    _partial("ix_jobs_over", "jobs", _OVER, ["kind", "state"])
    _partial("ix_jobs_open", "jobs", "state NOT IN ('done', 'cancelled')", ["kind", "target", "state", "created", "id"])
    _partial("ix_deliveries_whole", "deliveries", "compacted IS NULL", ["job_id"])
    _change_indexes_of_what_is_stored()


def _change_indexes_of_what_is_stored() -> None:
    for table, *columns in (
        ("series", "due"), ("series", "dropped", "last_received"), ("cases", "due"),
        ("events", "study_id"), ("events", "job_id"), ("events", "instance_id"),
    ):  # fmt: skip
        op.drop_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table)
    for table, *columns in (
        ("studies", "patient_id"), ("studies", "accession_number"), ("series", "series_instance_uid"),
        ("events", "study_id", "id"), ("events", "job_id", "id"),
    ):  # fmt: skip
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)
    _partial("ix_series_soon", "series", "due IS NOT NULL", ["due"])
    _partial("ix_series_arriving", "series", _ARRIVING, ["study_id"])
    _partial("ix_series_made", "series", "origin_job <> 0", ["origin_job"])
    _partial("ix_series_kept", "series", "dropped IS NULL", ["last_received", "id"])
    _partial("ix_series_dropping", "series", "dropping", ["id"])
    _partial("ix_series_whole", "series", "dropped IS NOT NULL AND NOT reduced", ["last_received", "id"])
    _partial("ix_cases_soon", "cases", "due IS NOT NULL", ["due"])
    _partial("ix_runs_log", "runs", "log <> ''", ["ended"])
    _partial("ix_events_instance", "events", "instance_id IS NOT NULL", ["instance_id", "id"])


def _partial(name: str, table: str, condition: str, columns: list[str]) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))
