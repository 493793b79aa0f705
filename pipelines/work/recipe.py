"""Holds the constants that a run's driver sends to each of its workers, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from promptmill.configs.schema import Config
from promptmill.manifests.images import Roots
from promptmill.pipelines.work.units import Unit
from promptmill.shards.tables import slice_form


@dataclass(frozen=True)
class Recipe:
    """Holds the constants of a run that all workers need.

    Attributes:
        config: The run's config.
        form: The schema of the metadata.
        output: The dataset's URI, where parts and shards are written.
        fingerprint: The hash of the plan, which parts and records name.
        carried: The manifest's own columns, with their types.
        versions: Versions of the libraries, as JSON.
        growing: Whether candidates of any request grow, so that rows say how many were not needed.
        roots: The folders and hosts that images of rows may come from.
        annotators: Names of the annotators whose maps rows ask for.
    """

    config: Config
    form: pa.Schema
    output: str = ""
    fingerprint: str = ""
    carried: Mapping[str, str] = field(default_factory=dict)
    versions: str = "{}"
    growing: bool = False
    roots: Roots = field(default_factory=lambda: Roots(()))
    annotators: tuple[str, ...] = ()

    def form_of(self, unit: Unit) -> pa.Schema:
        """Return the schema of a unit's part. That of a slice has what ranks its candidates, too."""
        return slice_form(self.form) if unit.span else self.form
