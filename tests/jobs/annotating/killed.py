"""Makes datasets of maps in processes that kill themselves at a write: `python -m tests.jobs.annotating.killed MANIFEST FOLDER`.

A process is forked for each from one that has imported all it needs and has no other thread.
"""

import os
import signal
import sys
from pathlib import Path

import cv2

import promptmill.pipelines.rendering.control_maps  # noqa: F401 (what a process would import on its way)
from promptmill.jobs.annotating import annotating
from promptmill.jobs.annotating.inputs import Wanted, look, parse_maps
from promptmill.shards import commits, parts

CLASSICAL = "canny,blur,canny(low=50)"
# By the writes before the kill: the inputs, the parts, the tar, the Parquet file and the record of each shard, the card.
WRITES = (0, 1, 3, 4, 5, 6, 8, 16, 17, 18)
AGAIN = 3  # writes, of a process that is killed again and again


def made(manifest, out, maps, config=None, size=None):
    """Makes a dataset in small shards and parts."""
    annotating.annotate(look(str(manifest), Wanted(parse_maps(maps), size, shard=5, part=2), config), str(out))
    return out


def killed_after(writes, manifest, out):
    """Makes the dataset in a process that kills itself at a write; returns whether it did."""
    if (child := os.fork()) == 0:
        left = [writes]

        def counted(real):
            def write(*given):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*given)

            return write

        annotating.put, parts.put = counted(annotating.put), counted(parts.put)
        commits.put_if_absent = counted(commits.put_if_absent)
        made(manifest, out, CLASSICAL)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main():
    manifest, folder = sys.argv[1], Path(sys.argv[2])
    cv2.setNumThreads(1)
    for writes in WRITES:
        assert killed_after(writes, manifest, folder / str(writes)), writes
    times = 0
    while killed_after(AGAIN, manifest, folder / "again"):
        times += 1
    assert times > 3, times


if __name__ == "__main__":
    main()
