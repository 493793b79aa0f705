"""Says which tests are quick, and which files take long, by measurement; `docs/testing.md` has the figures."""

# In the order in which worker processes take them, so that none is left with a long file at the end.
LONGEST_FIRST: tuple[str, ...] = ()

# Folders, files and tests with real models, Ray, or processes of more than a second. What is not said here is quick.
SLOW: tuple[str, ...] = ()


def is_quick(nodeid: str) -> bool:
    """Whether a test, by the id that pytest gives it, needs no real model, no Ray and no process of more than a second."""
    return not any(nodeid == slow or nodeid.startswith((f"{slow}::", f"{slow}[", f"{slow}/")) for slow in SLOW)
