import io
import subprocess
import sys
import tarfile

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from promptmill.shards.tars import Sample, TarError, read_tar, write_tar

keys = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)
samples = st.lists(
    st.builds(lambda key, png, txt: Sample(key, {"png": png, "txt": txt}), keys, st.binary(), st.binary()),
    min_size=1,
    unique_by=lambda sample: sample.key,
)


@given(samples, st.randoms())
def test_the_same_samples_make_the_same_bytes_in_any_order_and_read_back(some, random):
    shuffled = list(some)
    random.shuffle(shuffled)
    content = write_tar(some)
    assert write_tar(shuffled) == content
    assert list(read_tar(content)) == sorted(some, key=lambda sample: sample.key)


def test_members_carry_nothing_of_this_machine():
    content = write_tar([Sample("a", {"txt": b"x"})])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        (member,) = tar
    assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, 0, "", "", 0o644)


@given(samples)
def test_the_bytes_are_those_of_a_plain_ustar_tar_as_datasets_have_always_been_written(some):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in sorted(some, key=lambda sample: sample.key):
            for ending, content in sorted(sample.files.items()):
                member = tarfile.TarInfo(f"{sample.key}.{ending}")
                member.size, member.mode, member.mtime = len(content), 0o644, 0
                tar.addfile(member, io.BytesIO(content))
    assert write_tar(some) == plain.getvalue()


def test_whoever_writes_a_shard_does_not_load_torch_and_webdataset_itself_stays_whole():
    code = """
import sys
from promptmill.shards.tars import Sample, write_tar
write_tar([Sample("a", {"txt": b"x"})])
assert "torch" not in sys.modules and "webdataset" not in sys.modules
import webdataset
assert webdataset.WebDataset and webdataset.TarWriter
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_webdataset_reads_it(tmp_path):
    (tmp_path / "0.tar").write_bytes(write_tar([Sample(f"k-{i}", {"txt": b"x", "json": b"{}"}) for i in range(3)]))
    read = list(webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False))
    assert [(sample["__key__"], sample["txt"]) for sample in read] == [(f"k-{i}", b"x") for i in range(3)]


@pytest.mark.parametrize(
    ("some", "says"),
    [
        ([], "no samples"),
        ([Sample("a", {"txt": b""}), Sample("a", {"txt": b""})], "a: occurs twice"),
        ([Sample("a.b", {"txt": b""})], "split it at the first dot"),
        ([Sample("a/b", {"txt": b""})], "a/b: a key is letters"),
        ([Sample("a" * 97, {"txt": b""})], "aaa: is longer than the 100 bytes"),
        ([Sample("a", {"txt": b""}), Sample("b", {"png": b""})], "b: has png where the others have txt"),
    ],
)
def test_samples_that_readers_would_misread_are_refused(some, says):
    with pytest.raises(TarError, match=says):
        write_tar(some)


@given(st.integers(1, 10_239))
def test_a_truncated_tar_is_found_wherever_it_ends(length):
    content = write_tar([Sample(f"k{i}", {"txt": b"x" * 700}) for i in range(4)])
    assert len(content) == 10_240
    with pytest.raises(TarError):
        list(read_tar(content[:length]))


@given(st.integers(0, 4), st.integers(0, 511), st.integers(0, 7))
def test_a_flipped_bit_in_any_header_never_hides_a_sample(number, byte, bit):
    some = [Sample(f"k{i}", {"txt": b"x" * 700}) for i in range(4)]
    content = bytearray(write_tar(some))
    content[min(number * 1536 + byte, len(content) - 1)] ^= 1 << bit
    try:
        read = list(read_tar(bytes(content)))
    except TarError:
        return
    assert len(read) == 4


def test_a_doubled_member_and_scattered_samples_are_found():
    for members in (["a.txt", "a.txt"], ["a.txt", "b.txt", "a.png"], ["\x1b.txt", "b.txt", "\x1b.png"], ["\x1b.txt"] * 2):
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for name in members:
                tar.addfile(tarfile.TarInfo(name))
        with pytest.raises(TarError) as raised:
            list(read_tar(whole.getvalue()))
        assert "\x1b" not in str(raised.value)
