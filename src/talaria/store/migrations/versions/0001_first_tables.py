"""The first tables."""

import sqlalchemy as sa
from alembic import op

from talaria.store.schema import Key, UTCTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Take the step."""
    op.create_table(
        "credentials",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created", UTCTime(), nullable=False),
        sa.Column("expires", UTCTime(), nullable=True),
        sa.Column("seen", UTCTime(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_credentials")),
    )
    op.create_table(
        "events",
        sa.Column("id", Key, nullable=False),
        sa.Column("time", UTCTime(), nullable=False),
        sa.Column("kind", sa.String(length=48), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("study_id", Key, nullable=True),
        sa.Column("series_id", Key, nullable=True),
        sa.Column("instance_id", sa.String(length=26), nullable=True),
        sa.Column("case_id", Key, nullable=True),
        sa.Column("job_id", Key, nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_events_instance_id"), ["instance_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_job_id"), ["job_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_study_id"), ["study_id"], unique=False)

    op.create_table(
        "facts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_facts")),
    )
    op.create_table(
        "revisions",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created", UTCTime(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("warnings", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_revisions")),
    )
    op.create_table(
        "studies",
        sa.Column("id", Key, nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("patient_id", sa.Text(), nullable=False),
        sa.Column("patient_name", sa.Text(), nullable=False),
        sa.Column("accession_number", sa.Text(), nullable=False),
        sa.Column("study_date", sa.Text(), nullable=False),
        sa.Column("study_description", sa.Text(), nullable=False),
        sa.Column("first_received", UTCTime(), nullable=False),
        sa.Column("last_received", UTCTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_studies_study_instance_uid")),
    )
    with op.batch_alter_table("studies", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_studies_last_received_id"), ["last_received", "id"], unique=False)

    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("service", sa.String(length=32), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started", UTCTime(), nullable=False),
        sa.Column("seen", UTCTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "cases",
        sa.Column("id", Key, nullable=False),
        sa.Column("study_id", Key, nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("opened", UTCTime(), nullable=False),
        sa.Column("updated", UTCTime(), nullable=False),
        sa.Column("supplement", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("due", UTCTime(), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_cases_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cases")),
        sa.UniqueConstraint("study_id", "series_id", "rule", name=op.f("uq_cases_study_id_series_id_rule")),
    )
    with op.batch_alter_table("cases", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_cases_due"), ["due"], unique=False)
        batch_op.create_index(batch_op.f("ix_cases_series_id"), ["series_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_cases_state_updated"), ["state", "updated"], unique=False)

    op.create_table(
        "series",
        sa.Column("id", Key, nullable=False),
        sa.Column("study_id", Key, nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("origin_job", Key, server_default=sa.text("0"), nullable=False),
        sa.Column("modality", sa.Text(), nullable=False),
        sa.Column("series_description", sa.Text(), nullable=False),
        sa.Column("calling_ae", sa.Text(), nullable=False),
        sa.Column("called_ae", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("instances", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_received", UTCTime(), nullable=False),
        sa.Column("last_received", UTCTime(), nullable=False),
        sa.Column("portions", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("asked", sa.Text(), server_default="[]", nullable=False),
        sa.Column("settled", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("superseded", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("due", UTCTime(), nullable=True),
        sa.Column("dropped", UTCTime(), nullable=True),
        sa.Column("dropping", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_series_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint(
            "study_id",
            "series_instance_uid",
            "origin_job",
            name=op.f("uq_series_study_id_series_instance_uid_origin_job"),
        ),
    )
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_series_dropped_last_received"), ["dropped", "last_received"], unique=False)
        batch_op.create_index(batch_op.f("ix_series_due"), ["due"], unique=False)

    op.create_table(
        "case_series",
        sa.Column("case_id", Key, autoincrement=False, nullable=False),
        sa.Column("series_id", Key, autoincrement=False, nullable=False),
        sa.Column("covered", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_case_series_case_id")),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_case_series_series_id")),
        sa.PrimaryKeyConstraint("case_id", "series_id", name=op.f("pk_case_series")),
    )
    with op.batch_alter_table("case_series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_case_series_series_id"), ["series_id"], unique=False)

    op.create_table(
        "instances",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(length=32), nullable=False),
        sa.Column("spool", sa.String(length=64), nullable=False),
        sa.Column("association", sa.String(length=26), nullable=False),
        sa.Column("received", UTCTime(), nullable=False),
        sa.Column("portion", sa.Integer(), nullable=True),
        sa.Column("superseded_by", sa.String(length=26), nullable=True),
        sa.Column("repeats", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("flags", sa.Text(), server_default="", nullable=False),
        sa.Column("dropped", UTCTime(), nullable=True),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_instances_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
    )
    with op.batch_alter_table("instances", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_instances_series_id_portion"), ["series_id", "portion"], unique=False)
        batch_op.create_index(batch_op.f("ix_instances_sop_instance_uid"), ["sop_instance_uid"], unique=False)

    op.create_table(
        "jobs",
        sa.Column("id", Key, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("study_id", Key, nullable=False),
        sa.Column("series_id", Key, nullable=False),
        sa.Column("case_id", Key, nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=True),
        sa.Column("parent", Key, nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("supplement", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("created", UTCTime(), nullable=False),
        sa.Column("due", UTCTime(), nullable=False),
        sa.Column("updated", UTCTime(), nullable=False),
        sa.Column("since", UTCTime(), nullable=False),
        sa.Column("owner", sa.String(length=80), nullable=True),
        sa.Column("lease", UTCTime(), nullable=True),
        sa.Column("spool", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=160), nullable=False),
        sa.ForeignKeyConstraint(["case_id"], ["cases.id"], name=op.f("fk_jobs_case_id")),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=op.f("fk_jobs_study_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("key", name=op.f("uq_jobs_key")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_case_id"), ["case_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_parent"), ["parent"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_jobs_state_kind_priority_due"), ["state", "kind", "priority", "due"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_jobs_study_id"), ["study_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_jobs_target_state"), ["target", "state"], unique=False)

    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("job_id", Key, nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("sent", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("seconds", sa.Float(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_deliveries_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
        sa.UniqueConstraint("job_id", name=op.f("uq_deliveries_job_id")),
    )
    op.create_table(
        "job_series",
        sa.Column("job_id", Key, autoincrement=False, nullable=False),
        sa.Column("series_id", Key, autoincrement=False, nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_series_job_id")),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_job_series_series_id")),
        sa.PrimaryKeyConstraint("job_id", "series_id", name=op.f("pk_job_series")),
    )
    with op.batch_alter_table("job_series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_job_series_series_id"), ["series_id"], unique=False)

    op.create_table(
        "runs",
        sa.Column("job_id", Key, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("code", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("log", sa.Text(), nullable=False),
        sa.Column("ended", UTCTime(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_runs_job_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", "step", name=op.f("pk_runs")),
    )
    op.create_table(
        "outcomes",
        sa.Column("delivery_id", sa.String(length=26), nullable=False),
        sa.Column("instance_id", sa.String(length=26), nullable=False),
        sa.Column("standing", sa.String(length=16), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("times_sent", sa.Integer(), nullable=False),
        sa.Column("time", UTCTime(), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], name=op.f("fk_outcomes_delivery_id")),
        sa.ForeignKeyConstraint(["instance_id"], ["instances.id"], name=op.f("fk_outcomes_instance_id")),
        sa.PrimaryKeyConstraint("delivery_id", "instance_id", name=op.f("pk_outcomes")),
    )
    with op.batch_alter_table("outcomes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outcomes_instance_id"), ["instance_id"], unique=False)
