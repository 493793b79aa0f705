import hashlib
import io
import tarfile
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pillow_heif
import pytest
import s3fs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.fuzz_manifests import is_safe_line
from promptmill.configs.parameters import Control, Defaults
from promptmill.manifests import checking, images, urls
from promptmill.manifests.checking import check_images, check_rows, look
from promptmill.manifests.images import ImageError, Roots, UnreachableError, load, roots_of
from promptmill.manifests.rules import Rules

RULES = Rules(Defaults(), controls=("canny",))
pillow_heif.register_heif_opener()


def png(size=(8, 8), value=0, mode="RGB", form="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, form, **options)
    return file.getvalue()


def kinds_of_image():
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    animated, sixteen = io.BytesIO(), io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    Image.fromarray(rng.integers(0, 2**16, (8, 8), dtype=np.uint16)).save(sixteen, "PNG")
    return {
        "CMYK": png(mode="CMYK", form="JPEG"),
        "palette": png(mode="P"),
        "palette with transparency": png(mode="P", transparency=0),
        "one bit": png(mode="1"),
        "grey with alpha": png(mode="LA"),
        "RGBA": png(mode="RGBA"),
        "16 bits": sixteen.getvalue(),
        "animated": animated.getvalue(),
        "WebP": png(form="WEBP"),
        "BMP": png(form="BMP"),
        "AVIF": png(form="AVIF"),
        "HEIC": png(form="HEIF"),
        "TIFF": png(form="TIFF"),
        "float TIFF": png(mode="F", form="TIFF"),
    }


@pytest.mark.parametrize(("kind", "content"), kinds_of_image().items(), ids=kinds_of_image())
def test_every_usual_kind_of_image_is_read_with_the_hash_of_its_file(tmp_path, kind, content):
    (tmp_path / "a.png").write_bytes(content)
    picture = load("a.png", Roots((str(tmp_path),)))
    assert picture.image.size == (8, 8)
    assert picture.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_an_image_as_phones_write_it_has_its_pixels_and_its_limit(tmp_path, form):
    half = Image.new("RGB", (64, 32), (250, 5, 5))
    half.paste((5, 5, 250), (0, 0, 32, 32))
    half.save(tmp_path / "a.heic", form, quality=95)
    read = load("a.heic", Roots((str(tmp_path),))).image
    assert np.abs(np.asarray(read)[16, [8, 56]].astype(int) - [[5, 5, 250], [250, 5, 5]]).max() < 20
    with pytest.raises(ImageError, match="64 x 32 pixels are more than the 1,000 allowed"):
        load("a.heic", Roots((str(tmp_path),), max_pixels=1000))


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
@given(data=st.data())
def test_such_an_image_with_any_bytes_changed_is_read_or_one_line(tmp_path_factory, form, data):
    content = bytearray(png(size=(16, 16), form=form))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("any")
    (folder / "a").write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        assert load("a", Roots((str(folder),))).image.width
    except ImageError as error:
        said = str(error)
    else:
        said = "a: "
    assert said.startswith("a: ") and is_safe_line(said)


def test_without_the_extra_a_heic_image_is_refused_with_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "FORMATS", [form for form in images.FORMATS if form != "HEIF"])
    monkeypatch.setattr(images, "HEIC", images.HEIC_NEEDS)
    (tmp_path / "a.heic").write_bytes(png(form="HEIF"))
    with pytest.raises(ImageError, match=r"need `pip install 'promptmill\[heic\]'`"):
        load("a.heic", Roots((str(tmp_path),)))


def test_an_animated_image_is_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = load("a.gif", Roots((str(tmp_path),))).image
    assert image.convert("RGB").getpixel((3, 3)) == (255, 0, 0) and getattr(image, "n_frames", 1) == 1


def test_a_file_beyond_the_allowed_bytes_is_refused_before_it_is_read_whole(tmp_path):
    (tmp_path / "a.png").write_bytes(png() + bytes(1000))
    assert load("a.png", Roots((str(tmp_path),)))
    with pytest.raises(ImageError, match=r"a\.png: larger than 500 bytes"):
        load("a.png", Roots((str(tmp_path),), max_bytes=500))


@pytest.fixture
def tar(tmp_path):
    place = tmp_path / "images.tar"
    with tarfile.open(place, "w") as tar:
        for i in range(40):
            add(tar, f"folder/{i:03d}{'-long' * (30 if i % 2 else 0)}.png", png(value=i))
        add(tar, "twice.png", png(value=1))
        add(tar, "twice.png", png(value=2))
        tar.addfile(tarfile.TarInfo("folder.png/"))
    return place


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_any_member_of_a_tar_is_read_by_its_name(tmp_path, tar):
    roots = Roots((str(tmp_path),))
    for i in range(40):
        picture = load(f"images.tar::folder/{i:03d}{'-long' * (30 if i % 2 else 0)}.png", roots)
        assert picture.image.getpixel((0, 0))[0] == i
    # As tar has it, the last of a name is the one.
    assert load("images.tar::twice.png", roots).image.getpixel((0, 0))[0] == 2
    with pytest.raises(ImageError, match=r"images\.tar::gone\.png: cannot be read: no member gone\.png"):
        load("images.tar::gone.png", roots)


def test_a_tar_is_gone_through_once_for_all_of_its_members_and_again_when_it_changes(tmp_path, tar, monkeypatch):
    from promptmill.manifests import tars

    calls = []
    through = tars._members
    monkeypatch.setattr(tars, "_members", lambda opened: calls.append(opened) or through(opened))
    roots = Roots((str(tmp_path),))
    for i in range(0, 40, 2):
        load(f"images.tar::folder/{i:03d}.png", roots)
    assert len(calls) == 1
    with tarfile.open(tar, "w") as smaller:
        add(smaller, "only.png", png(value=7))
    assert load("images.tar::only.png", roots).image.getpixel((0, 0))[0] == 7
    assert len(calls) == 2


def test_a_compressed_tar_is_not_gone_through_for_every_image(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add(tar, "a.png", png())
    with pytest.raises(ImageError, match="cannot be reached one by one; uncompress it"):
        load("a.tar.gz::a.png", Roots((str(tmp_path),)))


def test_a_tar_in_remote_storage_gives_its_members(tar):
    import fsspec

    fsspec.filesystem("memory").pipe("/images/a.tar", tar.read_bytes())
    roots = roots_of(["memory://images/rows.jsonl"], (), 10**6)
    assert load("a.tar::folder/004.png", roots).image.getpixel((0, 0))[0] == 4


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A web server for a folder, on this machine, whose address counts as public."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = HTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(urls, "is_public", lambda address: True)
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_image_of_an_allowed_host_is_read_as_one_of_a_root(tmp_path, host):
    (tmp_path / "a.png").write_bytes(png())
    assert load(f"http://{host}/a.png", Roots((), hosts=(host,))) == load(f"http://{host}/a.png", Roots((), hosts=(host,)))
    assert load(f"http://{host}/a.png", Roots((), hosts=(host,))).sha256 == hashlib.sha256(png()).hexdigest()


@pytest.mark.parametrize(
    ("url", "hosts", "says"),
    [
        (
            "http://{host}/a.png",
            (),
            "URLs are not fetched; download it beside the manifest, or allow its host in runtime.url_hosts",
        ),
        ("http://{host}/a.png", ("example.com",), "{host} is none of runtime.url_hosts"),
        ("http://{host}/gone.png", ("{host}",), "cannot be read: answers 404 Not Found"),
        ("ftp://{host}/a.png", ("{host}",), "not a URL of http or https"),
        ("data:image/png;base64,AAAA", ("{host}",), "not a URL of http or https"),
    ],
)
def test_a_url_that_gives_no_image_says_why(host, url, hosts, says):
    hosts = tuple(name.format(host=host) for name in hosts)
    with pytest.raises(ImageError) as caught:
        load(url.format(host=host), Roots((), hosts=hosts))
    assert says.format(host=host) in str(caught.value) and url.format(host=host)[:20] in str(caught.value)


def test_a_host_that_fails_leaves_an_image_unreachable_and_one_that_has_none_does_not(host):
    for failing, kind in ((f"http://{host}/gone.png", ImageError), ("http://127.0.0.1:1/a.png", UnreachableError)):
        with pytest.raises(ImageError) as caught:
            load(failing, Roots((), hosts=(host, "127.0.0.1:1")))
        assert type(caught.value) is kind


def test_a_remote_storage_that_cannot_be_reached_is_not_taken_for_one_without_the_image(monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()  # one that another test made knows another endpoint
    try:
        with pytest.raises(UnreachableError) as caught:
            load("a.png", Roots(("s3://bucket/folder",)))
        assert str(caught.value) == "a.png: cannot be reached: EndpointConnectionError"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_declared_roots_are_the_same_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    roots = roots_of([str(tmp_path / "sub" / "rows.jsonl")], ["images"], 10**6)
    monkeypatch.chdir("/")
    assert load("a.png", roots).image.size == (8, 8)


def rows_of(tmp_path, *rows):
    import json

    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": "x", **row}) for row in rows))
    return [str(tmp_path / "rows.jsonl")]


def test_a_checked_row_has_the_hash_of_each_of_its_images(tmp_path):
    contents = {name: png(value=i) for i, name in enumerate(("a.png", "mask.png", "c.png", "d.png"))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    controls = [{"type": "canny", "image": "c.png"}, {"type": "canny", "image": "d.png"}]
    files = rows_of(tmp_path, {"init_image": "a.png", "mask_image": "mask.png", "controls": controls}, {})
    full, plain = check_rows(files, RULES, roots_of(files, (), 10**6))
    columns = {"init_image": "a.png", "mask_image": "mask.png", "controls.0.image": "c.png", "controls.1.image": "d.png"}
    assert full.images == {column: hashlib.sha256(contents[name]).hexdigest() for column, name in columns.items()}
    assert plain.images == {}
    assert [checked.images for checked in check_rows(files, RULES)] == [{}, {}]


def test_an_image_that_many_rows_share_is_read_once(tmp_path, monkeypatch):
    (tmp_path / "map.png").write_bytes(png())
    read = []
    monkeypatch.setattr(checking, "load", lambda path, *rest: read.append(path) or images.load(path, *rest))
    files = rows_of(tmp_path, *[{"controls": [{"type": "canny", "image": "map.png"}]}] * 50)
    checked = list(check_rows(files, RULES, roots_of(files, (), 10**6)))
    assert read == ["map.png"]
    assert {c.images["controls.0.image"] for c in checked} == {hashlib.sha256(png()).hexdigest()}


def test_images_are_looked_at_up_to_a_number_and_then_left_to_the_run(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(value=i))
    files = rows_of(tmp_path, *({"init_image": f"{i // 2}.png"} for i in range(10)), {"init_image": "gone.png"})
    roots = roots_of(files, (), 10**6)
    for most in (0, 1, 3):
        looked_at = [bool(checked.images) for checked in check_rows(files, RULES, roots, max_images=most)]
        assert looked_at == [i < max(0, 2 * most - 1) for i in range(11)]
    assert list(check_rows(files, RULES, roots))[-1].problems


def test_a_row_lists_what_is_wrong_with_each_of_its_images(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    files = rows_of(tmp_path, {"init_image": "a.png"})
    (checked,) = check_rows(files, RULES)
    from dataclasses import replace

    request = replace(checked.request, mask_image="b.png", controls=(Control(type="canny", image="c.png"),))
    found = check_images(request, lambda path, mask=None: look(path, 0, roots_of(files, (), 10**6), mask))
    assert [problem.split(":")[0] for problem in found.problems] == ["mask_image", "controls.0.image"]
    assert found.final
    assert found.sha256["init_image"] == hashlib.sha256(png()).hexdigest()
