"""Says which tests are quick, which files take long, and which run in one process; `docs/testing.md` has the figures."""

ON_CLUSTER = "the session's Ray cluster"

# Files that one worker process of pytest-xdist runs, one after another: what they share, as a Ray cluster, is there once.
GROUPS: dict[str, tuple[str, ...]] = {
    ON_CLUSTER: (
        "tests/jobs/running/test_run.py",
        "tests/jobs/running/test_workers_here.py",
        "tests/jobs/running/test_metrics.py",
        "tests/actors/flow/test_ray_pools.py",
    ),
    "chaos": (
        "tests/chaos/test_slices.py",
        "tests/chaos/test_accepting.py",
        "tests/chaos/test_edited_rows.py",
        "tests/chaos/test_kills.py",
        "tests/chaos/test_faulty_storage.py",
        "tests/chaos/test_poison.py",
        "tests/chaos/test_moved.py",
        "tests/chaos/test_elastic.py",
        "tests/chaos/test_cascades.py",
    ),
}

# In the order in which worker processes take them, so that none is left with a long file at the end.
LONGEST_FIRST: tuple[str, ...] = (*GROUPS["chaos"], *GROUPS[ON_CLUSTER])

# Folders, files and tests with real models, Ray, or processes of more than a second. What is not said here is quick.
SLOW: tuple[str, ...] = ("tests/chaos", "tests/clusters", *GROUPS[ON_CLUSTER])


def file_of(nodeid: str) -> str:
    """Return the file of a test, by the id that pytest gives the test."""
    return nodeid.partition("::")[0]


def group_of(nodeid: str) -> str:
    """Return the name that tests share which run in one worker process, one after another."""
    file = file_of(nodeid)
    return next((name for name, files in GROUPS.items() if file in files), file)


def is_quick(nodeid: str) -> bool:
    """Whether a test needs no real model, no Ray and no process of more than a second."""
    return not any(nodeid == slow or nodeid.startswith((f"{slow}::", f"{slow}[", f"{slow}/")) for slow in SLOW)
