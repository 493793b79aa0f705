"""Holds the constants that a run's driver sends to each of its workers, once."""

from dataclasses import dataclass

import pyarrow as pa

from promptmill.manifests.images import Roots
from promptmill.pipelines.work.metadata_rows import Facts


@dataclass(frozen=True)
class Recipe:
    """Holds the constants of a run that all workers need.

    Attributes:
        output: The dataset's URI, where parts and shards are written.
        fingerprint: The hash of the plan that parts and records name.
        facts: The constants of every row, the config among them.
        form: The schema of the metadata.
        roots: The folders and hosts that images of rows may come from.
    """

    output: str
    fingerprint: str
    facts: Facts
    form: pa.Schema
    roots: Roots
