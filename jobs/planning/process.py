"""The process of `planning_pool` that makes shards from rows: it reads them from a pipe and writes what it has made to another."""

import gc
import os
import pickle
import signal
from typing import IO

from promptmill.jobs.planning.processes import Made, loads
from promptmill.jobs.planning.shard_making import ShardRules, make_shards
from promptmill.manifests.checking import RowChecks
from promptmill.manifests.rows import ManifestError


def work(messages: IO[bytes]) -> None:
    """Make shards until there are no more messages: the recipe first, then batches of rows."""
    # Ctrl-C goes to all processes of a terminal; the one that plans ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever prints goes elsewhere than the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    recipe: ShardRules = pickle.load(messages)
    checks = RowChecks(recipe.files, recipe.rules)
    gc.freeze()
    made: Made = None
    while True:
        pickle.dump(made, results, pickle.HIGHEST_PROTOCOL)
        results.flush()
        try:
            first, batch = pickle.load(messages)
        except EOFError:
            return
        try:
            made = make_shards(recipe, checks, first, map(loads, batch))
        except ManifestError:
            made = None
