"""Makes safetensors of a file of `torch.save`, in a process of its own that is limited in memory, time and bytes written."""

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from promptmill.configs.weights import PICKLES, SAFETENSORS
from promptmill.pipelines.models.sources import check_fetched
from promptmill.pipelines.work.errors import ModelError

MEMORY = 2 * 1024**3  # bytes of addresses, beside twice the file
SECONDS, A_SECOND = 20, 50 * 1024**2  # of a core, and one more for each so many bytes

# Read by a bare interpreter: the file, the place of the result, both limits, and the paths of this interpreter.
_CODE = """
import json, os, resource, sys
source, to, memory, seconds, most = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
sys.path[:] = sys.argv[6:]
from promptmill.pipelines.models.pickled_weights import PickleError, read_weights, write_safetensors
used = resource.getrusage(resource.RUSAGE_SELF)
seconds += int(used.ru_utime + used.ru_stime) + 1
for limit, value in (
    (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, most), (resource.RLIMIT_CORE, 0)
):
    try:
        resource.setrlimit(limit, (value, value))
    except (ValueError, OSError):
        pass  # a stricter limit, or a system without this one
with open(source, "rb") as file:
    try:
        weights = read_weights(file, os.fstat(file.fileno()).st_size)
        with open(to, "xb") as result:
            written = write_safetensors(file, weights, result)
            result.flush()
            os.fsync(result.fileno())
        said = {"tensors": len(weights.tensors), "bytes": written, "wrapper": weights.wrapper, "left_out": weights.left_out}
    except PickleError as error:
        said = {"refused": str(error)}
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Converted:
    """Holds the outcome of one file.

    Attributes:
        tensors: Their number.
        bytes: Of their numbers.
        wrapper: The key under which the file keeps them; None where they stand at the top.
        left_out: Some names beside them that are no tensors.
    """

    tensors: int
    bytes: int
    wrapper: str | None
    left_out: tuple[str, ...]


def convert(file: Path, to: Path) -> Converted:
    """Write the tensors of a file of `torch.save` as safetensors; nothing that the file names is run.

    Args:
        file: The file, whatever its ending.
        to: The place of the result, which must not exist; its folder must.

    Raises:
        ModelError: The file is not there, is none of `torch.save`, is not whole, or names anything but tensors; or the result is no
            .safetensors file, or there already.
    """
    if file.suffix == SAFETENSORS:
        raise ModelError(f"{file}: is a {SAFETENSORS} file already; of the others there are {', '.join(PICKLES)}")
    if to.suffix != SAFETENSORS:
        raise ModelError(f"{to}: a name with {SAFETENSORS} is meant")
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{file}: is no regular file")
        check_fetched(file)
        if os.path.lexists(to):
            raise ModelError(f"{to}: is there already; remove it, or name another place with --to")
        if not to.parent.is_dir():
            raise ModelError(f"{to.parent}: no such folder")
        scratch = to.with_name(f".{to.name}.{os.getpid()}.tmp")
        try:
            converted = _converted(file, found.st_size, scratch)
            os.link(scratch, to)  # not over what has come there since
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{error.filename or file}: {error.strerror or error}") from None
    return converted


def _converted(file: Path, size: int, to: Path) -> Converted:
    seconds = SECONDS + size // A_SECOND
    limits = [str(value) for value in (MEMORY + 2 * size, seconds, 2**20 + 5 * size)]
    command = [sys.executable, "-I", "-S", "-c", _CODE, str(file.absolute()), str(to.absolute()), *limits]
    paths = [path or str(Path.cwd()) for path in sys.path]
    # numpy's library of linear algebra takes addresses for each of its threads.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *paths], capture_output=True, stdin=subprocess.DEVNULL, env=environment, check=False)
    answer = {}
    with suppress(ValueError):
        answer = json.loads(done.stdout)
    if "refused" in answer:
        raise ModelError(f"{file}: {answer['refused']}")
    if not answer:
        raise ModelError(f"{file}: {_why_ended(done.returncode, seconds)}")
    return Converted(answer["tensors"], answer["bytes"], answer["wrapper"], tuple(answer["left_out"]))


def _why_ended(code: int, seconds: int) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes more than {seconds} s to read; files of weights do not"
    return "asks for more memory than its size justifies, or is made to end whatever reads it"
