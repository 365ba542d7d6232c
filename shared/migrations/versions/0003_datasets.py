"""Data sets, the jobs' curves and their time limit."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("time_limit", sa.Float, nullable=False, server_default="86400"))
    op.create_index("ix_jobs_dataset", "jobs", ["dataset"])
    op.create_table(
        "job_points",
        sa.Column("job_id", sa.String(32), primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )
    op.create_table(
        "datasets",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
    )
    op.create_index("ix_datasets_name", "datasets", ["name", "created_at"])


def downgrade() -> None:
    op.drop_table("datasets")
    op.drop_table("job_points")
    op.drop_index("ix_jobs_dataset", "jobs")
    op.drop_column("jobs", "time_limit")
