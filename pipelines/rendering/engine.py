"""Holds the engine: a loaded model that takes units and returns the outcomes of their requests.

Units may be submitted from several threads: they share the batch, so that the end
of one does not leave the batch half empty.
"""

import gc
import queue
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch

from promptmill.configs.model import Model
from promptmill.configs.parameters import Defaults
from promptmill.configs.prompts import Prompts
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.control_maps import ControlMaps
from promptmill.pipelines.rendering.kernels import set_compiler
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.preparing import Conditioning, Job, jobs_of, prepare_request
from promptmill.pipelines.rendering.reading_ahead import ReadingAhead
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.rendering.text_limits import Tokenizers
from promptmill.pipelines.rendering.warming import warm
from promptmill.pipelines.work.errors import FatalError, MisfitError, is_fatal, is_out_of_memory
from promptmill.pipelines.work.lean_imports import lean_imports
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered
from promptmill.pipelines.work.turns import COMPUTING
from promptmill.pipelines.work.units import Placed, Unit


class Making(Protocol):
    """Makes of a unit's requests what is rendered in their place, and of what was rendered their candidates, as a stage does."""

    def asked(self, placed: Placed) -> Placed:
        """Return the request whose images are prepared."""
        ...

    def jobs(self, placed: Placed, prepared: Conditioning, job_seed: int, indices: Sequence[int]) -> list[Job]:
        """Return the jobs of some candidates of a request."""
        ...

    def candidates(self, row: int, made: Mapping[tuple[int, int], Candidate]) -> tuple[Candidate, ...]:
        """Return the candidates of a row's request, made of the results of its jobs by index and part."""
        ...


@dataclass
class Pending:
    """Holds a unit under way: its images, and its requests' candidates as they are settled.

    Attributes:
        making: Makes the unit's jobs; None: each is a candidate.
        candidates: By row, the results of jobs by index and part.
        images_s: Seconds that reading and preparing the images took.
    """

    unit: Unit
    done: "Future[Rendered]"
    making: Making | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    ready: dict[int, tuple[Placed, Conditioning]] = field(default_factory=dict)
    candidates: dict[int, dict[tuple[int, int], Candidate]] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    images_s: float = 0.0
    left: int = 0


class _ClosedError(Exception):
    """Reports a closed engine."""


class Engine:
    """Renders units with a loaded model.

    Args:
        model: The config's model.
        job_seed: The config's seed; candidates of rows without a seed of their own hash it.
        roots: Where images may lie.
        device: The first GPU or the CPU where no device is given.
        warmed: Defaults of requests, of which a full batch is rendered at once where that shows something: on a GPU, and where
            blocks are compiled.
        maps: Whether outcomes have the control maps that steered their images.
        annotators: Those of the model's annotators that are loaded at once; others are loaded when a request needs them.
        prompts: The config's way to read prompts.

    Raises:
        ModelError: The model cannot be loaded, or its memory does not suffice for a batch.
    """

    def __init__(
        self,
        model: Model,
        job_seed: int,
        roots: Roots,
        device: torch.device | None = None,
        warmed: Defaults | None = None,
        maps: bool = False,
        annotators: Collection[str] = (),
        prompts: Prompts | None = None,
    ):
        self._threads, self._batch, self._job_seed, self._roots = model.threads, model.batch, job_seed, roots
        self._compiles, self._gives_maps = model.kernels.compile, maps
        with COMPUTING, lean_imports():
            torch.set_num_threads(model.threads)
            self.model = load_model(model, device)
            self.model.long_texts = prompts is not None and prompts.long
            self._maps = ControlMaps(self.model.annotators)
            if annotators and self.model.annotators:
                self.model.annotators.load(annotators)
            self.tokenizers = Tokenizers(*self.model.pipelines)
            self.path = Slots(self.model, model.batch)
            if warmed and (self.model.device.type == "cuda" or self._compiles):
                warm(self.path, read_facts(model).modes, warmed, annotators)
        self._spent: dict[str, float] = {}  # seconds by stage since the last unit ended
        self._before: dict[str, float] = {}  # what was spent inside of models by then
        self._inbox: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._pending: list[Pending] = []
        self._door = threading.Lock()  # held while a unit goes into the inbox, so that none comes after the last entry
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def render(self, unit: Unit, making: Making | None = None) -> Rendered:
        """Render a unit, or the next pass of its course, beside the units of other threads.

        Args:
            unit: The unit.
            making: Makes the unit's jobs; None: each is a candidate.

        A request whose images cannot be used fails, a candidate whose pixels cannot be used fails, a request that makes diffusers
        raise fails, and their neighbours are rendered all the same.

        Raises:
            FatalError: Memory ran out, or the GPU failed.
        """
        return self.submit(unit, making).result()

    def submit(self, unit: Unit, making: Making | None = None) -> "Future[Rendered]":
        """Submit a unit without waiting for its result; see `render`. Its images are read here, while the engine computes."""
        pending = self._prepared(Pending(unit, Future(), making))
        with self._door:
            if self._closed:
                raise FatalError("the engine was closed")
            self._inbox.put(pending)
        return pending.done

    def close(self) -> None:
        """Stop after the present step, and give the model's memory back. Units under way raise FatalError.

        Close every engine: a process that ends while its engine computes is aborted by torch.
        """
        with self._door:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()
        self.__dict__.pop("path", None)
        self.__dict__.pop("tokenizers", None)
        self.__dict__.pop("model", None)
        gc.collect()  # held calls of modules hold their modules
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _work(self) -> None:
        # no_grad holds for the whole thread: pipelines enter and leave it in an order of their own.
        if self._compiles:
            set_compiler()
        with torch.no_grad():
            while True:
                try:
                    self._turn()
                except _ClosedError:
                    self._give_up(_ClosedError("the engine was closed"))
                    return
                except Exception as error:  # the callers that wait for their units get the error
                    self._give_up(error)

    def _turn(self) -> None:
        """Take in the submitted units, waiting only with nothing to do, and do one step."""
        while not self.path.busy or not self._inbox.empty():
            pending = self._inbox.get()
            if pending is None:
                raise _ClosedError
            self._take_in(pending)
        with COMPUTING, self._timed("steps"):
            torch.set_num_threads(self._threads)  # at each step, since MKL has one setting for the whole process
            self.path.step()

    def _prepared(self, pending: Pending) -> Pending:
        """Return a unit with the images of its requests, read in the thread that submits the unit: a slow address stops no step."""
        started = time.monotonic()
        model = self.__dict__.get("model")
        if model is None:
            raise FatalError("the engine was closed")
        asked = [
            (placed, pending.making.asked(placed) if pending.making else placed, indices)
            for placed, indices in pending.unit.next_pass()
        ]
        with ReadingAhead([one for _, one, _ in asked], self._roots) as ahead:
            for placed, one, indices in asked:
                try:
                    prepared = prepare_request(one, self._roots, model.family.enlarges, model.encoded, self._maps, ahead.read)
                except RuntimeError as error:  # of an annotator
                    if is_out_of_memory(error):
                        raise MisfitError.of(self._batch) from error
                    if is_fatal(error):
                        raise FatalError(str(error).splitlines()[0]) from error
                    raise
                if isinstance(prepared, Outcome):
                    pending.outcomes[placed.row] = prepared
                    continue
                pending.ready[placed.row] = placed, prepared
                pending.candidates[placed.row] = {}
                pending.jobs += (pending.making.jobs if pending.making else jobs_of)(placed, prepared, self._job_seed, indices)
        pending.left = len(pending.jobs)
        pending.images_s = time.monotonic() - started
        return pending

    def _take_in(self, pending: Pending) -> None:
        self._pending.append(pending)
        self._spent["images"] = self._spent.get("images", 0.0) + pending.images_s

        def settled(job: Job, result: Candidate | Failure) -> None:
            if isinstance(result, Failure):
                pending.failures[job.placed.row] = result
            else:
                pending.candidates[job.placed.row][job.index, job.part or 0] = result
            pending.left -= 1
            if not pending.left:
                self._finish(pending)

        if pending.jobs:
            course = pending.unit.course
            self.path.add(pending.jobs, settled, ahead=course is not None and course.begun)
        else:
            self._finish(pending)

    def _finish(self, pending: Pending) -> None:
        for row, (placed, conditioning) in pending.ready.items():
            failure = pending.failures.get(row)
            made = pending.candidates[row]
            candidates: tuple[Candidate, ...] = ()
            if not failure:
                candidates = (
                    pending.making.candidates(row, made) if pending.making else tuple(made[place] for place in sorted(made))
                )
            # Chunks leave nothing out.
            texts = self.model.weighted
            lost = 0 if texts is not None and texts.chunks else self.tokenizers.lost(placed.request.words)
            maps = conditioning.controls if self._gives_maps and pending.making is None else ()
            pending.outcomes[row] = Outcome(row, candidates, failure, conditioning.sha256, lost, maps)
        self._pending.remove(pending)
        outcomes = tuple(pending.outcomes[placed.row] for placed, _ in pending.unit.next_pass())
        pending.done.set_result(Rendered(outcomes, self._take_seconds()))

    def _take_seconds(self) -> dict[str, float]:
        """Return seconds by stage since the last call; the sum over all units is right, though units share the batch."""
        inside = self.path.seconds()
        spent = {**self._spent, **{name: seconds - self._before.get(name, 0.0) for name, seconds in inside.items()}}
        # The rest of the steps is schedulers, guidance, latents: the work of diffusers' pipelines around their models.
        spent["steps"] = max(0.0, spent.get("steps", 0.0) - sum(spent[name] for name in inside))
        self._before, self._spent = inside, {}
        return spent

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._spent[stage] = self._spent.get(stage, 0.0) + time.monotonic() - started

    def _give_up(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        misfit = is_out_of_memory(error)
        for pending in self._pending:
            pending.done.set_exception(MisfitError.of(self._batch) if misfit else FatalError(reason))
        self._pending.clear()
