"""That files are read several at a time, never too far ahead, and that whoever asks gets what reading them in turn gives."""

import threading
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests.images import ImageError
from promptmill.manifests.roots import Roots
from promptmill.pipelines.rendering.reading_ahead import ReadingAhead

ROOTS = Roots(())


def request(*paths, known=()):
    images = [(f"controls.{number}.image", path) for number, path in enumerate(paths)]
    return SimpleNamespace(
        file=0, images={column: "hash" for column, path in images if path in known}, request=SimpleNamespace(images=lambda: images)
    )


def test_as_many_files_are_read_at_a_time_as_there_are_threads():
    together = threading.Barrier(4)

    def read(path, roots, file, known):
        together.wait(60)
        return path.encode()

    files = [f"{number}.png" for number in range(8)]
    with ReadingAhead([request(path) for path in files], ROOTS, 4, read) as ahead:
        assert [ahead.read(path, ROOTS, 0, False) for path in files] == [path.encode() for path in files]


def test_no_more_files_wait_in_memory_than_are_read_at_a_time():
    begun, paused = [], threading.Event()

    def read(path, roots, file, known):
        begun.append(path)
        return path.encode()

    files = [f"{number:02d}.png" for number in range(40)]
    with ReadingAhead([request(path) for path in files], ROOTS, 3, read) as ahead:
        for place, path in enumerate(files):
            paused.wait(0.002)
            assert ahead.read(path, ROOTS, 0, False) == path.encode()
            assert len(begun) <= place + 1 + 3
    assert sorted(begun) == files


@given(
    rows=st.lists(st.lists(st.sampled_from("abcde"), max_size=4), max_size=6),
    broken=st.sets(st.sampled_from("abcde"), max_size=2),
    threads=st.integers(1, 4),
)
def test_each_row_gets_what_reading_in_turn_gives_whatever_fails(rows, broken, threads):
    def read(path, roots, file, known):
        if path in broken:
            raise ImageError(f"{path}: cannot be read")
        return path.encode()

    def seen(read_file):
        """What rows come to, each of which ends at its first broken file."""
        found = []
        for row in rows:
            try:
                found.append([read_file(path, ROOTS, 0, False) for path in row])
            except ImageError as error:
                found.append(str(error))
        return found

    with ReadingAhead([request(*row) for row in rows], ROOTS, threads, read) as ahead:
        assert seen(ahead.read) == seen(read)


def test_threads_end_with_the_unit_though_files_were_not_asked_for():
    before = threading.active_count()
    reading = threading.Event()

    def read(path, roots, file, known):
        reading.set()
        return b"content"

    with ReadingAhead([request("a.png", "b.png")] * 9, ROOTS, 2, read):
        assert reading.wait(60)
    for thread in threading.enumerate():
        if thread.name == "images":
            thread.join(60)
    assert threading.active_count() <= before


def test_images_in_tars_and_parquet_files_and_drawings_are_read_in_their_turn_alone():
    paths = ("a.tar::1.png", "b.parquet::image/1", "<svg xmlns='http://www.w3.org/2000/svg'/>", "c.png", "d.png")
    threads = {}

    def read(path, roots, file, known):
        threads[path] = threading.current_thread().name
        return path.encode()

    with ReadingAhead([request(*paths)], ROOTS, 4, read) as ahead:
        assert [ahead.read(path, ROOTS, 0, False) for path in paths] == [path.encode() for path in paths]
    here = threading.current_thread().name
    assert [threads[path] == here for path in paths] == [True, True, True, False, False]


def test_a_file_that_nobody_announced_is_read_at_once():
    with ReadingAhead([request("a.png", "b.png")], ROOTS, 2, lambda path, *rest: path.encode()) as ahead:
        assert ahead.read("c.png", ROOTS) == b"c.png"
