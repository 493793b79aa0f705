"""Holds what a run calls to get its work done, wherever the workers are."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from promptmill.actors.flow.actor_slots import Pool
from promptmill.actors.receipts import Receipt
from promptmill.pipelines.work.recipe import Recipe
from promptmill.shards.assembly import Assembly
from promptmill.shards.commits import CommitRecord

# Told what hardware a worker has come up on, as soon as the worker has loaded its models; may refuse it by an error.
Loaded = Callable[[dict[str, str]], None]


@dataclass(frozen=True)
class Workers:
    """The workers of one run.

    Attributes:
        generators, scorers: The pools that lanes call.
        assemble: `assembler.assemble_shard` with its arguments.
        join: `assembler.join_unit` with its arguments.
        close: Ends all of them at once; calls in flight never return.
    """

    generators: Pool
    scorers: Pool
    assemble: Callable[[Recipe, Assembly], Awaitable[CommitRecord]]
    join: Callable[..., Awaitable[Receipt]]
    close: Callable[[], None] = lambda: None
