import dataclasses

import pytest

from promptmill.shards.commits import CommitError, FileRecord, read_record
from promptmill.shards.published import read_images, read_metadata
from promptmill.shards.storage import get, join, put
from tests.forge.forging import members_of, packed, record_of
from tests.shards.made import publish, shard

KEY = "000000-00000-0000"


@pytest.fixture
def output(tmp_path):
    publish(str(tmp_path / "out"), [shard(0)])
    return str(tmp_path / "out")


def rerecorded(output, **values):
    """Another record in place of shard 0's."""
    put(join(output, "commits/000000.json"), dataclasses.replace(record_of(output), **values).to_json())


def of(path, **values):
    return dataclasses.replace(FileRecord("", 7, "0" * 64), path=path, **values)


TAR, PARQUET = of("data/000000.tar"), of("metadata/000000.parquet")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "names no file, where the shard has data/000000.tar, metadata/000000.parquet"),
        ((PARQUET,), "names metadata/000000.parquet, where"),
        ((TAR, TAR, PARQUET), "names data/000000.tar, data/000000.tar, metadata/000000.parquet, where"),
        ((of("data/../../x.tar"), PARQUET), "names data/../../x.tar, metadata/000000.parquet, where"),
        ((of("/data/000000.tar"), PARQUET), "names /data/000000.tar, metadata"),
        ((of("data/000001.tar"), PARQUET), "names data/000001.tar, metadata"),
        ((of("data/000000.1.tar"), PARQUET), "names data/000000.1.tar, metadata"),
        ((TAR, of("metadata/000000.parquet\n")), "names data/000000.tar, metadata/000000.parquet\\n, where"),
        ((of("data/000000.tar", sha256="../" * 30), PARQUET), "says that data/000000.tar is of 7 bytes with SHA-256 ../"),
        ((of("data/000000.tar", sha256="A" * 64), PARQUET), "says that data/000000.tar is of 7 bytes with SHA-256 AAA"),
    ],
)
def test_a_record_names_the_two_files_of_its_shard_and_no_others(output, files, says):
    rerecorded(output, files=files)
    with pytest.raises(CommitError) as raised:
        read_record(output, 0)
    assert str(raised.value).startswith(f"commits/000000.json: {says}")
    assert str(raised.value).endswith("; `promptmill verify` says all that is wrong")


def test_a_file_of_a_record_is_not_of_less_than_no_bytes(output):
    rerecorded(output, files=(of("data/000000.tar", size=-1), PARQUET))
    with pytest.raises(
        CommitError, match=r"^commits/000000.json: not a commit record: files.0.size: input .* equal to 0 \(found -1\)$"
    ):
        read_record(output, 0)


@pytest.mark.parametrize("fingerprint", ["", "../" * 21, "g" * 64, "f" * 63, "f" * 64 + "\n"])
def test_a_record_is_of_a_plan_by_its_fingerprint(output, fingerprint):
    rerecorded(output, fingerprint=fingerprint)
    with pytest.raises(CommitError, match=r"^commits/000000.json: its fingerprint is .*, not 64 hexadecimal digits; "):
        read_record(output, 0)


@pytest.mark.parametrize("values", [{"path": 7}, {"size": "7"}, {"size": True}, {"size": 7.0}, {"sha256": None}])
def test_a_file_of_a_record_has_a_path_a_size_and_a_hash(output, values):
    (name,) = values
    rerecorded(output, files=(dataclasses.replace(of("data/000000.tar"), **values), PARQUET))
    with pytest.raises(CommitError, match=rf"^commits/000000.json: not a commit record: files.0.{name}: input should be a valid"):
        read_record(output, 0)


def with_tar(output, members):
    tar = packed(members)
    put(join(output, "data/000000.tar"), tar)
    record = record_of(output)
    rerecorded(output, files=(FileRecord.of("data/000000.tar", tar), record.files[1]))


@pytest.mark.parametrize("ending", ["eps", "py", "png.exe", "", "/etc/passwd", "gif"])
def test_an_image_has_an_ending_of_images(output, ending):
    with_tar(output, [(name.replace(".png", f".{ending}") if KEY in name else name, c) for name, c in members_of(output)])
    with pytest.raises(
        CommitError, match=rf"data/000000.tar: {KEY}: has the members .*, where one is an image \(png, jpg, webp\)$"
    ):
        read_images(output, read_record(output, 0), {KEY})


def test_an_image_is_of_the_format_that_its_name_says_and_there_is_one(output):
    members = members_of(output)
    with_tar(output, [(name.replace(".png", ".webp") if KEY in name else name, content) for name, content in members])
    with pytest.raises(CommitError, match=f"{KEY}: its image is no WEBP, as its name says"):
        read_images(output, read_record(output, 0), {KEY})
    with_tar(output, [*members[:3], (f"{KEY}.jpg", b"\xff\xd8\xff"), *members[3:]])
    with pytest.raises(CommitError, match=f"{KEY}: has the members jpg, json, png, txt, where one is an image"):
        read_images(output, read_record(output, 0), {KEY})
    with_tar(output, [(name, content) for name, content in members if name != f"{KEY}.png"])
    with pytest.raises(CommitError, match=f"{KEY}: has the members json, txt, where one is an image"):
        read_images(output, read_record(output, 0), {KEY})


def test_a_file_that_grew_is_not_read(output, monkeypatch):
    path = join(output, "metadata/000000.parquet")
    size = len(get(path))
    put(path, get(path) + b"more")
    with pytest.raises(
        CommitError, match=rf"000000.parquet: is of {size + 4:,} bytes, its record says {size:,}; `promptmill verify"
    ):
        read_metadata(output, read_record(output, 0))
