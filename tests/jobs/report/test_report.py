import base64
import hashlib
import html.parser
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.figures.reading import SHOWN, digest
from promptmill.jobs.report.facts import facts_of
from promptmill.jobs.report.making import MEMBERS, make
from promptmill.jobs.report.page import page
from promptmill.jobs.report.pictures import LARGEST, LONGEST, thumbnail
from promptmill.shards.image_files import encode_image
from promptmill.shards.image_reader import read_picture
from promptmill.shards.storage import get, join, names, put
from promptmill.shards.tables import make_table
from tests.forge.forging import with_rows
from tests.forge.hostile import with_image
from tests.forge.pictures import EPS
from tests.jobs.datasets import planned_dataset
from tests.jobs.finished import FIRST
from tests.shards.made import FORM, candidate, provenance, refused

HOSTILE = """</title></script><script>alert("1")</script>' onerror='x' "><img src=//evil.example/x> {{ 7*7 }} `x` $(x) \u202e"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Three shards of seven kept images each; in the second half of the candidates failed, and none is kept."""
    folder = tmp_path_factory.mktemp("clean")
    planned_dataset(folder)
    return folder / "out"


@pytest.fixture
def output(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "it's $(not) <b>here</b>")


class Parsed(html.parser.HTMLParser):
    """The elements of a page, and the text of some."""

    def __init__(self, content):
        super().__init__()
        self.elements, self.texts, self.inside = [], {"code": [], "script": [], "style": [], "p": []}, []
        self.feed(content.decode())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in self.texts:
            self.inside.append(tag)
            self.texts[tag].append("")

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if self.inside:
            self.texts[self.inside[-1]][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def parsed(output, **options):
    return Parsed(page(make(str(output), **options)))


def invoke(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


row = st.tuples(
    st.sampled_from(["kept", "rejected", "failed"]), st.integers(0, 40), st.sampled_from(["txt2img", "inpaint"]), st.integers(0, 30)
)


@settings(max_examples=40)
@given(st.lists(st.lists(st.lists(row, min_size=1, max_size=3), min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_numbers_are_those_of_plain_loops_over_the_rows(shards):
    digests, rows = [], []
    for shard, requests in enumerate(shards):
        some = [refused(shard, len(requests))]
        for number, candidates in enumerate(requests):
            for index, (status, score, _, _) in enumerate(candidates):
                made = candidate(shard, number, index, status)
                made.pop("image", None)
                # What a request is is the same in all of its candidates.
                made |= {"mode": candidates[0][2], "prompt": "x" * candidates[0][3]}
                made |= {} if status == "failed" else {"clip_score": float(score)}
                some.append(made)
        rows += some
        digests.append(digest(make_table(some, FORM), None, SHOWN))
    facts = facts_of(digests)
    scored = [row for row in rows if row.get("clip_score") is not None]
    assert facts.requests == sum(len(requests) + 1 for requests in shards)
    assert {code: sum(numbers) for code, numbers in facts.errors.items()} == Counter(r["error"] for r in rows if r.get("error"))
    assert facts.failed and set(facts.failed) <= {r["key"] for r in rows if r["status"] == "failed"}
    if not scored:
        assert facts.scores is None and facts.histogram is None and facts.modes == [] and facts.bought is None
        return
    for groups, column in ((facts.modes, "mode"), ([facts.scores], None)):
        for group in groups:
            some = [r for r in scored if column is None or r[column] == group.name]
            kept = [r["clip_score"] for r in some if r["selected"]]
            assert group.all.count == len(some) and group.all.mean == pytest.approx(np.mean([r["clip_score"] for r in some]))
            assert group.requests == len({r["id"] for r in some})
            assert (group.kept.count, group.kept.mean) == (len(kept), pytest.approx(np.mean(kept))) if kept else group.kept is None
    assert {group.name for group in facts.modes} == {r["mode"] for r in scored}
    lengths = {}
    for group in facts.lengths:
        low, high = (int(end) for end in (group.name.split("–") * 2)[:2])
        some = [r for r in scored if low <= len(r["prompt"]) <= high]
        assert group.all.count == len(some) and min(len(r["prompt"]) for r in some) == low
        lengths |= {r["key"]: group.name for r in some}
    assert len(lengths) == len(scored) == sum(group.all.count for group in facts.lengths)
    assert (sum(facts.histogram.all), sum(facts.histogram.kept)) == (len(scored), sum(r["selected"] for r in scored))
    kept = sorted((r["clip_score"], r["key"]) for r in scored if r["selected"])
    assert [*facts.worst] == [key for _, key in kept][:SHOWN]
    assert [*facts.best] == [key for _, key in sorted((-score, key) for score, key in kept)][:SHOWN]


def test_of_many_kept_images_the_best_and_the_worst_are_shown_and_lengths_are_binned_evenly():
    rows = [candidate(0, number, 0, "kept") for number in range(80)]
    for number, row in enumerate(rows):
        row.pop("image")
        row |= {"clip_score": float(number * 37 % 80), "prompt": "x" * number}
    facts = facts_of([digest(make_table(rows, FORM), None, SHOWN)])
    by_score = [row["key"] for row in sorted(rows, key=lambda row: row["clip_score"])]
    assert [*facts.worst] == by_score[:SHOWN] and [*facts.best] == by_score[: -SHOWN - 1 : -1]
    assert len(facts.lengths) == 8 and all(9 <= group.requests <= 11 for group in facts.lengths)
    assert len(facts.across) == SHOWN and list(facts.across) == sorted(facts.across)


def test_no_image_is_among_the_best_and_the_worst(clean):
    # All of its scores are equal.
    facts = make(str(clean)).facts
    assert len(facts.best) == len(facts.worst) == 7 and not set(facts.best) & set(facts.worst)


def test_the_same_dataset_makes_the_same_page(clean):
    assert page(make(str(clean))) == page(make(str(clean)))


def test_every_command_is_one_that_a_shell_takes_apart_as_it_was_meant(output):
    found = parsed(output)
    commands = [
        text
        for text, attributes in zip(found.texts["code"], found.all("code"), strict=True)
        if attributes.get("class") == "command"
    ]
    keys = {
        key for name in names(join(str(output), "metadata")) for key in pq.read_table(output / "metadata" / name)["key"].to_pylist()
    }
    taken = [shlex.split(command) for command in commands]
    assert taken and all(words[:3] == ["promptmill", "regenerate", str(output)] for words in taken)
    assert {words[3] for words in taken} <= keys


def test_what_a_manifest_says_is_text_and_never_markup(output):
    plain = parsed(output)
    said = {"prompt": HOSTILE, "mode": "<i>mode</i>", "error_message": HOSTILE, "scheduler": "<u>euler</u>"}
    with_rows(str(output), lambda row: row | said)
    found = parsed(output)
    shown = [image["alt"] for image in found.all("img")]
    # A tar is not what such rows say, but its images are found by their hashes.
    assert shown.count(HOSTILE.replace("\u202e", "\\u202e")) > 7
    assert not {"u", "b", "image"} & {tag for tag, _ in found.elements} and len(found.all("i")) == len(plain.all("i"))
    assert len(found.all("script")) == 1 and found.texts["script"] == plain.texts["script"]
    allowed = {"src", "alt", "title", "loading", "class", "href", "id", "dir", "type", "lang"}
    assert {name for tag, attributes in found.elements if tag in ("img", "a", "p") for name in attributes} <= allowed


def test_the_page_loads_nothing_and_runs_only_its_own_script(clean):
    found = parsed(clean)
    (policy,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    for tag in ("script", "style"):
        (text,) = found.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert all(image["src"].startswith("data:image/webp;base64,") and image["alt"] for image in found.all("img"))
    assert all(link["href"].startswith("#") for link in found.all("a")) and [link["href"] for link in found.all("link")] == [
        "data:,"
    ]
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert {link["href"][1:] for link in found.all("a")} - {"top"} <= set(ids) and len(ids) == len(set(ids))
    assert not [attributes for _, attributes in found.elements if any(name.startswith(("on", "style")) for name in attributes)]


@pytest.mark.parametrize(("quality", "side"), [(90, 256), (90, 100), (90, 1000)])
def test_a_thumbnail_is_small_whatever_is_in_the_picture(quality, side):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    made = encode_image(noise, "webp", quality, provenance(candidate(0, 0, 0, "failed")))
    uri = thumbnail(read_picture(made, "webp", side, side))
    assert len(base64.b64decode(uri.split(",")[1])) <= LARGEST


def test_prompts_as_long_as_books_do_not_make_a_book(output):
    for number in range(3):
        with_rows(str(output), lambda row: row | {"prompt": "long " * 20_000}, number)
    assert len(page(make(str(output)))) < 14 * 3 * (LARGEST + 5 * LONGEST)


def test_an_image_that_fits_its_tile_is_said_to_be_small_and_a_larger_one_is_not(output):
    assert all(shown.small for shown in make(str(output)).shown.values() if shown.image)
    pixels = np.zeros((150, 300, 3), np.uint8)
    with_image(output, encode_image(pixels, "png", 90, provenance(candidate(0, 0, 0, "failed"))), width=300, height=150)
    shown = make(str(output)).shown
    assert shown[FIRST].image and [key for key, one in shown.items() if one.image and not one.small] == [FIRST]


def test_without_embeddings_an_image_that_is_none_is_a_problem_and_not_compared(output):
    with_image(output, EPS)
    plan = output / "plan" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "embedding": None}))
    made = make(str(output))
    assert (made.near.how, made.near.compared) == ("hash", 13)
    assert made.problems == [f"{FIRST}: its image cannot be decoded", f"{FIRST}: its image is no PNG"]
    assert made.shown[FIRST].image is None and made.shown[FIRST].error == "unreadable"


def test_near_duplicates_are_found_without_embeddings(output):
    plan = output / "plan" / "plan.json"
    by_embedding = make(str(output)).near
    assert by_embedding.how == "embedding" and by_embedding.compared == 14 and by_embedding.groups
    values = json.loads(plan.read_text())
    plan.write_text(json.dumps({**values, "embedding": None}))
    near = make(str(output)).near
    assert (near.how, near.compared, near.groups) == ("hash", 14, 0)
    assert all(len(keys) == min(members, MEMBERS) for keys, members in by_embedding.shown)


def test_a_large_dataset_is_sampled_and_the_page_says_so(clean, monkeypatch):
    monkeypatch.setattr("promptmill.jobs.figures.sampling.FEWEST_SHARDS", 1)
    made = make(str(clean), most=20)
    assert [record.shard for record in made.sample.records] == [1] and not made.sample.whole
    assert made.totals.kept == 14 and not made.shown.keys() - {key for key in made.shown if key.startswith("000001-")}
    (said,) = [text for text in Parsed(page(made)).texts["p"] if "A sample." in text or "1 of 3 shards" in text]
    assert "1 of 3 shards" in said and "16 of 48 candidates" in " ".join(said.split())
    whole = page(make(str(clean)))
    assert b"A sample." not in whole


@pytest.mark.parametrize("committed", [(), (2,)])
def test_of_an_unfinished_dataset_what_is_committed_is_shown(output, tmp_path, committed):
    (output / "_SUCCESS").unlink()
    for number in {0, 1, 2} - set(committed):
        (output / f"commits/{number:06d}.json").unlink()
    result = invoke(output, "--to", tmp_path / "page.html")
    assert result.exit_code == 0
    text = (tmp_path / "page.html").read_text()
    assert f"<strong>Unfinished.</strong> {len(committed)} of 3 shards are committed" in " ".join(text.split())
    # Seven are shown in the look across, three as the best, three as the worst, and some as near-duplicates.
    alike = sum(len(keys) for keys, _ in make(str(output)).near.shown)
    assert len(Parsed(text.encode()).all("img")) == (13 + alike if committed else 0)


@pytest.mark.parametrize(
    ("path", "damage", "says"),
    [
        ("metadata/000000.parquet", lambda content: content[:-9], "metadata/000000.parquet: cannot be read as Parquet"),
        ("metadata/000000.parquet", None, "metadata/000000.parquet: missing"),
        ("data/000000.tar", None, "data/000000.tar: missing"),
        (
            "data/000002.tar",
            lambda content: content.replace(b"IHDR", b"ABCD", 1),
            "data/000002.tar: 000002-00000-0000: missing or altered",
        ),
        (
            "stats/20260101T000000.000000-0001.jsonl",
            lambda content: b"{}\n",
            "stats/20260101T000000.000000-0001.jsonl: not the stats",
        ),
    ],
)
def test_what_cannot_be_read_is_a_line_and_the_page_is_made_of_the_rest(output, tmp_path, path, damage, says):
    file = output / path
    content = file.read_bytes() if file.exists() else b""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(damage(content)) if damage else file.unlink()
    result = invoke(output, "--to", tmp_path / "page.html")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    line, last = result.stderr.splitlines()
    assert line.startswith(says) and "promptmill verify" in last
    found = Parsed((tmp_path / "page.html").read_bytes())
    assert len(found.all("img")) >= 7 and ("promptmill verify" in " ".join(found.texts["code"]))


def test_where_nothing_was_planned_there_is_no_page(tmp_path):
    result = invoke(tmp_path, "--to", tmp_path / "page.html")
    assert result.exit_code == 2 and result.stderr == f"{tmp_path}: nothing was planned there\n"
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(clean, tmp_path):
    result = invoke(clean, "--to", tmp_path / "nowhere" / "page.html")
    assert result.exit_code == 1 and result.stderr == f"{tmp_path}/nowhere/page.html: No such file or directory\n"


def test_a_report_of_s3_is_that_of_a_disk(clean, s3_bucket):
    for file in clean.rglob("*"):
        if file.is_file():
            put(join(s3_bucket, *file.relative_to(clean).parts), get(str(file)))
    local, remote = make(str(clean)), make(s3_bucket)
    assert (remote.facts, remote.near, remote.problems) == (local.facts, local.near, [])
    assert [one.image for one in remote.shown.values()] == [one.image for one in local.shown.values()]


def test_neither_ray_nor_torch_is_loaded(clean, tmp_path):
    code = "import sys; from promptmill.jobs.cli import main; main(standalone_mode=False); "
    code += "sys.exit(str({'ray', 'torch'} & set(sys.modules)))"
    command = [sys.executable, "-c", code, "report", str(clean), "--to", str(tmp_path / "page.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "set()\n" and re.match(r".*page.html: 14 kept images in 3 shards \(", done.stdout)


def test_a_thumbnail_shows_the_picture():
    pixels = np.kron(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), np.ones((300, 150, 1), np.uint8))
    uri = thumbnail(Image.fromarray(pixels))
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"), np.int16)
    assert shown.shape == (256, 256, 3)
    assert np.abs(shown[:, :120] - [255, 0, 0]).mean() < 4 and np.abs(shown[:, 136:] - [0, 0, 255]).mean() < 4
