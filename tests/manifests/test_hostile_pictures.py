"""That no picture of a stranger does harm: metadata of any size, depth and damage are bounded, and end in a line."""

import io
import json
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.configs.parameters import Defaults
from promptmill.manifests.comfyui_graphs import MOST_NODES
from promptmill.manifests.picture_parameters import described
from promptmill.manifests.picture_rows import values_of
from promptmill.manifests.picture_texts import MOST_TEXT, UnreadError, read_texts
from tests.manifests.pictures import COMFYUI, INVOKEAI, chunk, of_each_tool, picture, png_of

FILES = of_each_tool()


HUGE = {
    "a text that claims a gigabyte": png_of(struct.pack(">I4s", 10**9, b"tEXt") + b"parameters\0"),
    "a compressed text of a gigabyte": png_of(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(64 * 2**20)))),
    "a compressed international text": png_of(chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(bytes(64 * 2**20)))),
    "many texts": png_of(*[chunk(b"tEXt", b"a%d\0" % n + bytes(2**20)) for n in range(10)]),
    "a chunk of WebP that claims gigabytes": b"RIFF\xff\xff\xff\xffWEBPEXIF" + struct.pack("<I", 2**32 - 1) + b"MM",
    "a directory of EXIF whose entries are all of it": b"RIFF\xff\xff\xff\xffWEBPEXIF"
    + struct.pack("<I", 2**20)
    + b"MM\0*\0\0\0\x08"
    + struct.pack(">H", 900)
    + struct.pack(">HHII", 0x010E, 2, 2**19, 8) * 900
    + bytes(2**20 - 10 - 900 * 12),
}


@pytest.mark.parametrize("name", HUGE)
def test_metadata_beyond_the_bound_are_refused_before_they_are_held(name):
    stream = io.BytesIO(HUGE[name])
    tracemalloc.start()
    try:
        with pytest.raises(UnreadError, match=f"more than {MOST_TEXT // 2**20} MiB of metadata|damaged or cut off"):
            read_texts(stream)
        assert tracemalloc.get_traced_memory()[1] < 4 * MOST_TEXT
    finally:
        tracemalloc.stop()


DAMAGED = {
    "no picture": b"hello, this is text",
    "nothing": b"",
    "a PNG of its first bytes": FILES["a1111.png"][:100],
    "a broken compressed text": png_of(chunk(b"zTXt", b"parameters\0\0xyz")),
    "an international text without its parts": png_of(chunk(b"iTXt", b"parameters\0\1")),
    "a JPEG that ends in a segment": FILES["a1111.jpg"][:60],
    "a PNG without an end": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_picture_is_said_in_a_line(name):
    with pytest.raises(UnreadError) as raised:
        described(read_texts(io.BytesIO(DAMAGED[name])).texts)
    assert "\n" not in str(raised.value)


NESTED = "[" * 50_000 + "]" * 50_000
CHAIN = {str(n): {"class_type": "x", "inputs": {"model": [str(n + 1), 0], "text": 1}} for n in range(1900)}
HOSTILE = {
    "JSON that nests": {"prompt": '{"3": ' + NESTED + "}"},
    "JSON of InvokeAI that nests": {"invokeai_metadata": NESTED},
    "JSON that is a list": {"prompt": "[]"},
    "nodes that are none": {"prompt": '{"3": 4}'},
    "inputs that are none": {"prompt": '{"3": {"inputs": [1, 2], "class_type": 7}}'},
    "a graph of too many nodes": {"prompt": json.dumps({str(n): {"inputs": {}} for n in range(MOST_NODES + 1)})},
    "a model that is a number": {"invokeai_metadata": json.dumps({**INVOKEAI, "model": 7})},
    "half a character": {"prompt": '{"3": "\\ud800"}'},
    "millions of values": {"sd-metadata": "[" + "[]," * 10**6 + "1]"},
    "millions of values of a graph": {"prompt": '{"3": [' + "1," * 10**6 + "1]}"},
    "no values": {"Comment": "null", "Description": "", "Source": ""},
    "numbers that are none": {"sd-metadata": '{"image": {"sampler": 1, "prompt": 3}}'},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_texts_of_a_stranger_make_one_line_of_error(name):
    with pytest.raises(UnreadError) as raised:
        described(HOSTILE[name])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_a_long_chain_of_nodes_is_walked_or_given_up():
    sampler = {"class_type": "KSampler", "inputs": {**COMFYUI["3"]["inputs"], "model": ["0", 0], "positive": ["0", 0]}}
    found = described({"prompt": json.dumps({"s": sampler, **CHAIN})})
    assert found.values["seed"] == 156680208 and found.values["prompt"] == ""


LONG = ("a" * 2**20, "a:" * 2**19, ": , " * 2**18, '"' * 2**20, "Steps: 1, " * 10**5, "x" * 2**20 + ": 1")


@pytest.mark.parametrize("text", LONG, ids=[text[:5] for text in LONG])
def test_a_long_text_of_parameters_takes_time_by_its_length_alone(text):
    # By the square of the length, it would take longer than any test may.
    found = described({"parameters": f"a\nSteps: 20, Sampler: Euler, {text}"})
    assert found.values["prompt"] == "a" and found.values["steps"] in (1, 20)


MORE_LONG = {
    "the name of a model": {"Comment": '{"sampler": "a"}', "Description": "x", "Source": "A" * 10**5 + " " * 10**5},
    "spaces between options": {"Dream": '"a"' + " " * 10**6 + "x -s 3 -A k_lms"},
    "brackets of a prompt": {"Dream": f'"{"[" * 10**6}" -s 3 -A k_lms'},
    "options": {"Description": "a" + " --ar 1" * 10**5},
    "a graph in which all lead to all": {
        "prompt": json.dumps(
            {
                "s": {"class_type": "KSampler", "inputs": {**COMFYUI["3"]["inputs"], "positive": ["0", 0]}},
                **{str(n): {"class_type": "x", "inputs": {str(k): [str((n + k) % 500), 0] for k in range(20)}} for n in range(500)},
            }
        )
    },
}


@pytest.mark.parametrize("name", MORE_LONG)
def test_long_texts_of_other_tools_take_time_by_their_length_alone(name):
    # As above; the sum of the parts that are kept is bounded, too.
    assert sum(map(len, described(MORE_LONG[name]).unread.values())) < 200_000


def test_xmp_with_declarations_or_deep_elements_is_passed_over():
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'
    for packet in (bomb, "<a>" * 5000 + "</a>" * 5000, "<a", ""):
        file = io.BytesIO()
        picture().save(file, "JPEG", xmp=packet.encode())
        assert read_texts(io.BytesIO(file.getvalue())).texts == {}


def test_xmp_of_very_many_elements_is_passed_over_and_not_held():
    own = '<b xmlns:promptmill="https://promptmill.dev/ns/1.0/"/>'
    content = png_of(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x>" + b"<a/>" * 10**6 + own.encode() + b"</x>"))
    tracemalloc.start()
    try:
        assert read_texts(io.BytesIO(content)).texts == {}
        assert tracemalloc.get_traced_memory()[1] < 80 * 2**20  # all of them would take 100 MiB
    finally:
        tracemalloc.stop()


def said_of(content):
    """The columns that a picture's row has, or the line that says why there is none."""
    try:
        return set(values_of("a", read_texts(io.BytesIO(content)), "render", ())[0])
    except UnreadError as error:
        return str(error)


CHANGES = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6)
ROW = {*Defaults.model_fields, "id", "seed", "variation_seed", "variation_strength", "picture_tool", "picture_unread"}


@given(st.sampled_from(sorted(FILES)), CHANGES, st.integers(20, 4000))
@settings(max_examples=150, deadline=None)
def test_a_picture_with_any_bytes_changed_is_read_or_said_in_a_line(name, changes, end):
    content = bytearray(FILES[name])
    for place, byte in changes:
        content[place % len(content)] = byte
    said = said_of(bytes(content[:end]))
    assert said <= ROW if isinstance(said, set) else "\n" not in said
