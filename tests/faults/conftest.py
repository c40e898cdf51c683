"""The clusters of the integration tests, for faults: a running one on each database, or one that a test starts itself."""

from tests.integration.conftest import cluster, new_cluster

__all__ = ["cluster", "new_cluster"]
