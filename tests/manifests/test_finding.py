"""What a user writes for a manifest or an image: a path that exists is that file, and else the message says what lies nearest."""

import io
import json
import os
import unicodedata

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from promptmill.configs.parameters import Defaults
from promptmill.manifests import finding, roots
from promptmill.manifests.checking import check_rows
from promptmill.manifests.images import ImageError, load, roots_of
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files, read_rows

RULES = Rules(Defaults(width=64, height=64))


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prompts(*patterns):
    return [row.values["prompt"] for row in read_rows(find_files(patterns))]


@pytest.mark.parametrize("folder", ["d [v2]", "a*b", "what?", "x::y", "{a,b}", "50%20"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_manifest_and_its_images_in_any_folder_are_found_as_they_stand(tmp_path, monkeypatch, folder, absolute):
    place = tmp_path / folder
    place.mkdir()
    (place / "i[1].png").write_bytes(png())
    (place / "p.jsonl").write_text(json.dumps({"prompt": "x", "init_image": "i[1].png"}))
    monkeypatch.chdir(place)
    files = find_files(str(place / "p.jsonl") if absolute else "p.jsonl")
    (checked,) = check_rows(files, RULES, roots_of(files, (), 10**6))
    assert checked.images, checked.lines()
    assert [os.path.basename(file) for file in find_files("*.jsonl")] == ["p.jsonl"]  # noqa: PTH119


def test_a_path_that_exists_is_that_file_and_not_what_else_it_would_match(here):
    for name in ("a*b.txt", "aXb.txt", "a[1].txt", "a1.txt"):
        (here / name).write_text(f"{name}\n")
    assert prompts("a*b.txt") == ["a*b.txt"] and prompts("a[1].txt") == ["a[1].txt"]
    (here / "a*b.txt").unlink()
    assert prompts("a*b.txt") == ["aXb.txt"]


def test_a_path_with_dots_behind_a_link_is_where_the_system_finds_it(here):
    for name in ("a/b", "c"):
        (here / name).mkdir(parents=True)
    (here / "a/p.txt").write_text("right\n")
    (here / "p.txt").write_text("wrong\n")
    (here / "c/link").symlink_to(here / "a/b")
    assert prompts("c/link/../p.txt") == ["right"]


@pytest.mark.parametrize(
    ("lies", "wanted", "says"),
    [
        ("Prompts.jsonl", "prompts.jsonl", "'Prompts.jsonl' lies there"),
        ("sub/p.jsonl", "sub\\p.jsonl", "'sub/p.jsonl' lies there"),
        (unicodedata.normalize("NFD", "café.jsonl"), "café.jsonl", "lies there"),
        ("prompts.csv", "prompts.jsonl", "'prompts.csv' lies there"),
        ("prompts.jsonl", "promtps.jsonl", "did you mean 'prompts.jsonl'?"),
        ("x.jsonl", "gone/x.jsonl", "there is no folder 'gone'"),
    ],
)
def test_a_manifest_that_is_not_there_is_said_with_where_it_was_looked_for_and_what_lies_nearest(here, lies, wanted, says):
    (here / lies).parent.mkdir(exist_ok=True)
    (here / lies).write_text('{"prompt": "x"}')
    with pytest.raises(ManifestError) as caught:
        find_files(wanted)
    said = str(caught.value)
    assert said.startswith(f"{wanted}: no such file in {here}") and says in said and "\n" not in said


def test_a_link_that_leads_nowhere_is_called_one(here):
    (here / "p.jsonl").symlink_to(".git/annex/objects/SHA256E-1")
    with pytest.raises(ManifestError, match=r"it is a link to \.git/annex/objects/SHA256E-1, which is not there"):
        find_files("p.jsonl")


def test_a_pipe_is_no_manifest_since_it_gives_its_rows_once(here):
    os.mkfifo(here / "p.jsonl")
    read, write = os.pipe()
    try:
        for path in ("p.jsonl", f"/dev/fd/{read}"):
            with pytest.raises(ManifestError, match=r"is a pipe, which gives its rows once.*write it to a file"):
                find_files(path)
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(ManifestError, match="is a device or socket"):
        find_files("/dev/null")


@pytest.mark.parametrize(
    ("lies", "wanted"),
    [
        ("images/1.png", "images\\1.png"),
        ("images/1.PNG", "images/1.png"),
        ("Images/1.png", "images/1.png"),
        (unicodedata.normalize("NFD", "é.png"), "é.png"),
        ("1.png", "1.jpg"),
    ],
)
def test_an_image_that_is_not_there_is_said_with_what_lies_nearest(tmp_path, lies, wanted):
    roots._listing.cache_clear()
    (tmp_path / lies).parent.mkdir(exist_ok=True)
    (tmp_path / lies).write_bytes(png())
    with pytest.raises(ImageError) as caught:
        load(wanted, roots_of([str(tmp_path / "p.jsonl")], (), 10**6))
    assert str(caught.value).endswith(
        f"; {lies.encode('ascii', 'replace').decode() if not lies.isprintable() else lies} lies there"
    )


def test_a_file_uri_inside_a_root_is_its_file_and_outside_it_leads_out(tmp_path):
    (tmp_path / "a b.png").write_bytes(png())
    where = roots_of([str(tmp_path / "p.jsonl")], (), 10**6)
    for uri in (f"file://{tmp_path}/a b.png", f"file://{tmp_path}/a%20b.png", f"file://localhost{tmp_path}/a%20b.png"):
        assert load(uri, where).image.size == (8, 8)
    with pytest.raises(ImageError, match="leads out of"):
        load("file:///etc/hostname", where)
    outside = roots_of([str(tmp_path / "in/p.jsonl")], (), 10**6)
    (tmp_path / "in").mkdir()
    with pytest.raises(ImageError):
        load(f"file://{tmp_path}/in/%2e%2e/a%20b.png", outside)


def test_an_image_whose_name_has_colons_is_that_file(tmp_path):
    (tmp_path / "a::b.png").write_bytes(png())
    assert load("a::b.png", roots_of([str(tmp_path / "p.jsonl")], (), 10**6)).image.size == (8, 8)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "json", "tar", "txt"])
def test_an_empty_file_among_others_is_left_out_with_a_note_and_alone_refused(here, ending):
    import tarfile

    (here / "b.txt").write_text("x\n")
    empty = here / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), empty)
    elif ending == "tar":
        tarfile.open(empty, "w").close()
    else:
        empty.write_text({"csv": "prompt\n", "json": "[]"}.get(ending, ""))
    notes = []
    rows = list(read_rows([str(empty), str(here / "b.txt")], notes.append))
    assert [row.values["prompt"] for row in rows] == ["x"]
    assert notes == [f"a.{ending}: has no rows, and is left out"]
    with pytest.raises(ManifestError, match=rf"a\.{ending}: has no (rows|images)"):
        list(read_rows([str(empty)]))
    with pytest.raises(ManifestError, match="neither have the 1 other files"):
        list(read_rows([str(empty), str(empty)]))


def test_marks_that_spark_leaves_beside_its_parts_are_no_manifests(here):
    for name in ("_SUCCESS", "_metadata", ".part-0.txt.crc"):
        (here / name).write_text("")
    (here / "part-0.txt").write_text("x\n")
    (here / "_mine.txt").write_text("y\n")
    assert prompts("*") == ["y", "x"]


def test_the_folders_of_hive_partitions_give_columns(here):
    for topic, folder in (
        ("pets", "topic=pets/year=2024"),
        ("a/b", "topic=a%2Fb/year=2025"),
        (None, "topic=__HIVE_DEFAULT_PARTITION__"),
    ):
        place = here / "lake" / folder
        place.mkdir(parents=True)
        pq.write_table(pa.table({"prompt": [str(topic)]}), place / "0.parquet")
    rows = [row.values for row in read_rows(find_files("lake/**/*.parquet"))]
    assert sorted(rows, key=str) == sorted(
        [
            {"topic": "pets", "year": "2024", "prompt": "pets"},
            {"topic": "a/b", "year": "2025", "prompt": "a/b"},
            {"prompt": "None"},
        ],
        key=str,
    )
    (here / "lake/topic=cars").mkdir()
    (here / "lake/topic=cars/0.jsonl").write_text('{"prompt": "x", "topic": "cars"}\n{"prompt": "y", "topic": "bikes"}')
    same, other = read_rows(find_files("lake/topic=cars/*.jsonl"))
    assert same.values["topic"] == "cars"
    assert other.broken == "topic: 'bikes' here, but 'cars' in the name of the file's folder"
    assert finding.partitions(str(here / "x=1/y/0.jsonl")) == {}


def test_a_remote_glob_lists_its_folder_once_however_many_files_there_are(monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    store = fsspec.filesystem("memory")
    store.pipe({f"/many/{i:03d}.txt": b"x\n" for i in range(200)})
    calls = {"ls": 0, "info": 0, "isfile": 0}
    for name in calls:
        real = getattr(MemoryFileSystem, name)

        def counting(self, *args, name=name, real=real, **kwargs):
            calls[name] += 1
            return real(self, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, name, counting)
    try:
        files = find_files("memory://many/*.txt")
        assert len(files) == 200
        assert calls["ls"] + calls["info"] + calls["isfile"] < 10
        assert sum(1 for _ in read_rows(files)) == 200
        assert calls["ls"] < 10
    finally:
        store.rm("/many", recursive=True)


def test_a_storage_is_asked_for_each_file_and_keeps_no_listing_that_it_would_go_through():
    from promptmill.manifests.files import system_of

    system, _ = system_of("s3://bucket/a.jsonl")
    assert not system.dircache.use_listings_cache


def test_a_local_glob_lists_its_folder_once(here, monkeypatch):
    for i in range(100):
        (here / f"{i:03d}.txt").write_text("x\n")
    listed = []
    scandir, listdir = os.scandir, os.listdir
    monkeypatch.setattr(os, "scandir", lambda *place: listed.append(place) or scandir(*place))
    monkeypatch.setattr(os, "listdir", lambda *place: listed.append(place) or listdir(*place))
    assert sum(1 for _ in read_rows(find_files("*.txt"))) == 100
    assert len(listed) == 1
