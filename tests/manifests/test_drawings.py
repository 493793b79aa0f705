"""SVG drawings as images of a row: drawn crisp at the size that is wanted, and refused where they would harm or differ."""

import json
import signal
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.parameters import Control, Defaults
from promptmill.manifests import drawing_process
from promptmill.manifests.checking import check_images, check_rows, look
from promptmill.manifests.drawings import DrawingError, draw, is_drawing
from promptmill.manifests.images import ImageError, Roots, is_image, load
from promptmill.manifests.rules import Rules
from promptmill.pipelines.rendering.preparing import Conditioning, prepare_request
from promptmill.pipelines.work.units import Placed
from tests.pipelines.plain import request

NAMESPACE = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
HALVES = '<rect width="50" height="100" fill="#ff0000"/><rect x="50" width="50" height="100" fill="#0000ff"/>'


def svg(inner=HALVES, size='viewBox="0 0 100 100"', more=""):
    return f"<svg {NAMESPACE} {size} {more}>{inner}</svg>"


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_drawing_covers_any_size_in_one_direction_exactly_and_keeps_its_aspect(across, down):
    width, height = 8 * across, 8 * down
    made = draw(svg(size='viewBox="0 0 200 100"').encode(), 10**7, (width, height))
    assert made.mode == "RGBA" and (made.width == width or made.height == height)
    assert made.width >= width - 1 and made.height >= height - 1
    assert made.width / 2 == pytest.approx(made.height, abs=1)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ('width="30" height="20"', (30, 20)),
        ('width="30px" height="20px" viewBox="0 0 3 2"', (30, 20)),
        ('viewBox="0 0 30 20"', (30, 20)),
        ('width="100%" height="100%" viewBox="0,0,30,20"', (30, 20)),
        ('viewBox="0 0 8 8"', (8, 8)),
        ('viewBox="0 0 1.5 1"', (768, 512)),
    ],
)
def test_a_drawing_is_as_large_as_it_says(size, wanted):
    assert draw(svg(size=size).encode(), 10**6).size == wanted


@pytest.mark.parametrize("begin", ["", '<?xml version="1.0" encoding="UTF-8"?>\n', "<!-- by hand -->\n", "\ufeff", "\n  "])
def test_a_drawing_is_known_by_its_beginning_in_a_file_and_in_a_row(tmp_path, begin):
    (tmp_path / "plan.svg").write_text(begin + svg())
    assert is_drawing((begin + svg()).encode())
    named = load("plan.svg", Roots((str(tmp_path),)))
    assert named.image.getpixel((10, 10)) == (255, 0, 0, 255)
    if begin != "\ufeff":
        held = load(begin + svg(), Roots(()))
        assert held.image == named.image and held.sha256 == named.sha256


def test_a_map_is_drawn_at_the_size_of_the_images_so_that_no_edge_is_blurred(tmp_path):
    held = request(mode="controlnet", controls=(Control(type="seg", image=svg(size='width="7" height="7" viewBox="0 0 100 100"')),))
    made = prepare_request(Placed(0, held), Roots((str(tmp_path),)))
    assert isinstance(made, Conditioning)
    colours = np.unique(made.controls[0].reshape(-1, 3), axis=0)
    assert colours.tolist() == [[0, 0, 255], [255, 0, 0]]


def test_rows_hold_drawings_and_broken_ones_make_bad_rows(tmp_path):
    rules = Rules(Defaults(width=64, height=64), controls=("seg",))
    (tmp_path / "m.csv").write_text(
        "prompt,control_type,control_image\n"
        + "".join(f'a dog,seg,"{one}"\n' for one in (svg().replace('"', '""'), "<svg>", svg("<script/>").replace('"', '""')))
    )
    good, *bad = check_rows([str(tmp_path / "m.csv")], rules)
    roots = Roots((str(tmp_path),))
    assert not check_images(good.request, lambda path, mask=None: look(path, 0, roots, mask=mask)).problems
    said = ["\n".join(check_images(one.request, lambda path, mask=None: look(path, 0, roots, mask=mask)).problems) for one in bad]
    assert "says no size" in said[0] or "is no SVG" in said[0]
    assert "has an element script: scripts are not run" in said[1]


LAUGHS = "".join(f'<g id="a{n + 1}"><use href="#a{n}"/><use href="#a{n}"/></g>' for n in range(30))
BAD = {
    "entities": (f'<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>{svg()}', "has a DOCTYPE"),
    "script": (svg("<script>alert(1)</script>"), "has an element script"),
    "handler": (svg(HALVES, more='onload="alert(1)"'), "has an attribute onload"),
    "page": (svg("<foreignObject/>"), "has an element foreignObject"),
    "file": (svg('<image href="file:///etc/passwd"/>'), "has an element image"),
    "other file": (svg('<use href="other.svg#a"/>'), "names other.svg#a"),
    "old link": (svg('<use xlink:href="http://host/a"/>'), "names http://host/a"),
    "paint": (svg('<rect fill="url(http://host/a)" width="1" height="1"/>'), "names http://host/a"),
    "quoted paint": (svg("<rect style=\"fill: url( 'http://host/a')\" width='1' height='1'/>"), "names http://host/a"),
    "style": (svg("<style>@import 'http://host/a.css'</style>"), "has @import in its style"),
    "painted style": (svg("<style>rect { fill: url(#a) }</style>"), "has url( in its style"),
    "laughs": (svg(f'<rect id="a0" width="1" height="1"/>{LAUGHS}<use href="#a30"/>'), "has more than 20,000 elements"),
    "many": (svg('<rect width="1" height="1"/>' * 20_001), "has more than 20,000 elements"),
    "own": (svg('<g id="a"><use href="#a"/></g>'), "refers to itself"),
    "each other": (svg('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>'), "refers to itself"),
    "deep": (svg("<g>" * 70 + "</g>" * 70), "has more than 64 elements in one another"),
    "text": (svg("<text>hello</text>"), "text needs fonts"),
    "filter": (svg("<filter/>"), "filters are not drawn"),
    "filter function": (svg('<rect width="9" height="9" filter="blur(2)"/>'), "filters are not drawn"),
    "filter in a style": (svg('<rect width="9" height="9" style="fill:red;filter: blur(2px)"/>'), "filters are not drawn"),
    "filter in styles": (svg("<style>rect { filter: blur(2px) }</style><rect/>"), "filters are not drawn"),
    "moving": (svg("<animateTransform/>"), "what moves is not drawn"),
    "large": (svg(size='width="99999" height="99999"'), "99,999 x 99,999 pixels are more than the 1,000,000 allowed"),
    "endless": (svg(size='width="1e300" height="1"'), "has a size of 1e+300 x 1"),
    "sizeless": (svg(size=""), "says no size"),
    "relative": (svg(size='width="100%" height="50%"'), "says no size"),
    "flat": (svg(size='width="0" height="5"'), "has a size of 0 x 5"),
    "torn": (svg()[:-5], "is no SVG: "),
    "other": ("<!-- a --><html></html>", "is no SVG: begins with html"),
    "long": (svg("<!--" + "a" * 1_000_000 + "-->"), "a drawing of more than 1,000,000 bytes"),
}


@pytest.mark.parametrize(("drawing", "says"), BAD.values(), ids=BAD)
def test_a_drawing_that_would_harm_or_differ_is_refused_in_one_line(tmp_path, drawing, says):
    (tmp_path / "a.svg").write_text(drawing)
    with pytest.raises(ImageError) as raised:
        load("a.svg", Roots((str(tmp_path),), max_pixels=1_000_000))
    assert str(raised.value).startswith("a.svg: ") and says in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_a_drawing_in_another_encoding_cannot_hide_what_it_holds():
    hidden = b'<?xml version="1.0" encoding="cp037"?>' + svg("<script/>").encode()
    with pytest.raises(DrawingError, match="script"):
        draw(hidden, 10**6)
    with pytest.raises(DrawingError, match="not UTF-8"):
        draw(svg().encode("utf-16"), 10**6)


@given(st.binary(max_size=30), st.integers(0, len(svg()) - 1), st.integers(0, 5))
def test_any_bytes_in_a_drawing_make_a_picture_or_one_line(piece, at, gone):
    content = svg().encode()
    said = "one line"
    try:
        assert draw(content[:at] + piece + content[at + gone :], 10**6).width
    except DrawingError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


SCALED = '<pattern id="a" width="1" height="1" patternUnits="userSpaceOnUse" patternTransform="scale(1e5)">{}</pattern>{}'
ENDING = {
    "memory": svg(SCALED.format(HALVES, '<rect width="100" height="100" fill="url(#a)"/>')),
    "dashes": svg('<g stroke="red" stroke-dasharray="0.01 0.01">' + '<path d="M0 0 L9999 9999"/>' * 10_000 + "</g>"),
    "layers": svg('<g opacity="0.9">' * 60 + HALVES + "</g>" * 60, 'width="8000" height="8000" viewBox="0 0 100 100"'),
}


@pytest.mark.parametrize(
    ("drawing", "says"), zip(ENDING.values(), ("in 4 GiB", "more than 0 s", "in 4 GiB"), strict=True), ids=ENDING
)
def test_a_drawing_that_would_end_its_process_makes_one_line_and_the_next_is_drawn(monkeypatch, drawing, says):
    monkeypatch.setattr(drawing_process, "MOST_SECONDS", 0)
    before = draw(svg().encode(), 10**6)
    with pytest.raises(DrawingError, match=says) as raised:
        draw(drawing.encode(), 64_000_000)
    assert len(str(raised.value).splitlines()) == 1
    assert draw(svg().encode(), 10**6) == before


def test_a_size_full_of_spaces_is_read_at_once():
    began = time.process_time()
    with pytest.raises(DrawingError, match="says no size"):
        draw(svg(size=f'width="1{" " * 50_000}x" height="1"').encode(), 10**6)
    assert time.process_time() - began < 1


def test_a_drawing_that_a_plan_takes_is_drawn_at_any_size_of_a_row_however_narrow_it_is():
    narrow = svg(size='width="1" height="9000" viewBox="0 0 100 100"').encode()
    assert draw(narrow, 10**6).size == (1, 9000)
    made = draw(narrow, 10**6, (512, 512))
    assert made.width * made.height <= 1.1e6 and made.height > 9000


def test_a_filter_of_none_is_no_filter():
    held = svg('<rect width="100" height="100" style="filter: none" filter="none" fill="#ff0000"/>')
    assert draw(held.encode(), 10**6).getpixel((50, 50)) == (255, 0, 0, 255)


def test_drawings_in_rows_are_not_kept_once_their_rows_are_checked(tmp_path):
    rules, where = Rules(Defaults(width=64, height=64), controls=("seg",)), tmp_path / "m.jsonl"
    long = [svg(f"<!--{number}{'a' * 90_000}-->{HALVES}") for number in range(30)]
    where.write_text("".join(json.dumps({"prompt": "a", "controls": [{"type": "seg", "image": one}]}) + "\n" for one in long))
    del long
    checks = check_rows([str(where)], rules, Roots((str(tmp_path),)))
    assert not next(checks).problems
    tracemalloc.start()
    try:
        assert sum(not one.problems for one in checks) == 29
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("other", ['<?xml version="1.0"?><settings><password>x</password></settings>', "<!-- a page --><html/>"])
def test_other_xml_is_no_image_though_it_begins_as_drawings_may(tmp_path, other):
    (tmp_path / "a.xml").write_text(other)
    (tmp_path / "b.svg").write_text('<?xml version="1.0"?>' + svg())
    assert not is_image(tmp_path / "a.xml") and is_image(tmp_path / "b.svg")


def test_a_process_that_somebody_ends_is_started_anew_and_the_drawing_is_not_at_fault():
    before = draw(svg().encode(), 10**6)
    _, process = drawing_process._running
    process.kill()
    assert draw(svg().encode(), 10**6) == before
    assert drawing_process._running[1].pid != process.pid
    process = drawing_process._running[1]
    process.send_signal(signal.SIGSTOP)  # so that it is ended while the next drawing waits for it
    ending = threading.Timer(0.3, process.kill)
    ending.start()
    assert draw(svg().encode(), 10**6) == before
    ending.join()


def test_an_interrupted_drawing_leaves_no_answer_for_the_next_one(monkeypatch):
    before = draw(svg().encode(), 10**6)
    process = drawing_process._running[1]

    def interrupted(size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(process, "stdout", SimpleNamespace(read=interrupted, close=process.stdout.close))
        with pytest.raises(KeyboardInterrupt):
            draw(svg("<rect/>").encode(), 10**6)
    assert draw(svg().encode(), 10**6) == before


def test_an_init_image_and_a_mask_in_shares_of_the_picture_are_no_single_pixels(tmp_path):
    half = svg('<rect width="1" height="1"/><rect width="0.5" height="1" fill="#fff"/>', 'viewBox="0 0 1 1"')
    held = request(mode="inpaint", init_image=half, mask_image=half, strength=0.5)
    made = prepare_request(Placed(0, held), Roots((str(tmp_path),)))
    assert isinstance(made, Conditioning)
    assert made.mask.mean() == 0.5 and sorted(np.unique(made.init))[:: len(np.unique(made.init)) - 1] == [0, 255]


BOX, SIDES = "viewBox='0 0 {0} {1}'", "width='{0}' height='{1}'"


@pytest.mark.parametrize(("across", "down"), [(1.5, 1), (1, 0.5), (0.75, 1), (100, 67), (300, 200.4)])
@pytest.mark.parametrize(
    "size", ["viewBox='0 0 {0} {1}'", "width='{0}' height='{1}'", "width='{0}' height='{1}' viewBox='0 0 {0} {1}'"]
)
def test_a_drawing_of_any_units_lies_where_it_says_in_a_map(tmp_path, across, down, size):
    width, height = 512, 8 * round(64 * down / across)
    ground = f'<rect width="{across}" height="{down}" fill="#0000ff"/>'
    inner = f'{ground}<rect x="{0.75 * across}" y="{0.5 * down}" width="{across}" height="{down}" fill="#ff0000"/>'
    held = svg(inner, size.format(across, down), 'shape-rendering="crispEdges"')
    made = prepare_request(
        Placed(0, request(mode="controlnet", width=width, height=height, controls=(Control(type="seg", image=held),))),
        Roots((str(tmp_path),)),
    )
    assert isinstance(made, Conditioning)
    red = np.all(made.controls[0] == [255, 0, 0], axis=-1)
    assert np.all(red | np.all(made.controls[0] == [0, 0, 255], axis=-1))
    rows, columns = np.nonzero(red)
    assert abs(columns.min() - 384) <= 2 and columns.max() == 511
    assert abs(rows.min() - height / 2) <= 2 and rows.max() == height - 1


@pytest.mark.parametrize(("side", "seconds"), [(100, 10), (8000, 138)])
def test_a_larger_picture_may_take_longer_to_draw(monkeypatch, side, seconds):
    monkeypatch.setattr(drawing_process, "_answer", lambda question: -signal.SIGXCPU)
    with pytest.raises(DrawingError, match=f"more than {seconds} s to draw at this size"):
        draw(svg().encode(), 64_000_000, (side, side))
