"""Stand-ins for the two models: a generator that paints noise of its seeds and a CLIP that scores by hash. All else is the real
thing: the actors' processes, the lanes, ranking, encoding, parts, assembly, commits.

Here too is what goes wrong on purpose: poison in prompts, and processes that kill themselves at one step of their writing.
"""

import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
from ray import exceptions

from promptmill.actors.flow import in_process_pools, ray_pools
from promptmill.configs.language_models import Captions
from promptmill.pipelines.scoring.finishing import Onward
from promptmill.pipelines.scoring.staging import finish_in_stages
from promptmill.pipelines.work.errors import MisfitError
from promptmill.pipelines.work.results import Candidate, Outcome, Rendered, Scored
from promptmill.pipelines.work.stage_parts import pictures_before
from promptmill.pipelines.work.units import Unit, candidate_seed
from promptmill.shards.parts import part_name, write_part
from promptmill.shards.storage import staying


@dataclass(frozen=True)
class Chaos:
    """What goes wrong, and where it is written down.

    Attributes:
        folder: Of this run's notes: `rendered` has a line a unit, `fired` is there once a process has killed itself.
        seconds: That a unit takes.
        role, step: Which kind of process kills itself before which of its operations on files, counted from 1; never where 0.
        under: Only operations on paths that have this in them count.
        kinds: Each node is hardware of another kind.
        assembling: That a shard's assembly takes longer, half before and half after its work.
        scoring: Seconds that a unit takes of a scorer that is the only one so far.
        nodes: On how many nodes units have to be rendered before any unit is done: a busy machine's nodes take long to join.
    """

    folder: str
    seconds: float = 0.05
    role: str = ""
    step: int = 0
    under: str = ""
    kinds: bool = False
    assembling: float = 0.0
    scoring: float = 0.0
    nodes: int = 1

    def note(self, name: str, line: str) -> None:
        with (Path(self.folder) / name).open("a") as file:
            file.write(line + "\n")

    def joined(self) -> bool:
        """Whether units were rendered on as many nodes as have to be there."""
        return (
            self.nodes == 1
            or len({line.split()[3] for line in (Path(self.folder) / "rendered").read_text().splitlines()}) >= self.nodes
        )

    @property
    def fired(self) -> Path:
        return Path(self.folder) / "fired"

    def arm(self, role: str) -> None:
        """From now on count this process's operations on files, or its requests to S3, if it is of the kind."""
        if role == self.role and self.step and not _ARMED.steps:
            _ARMED.steps = -1
            if self.under.startswith("s3://"):
                self._count_requests()
            else:
                sys.addaudithook(lambda event, arguments: self._count(event, arguments))

    def _count_requests(self) -> None:
        import obstore

        def counted(real):
            def call(*arguments, **keywords):
                self._step()
                return real(*arguments, **keywords)

            return call

        for name in ("put_async", "get_async", "get_range_async", "delete_async", "list_with_delimiter_async"):
            setattr(obstore, name, counted(getattr(obstore, name)))

    def _count(self, event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.link", "os.remove", "os.mkdir") or not any(
            isinstance(argument, str | os.PathLike) and self.under in os.fspath(argument) for argument in arguments
        ):
            return
        self._step()

    def _step(self) -> None:
        _ARMED.steps = max(0, _ARMED.steps) + 1
        if _ARMED.steps == self.step:
            try:
                os.close(os.open(self.fired, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return  # once a run
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class _Armed:
    steps: int = 0


_ARMED = _Armed()


class Clip:
    """Scores by hash, with embeddings as wide as the embedded family's."""

    def score(self, prompts: list[str], images: list[np.ndarray]) -> list[Scored]:
        return [self._score(prompt, image) for prompt, image in zip(prompts, images, strict=True)]

    def _score(self, prompt: str, image: np.ndarray) -> Scored:
        digest = hashlib.sha256(prompt.encode() + image.tobytes()).digest()
        embedding = np.resize(np.frombuffer(digest, np.uint8), 128).astype(np.float32)
        return Scored(float(int.from_bytes(digest[8:10], "big")) / 1000, embedding / np.linalg.norm(embedding))


def _node() -> str:
    if not ray.is_initialized():
        return "here"
    return ray.get_runtime_context().get_node_id()


def paint(seed: int, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 that depends on the seed alone."""
    coarse = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(height // 4, 0).repeat(width // 4, 1))


def poison(prompt: str, cured: bool, candidates: Collection[int] = ()) -> None:
    """Do to this process what a prompt says, as a broken library would; `at 20 exit` does so only with candidate 20 among those."""
    word, *rest = [""] if cured else prompt.split(" ")
    if word == "at":
        word = rest[1] if int(rest[0]) in candidates else ""
    if word == "segfault":
        ctypes.string_at(0)
    if word == "exit":
        os._exit(7)
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "hang":
        time.sleep(3600)
    if word == "host-memory":
        raise exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")  # as Ray says it
    if word == "memory":
        raise MisfitError.of(8)


def install(chaos: Chaos) -> None:
    """Put the stand-ins in the places of the actors, in this driver and in the workers that it starts, here or on Ray."""

    class Generator:
        def __init__(self, recipe):
            self._recipe, self._job_seed = recipe, recipe.config.seed
            self._gives_maps = recipe.config.shards.controls

        def load(self):
            return {"cpu": _node() if chaos.kinds else "stand-in"}

        def render(self, unit: Unit):
            chaos.note("rendered", f"{unit.name} {len(unit.requests)} {os.getpid()} {_node()}")
            time.sleep(chaos.seconds)
            until = time.monotonic() + 180
            while not chaos.joined() and time.monotonic() < until:
                time.sleep(0.1)
            asked = tuple(unit.next_pass())
            if unit.course is not None and unit.course.staged is not None:
                pictures = pictures_before(self._recipe, unit)
                if isinstance(unit.course.staged.stage, Captions):
                    chaos.note("captioned", unit.name)
                    return Rendered(tuple(self._captioned(*one, pictures) for one in asked), {"denoise": chaos.seconds})
                return Rendered(tuple(self._enlarged(*one, pictures) for one in asked), {"denoise": chaos.seconds})
            return Rendered(tuple(self._outcome(*one) for one in asked), {"denoise": chaos.seconds})

        def close(self):
            pass

        def _outcome(self, placed, indices) -> Outcome:
            request = placed.request
            poison(request.prompt, (Path(chaos.folder) / "cured").exists(), indices)
            seeds = {index: candidate_seed(self._job_seed, request, index) for index in indices}
            # Of other steps, another picture.
            noise = {index: seed + 2**32 * (request.steps - 1) for index, seed in seeds.items()}
            made = (Candidate(i, seeds[i], paint(noise[i], request.height, request.width), request.steps) for i in indices)
            # Of each row and control another one.
            steering = range(len(request.controls) * self._gives_maps)
            maps = (paint(1000 * placed.row + number, request.height, request.width) for number in steering)
            return Outcome(placed.row, tuple(made), maps=tuple(maps))

        def _enlarged(self, placed, indices, pictures) -> Outcome:
            """What a stage makes of a request's kept images: twice as large, and another picture."""
            seeds = {index: candidate_seed(self._job_seed, placed.request, index) for index in indices}
            large = {index: 255 - pictures[placed.row, index].repeat(2, 0).repeat(2, 1) for index in indices}
            return Outcome(placed.row, tuple(Candidate(i, seeds[i], large[i], 7) for i in indices))

        def _captioned(self, placed, indices, pictures) -> Outcome:
            """What captions of a request's kept images are: words that depend on the pixels alone."""
            said = {index: hashlib.sha256(pictures[placed.row, index].tobytes()).hexdigest()[:12] for index in indices}
            return Outcome(placed.row, tuple(Candidate(i, 0, None, 0, caption=f"a {said[i]}") for i in indices))

    class Scorer:
        def __init__(self, recipe, generators=1):
            self._recipe = recipe

        def load(self):
            chaos.arm("scorer")
            chaos.note("scorers", f"{id(self)} {os.getpid()}")
            return {"cpu": _node() if chaos.kinds else "stand-in"}

        def finish(self, unit: Unit, rendered: Rendered, earlier=tuple):
            from promptmill.actors.receipts import Receipt

            if chaos.scoring and len((Path(chaos.folder) / "scorers").read_text().splitlines()) == 1:
                time.sleep(chaos.scoring)
            chaos.note("scored", f"{unit.name} {id(self)} {os.getpid()}")
            finished = finish_in_stages(unit, rendered, Clip(), self._recipe, earlier)
            if isinstance(finished, Onward):
                return finished
            recipe, name = self._recipe, part_name(unit.name)
            with staying(recipe.output):
                size = write_part(recipe.output, name, finished.rows, recipe.form_of(unit), recipe.fingerprint)
            receipt = Receipt.of(unit, finished.rows, finished.scores, finished.seconds)
            return replace(receipt, rendering_s=finished.rendering_s, part_bytes=size)

    real, real_join = ray_pools.assemble_shard, ray_pools.join_unit

    def assemble_shard(*arguments):
        chaos.arm("assembler")
        time.sleep(chaos.assembling / 2)
        made = real(*arguments)
        time.sleep(chaos.assembling / 2)
        return made

    def join_unit(*arguments):
        chaos.arm("joiner")
        return real_join(*arguments)

    for pools in (ray_pools, in_process_pools):
        pools.Generator, pools.Scorer = Generator, Scorer
        pools.assemble_shard, pools.join_unit = assemble_shard, join_unit
    in_process_pools._import_models = lambda: None  # there are none
