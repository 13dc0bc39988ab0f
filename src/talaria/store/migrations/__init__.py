"""The schema's steps, one file each, run by Alembic."""
