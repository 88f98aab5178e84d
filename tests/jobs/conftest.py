"""One cluster a session: a scheduler and two worker processes on the loopback address, reached over TCP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dask import config
from distributed import LocalCluster

from tpsprune.jobs.address import Address, parse_address
from tpsprune.jobs.cluster import RETRIES, Cluster, connect


@pytest.fixture(scope="session")
def address() -> Iterator[Address]:
    with (
        config.set({RETRIES: 0}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            resources={"machine": 1},
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as local,
    ):
        yield parse_address(f"dask:{local.scheduler_address}")


@pytest.fixture
def cluster(address: Address) -> Iterator[Cluster]:
    with connect(address) as found:
        # One that a test before has killed is started again meanwhile.
        found.client.wait_for_workers(2, timeout=60)
        yield found
