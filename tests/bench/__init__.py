"""The benchmark: what a cluster does a second, beside the database's own replication (`python -m tests.bench --help`)."""
