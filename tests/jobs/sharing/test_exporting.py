import io
import json
import shutil

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.run import run
from promptmill.jobs.verifying.verify import verify
from promptmill.manifests.sources import read_rows
from promptmill.shards.commits import read_records
from promptmill.shards.image_files import pixel_sha256
from promptmill.shards.published import read_images, read_metadata
from promptmill.shards.storage import delete, get, join, put
from tests.jobs.datasets import rendered_here
from tests.jobs.running.test_run import HERE, Watching
from tests.shards.made import pixels_of, publish, shard

PROMPTS = (
    "a large red circle at the left on a black background",
    "a small blue cross at the top and a large white square at the bottom on a green background",
    "a large yellow triangle at the center on a purple background",
)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Two shards of seven requests that keep both candidates, the second scoring higher, and one that keeps one."""
    output = str(tmp_path_factory.mktemp("painted") / "out")
    publish(output, [shard(0, statuses=("kept", "kept")), shard(1), shard(2, statuses=("kept", "kept"))])
    return output


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Three requests in two shards by the embedded family, the best of three kept; the last with a control."""
    folder = tmp_path_factory.mktemp("rendered")
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    Image.fromarray(pixels).save(folder / "square.png")
    control = {"type": "canny", "image": "square.png", "preprocess": "canny"}
    rows = [{"id": f"first-{number}", "prompt": prompt, "topic": "shapes"} for number, prompt in enumerate(PROMPTS)]
    rows[2] |= {"controls": [control], "seed": 7}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = ("defaults.steps=2", "defaults.candidates=3", "model.batch=4", "shards.size=2")
    rendered_here(load("embedded", [f"manifest={folder}/manifest.jsonl", *few]), str(folder / "out"))
    return folder


def export(output, *options):
    return CliRunner().invoke(main, ["export", str(output), *map(str, options)])


def said(result, status=0):
    assert result.exit_code == status, (result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr.splitlines() if status else result.stdout.splitlines()


def scores(output):
    """clip_score and pixel_sha256 by key."""
    tables = [read_metadata(output, record).to_pylist() for record in read_records(output)]
    return {row["key"]: (row["clip_score"], row["pixel_sha256"]) for table in tables for row in table}


def test_pairs_of_kept_images_are_the_better_and_the_worse_with_their_bytes(painted, tmp_path):
    file = tmp_path / "pairs.parquet"
    assert said(export(painted, "--pairs", file)) == [f"{file}: 14 pairs, 10 requests without"]
    assert list(tmp_path.iterdir()) == [file]
    rows = pq.read_table(file).to_pylist()
    assert len(rows) == 14 and [row["image_0_uid"] for row in rows[:2]] == ["000000-00000-0001", "000000-00001-0001"]
    for row in rows:
        assert (row["label_0"], row["label_1"], row["score_0"], row["score_1"]) == (1, 0, 25.125, 25)
        for number in (0, 1):
            pixels = np.asarray(Image.open(io.BytesIO(row[f"jpg_{number}"])))
            assert np.array_equal(pixels, pixels_of(row[f"image_{number}_uid"]))
        assert row["caption"] == f"a “cat”, number {int(row['id'].split('/')[1])}" and row["seed_0"] == row["seed_1"] - 1


def test_a_trainer_that_reads_pick_a_pic_reads_them(painted, tmp_path):
    said(export(painted, "--pairs", tmp_path / "pairs.parquet"))
    train = datasets.load_dataset("parquet", data_files=str(tmp_path / "pairs.parquet"), split="train", cache_dir=str(tmp_path))
    # As the preprocessing of Diffusion-DPO's scripts takes a batch: the better image comes first.
    batch = train[:3]
    both = [[Image.open(io.BytesIO(content)).convert("RGB") for content in batch[name]] for name in ("jpg_0", "jpg_1")]
    ordered = [pair if label else pair[::-1] for pair, label in zip(zip(*both, strict=True), batch["label_0"], strict=True)]
    assert all(np.array_equal(np.asarray(pair[0]), pixels_of(key)) for pair, key in zip(ordered, batch["image_0_uid"], strict=True))
    assert all(isinstance(caption, str) for caption in batch["caption"])


def test_without_images_all_scored_candidates_are_paired_and_a_margin_holds(painted, tmp_path):
    file = tmp_path / "pairs.jsonl"
    assert said(export(painted, "--pairs", file)) == [f"{file}: 21 pairs, 3 requests without"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 21 and "jpg_0" not in rows[0] and rows[0]["image_1_uid"] == "000000-00000-0000"
    assert said(export(painted, "--pairs", file, "--margin", 0.125))[0].startswith(f"{file}: 21 pairs")
    assert (
        "no request has two candidates that differ in score by 0.13"
        in said(export(painted, "--pairs", file, "--margin", 0.13), 1)[0]
    )


def test_images_that_were_not_kept_are_rendered_again_to_the_pixels_that_were_scored(rendered, tmp_path):
    output, file = str(rendered / "out"), tmp_path / "pairs.parquet"
    assert "no request keeps two images" in said(export(output, "--pairs", file), 1)[0] and not file.exists()
    assert said(export(output, "--pairs", file, "--images", "all")) == [
        f"{file}: 3 pairs, 0 requests without; 3 images rendered again"
    ]
    known = scores(output)
    for row in pq.read_table(file).to_pylist():
        among = {key: score for key, (score, _) in known.items() if key.startswith(row["image_0_uid"][:12])}
        assert row["image_0_uid"] == max(among, key=among.get) and row["image_1_uid"] == min(among, key=among.get)
        for number in (0, 1):
            pixels = np.asarray(Image.open(io.BytesIO(row[f"jpg_{number}"])))
            assert pixel_sha256(pixels) == known[row[f"image_{number}_uid"]][1]


def test_a_pair_whose_image_does_not_render_again_is_left_out_and_counted(rendered, tmp_path):
    output, file, square = str(rendered / "out"), tmp_path / "pairs.parquet", rendered / "square.png"
    square.rename(rendered / "moved.png")
    try:
        result = export(output, "--pairs", file, "--images", "all")
    finally:
        (rendered / "moved.png").rename(square)
    *_, line = said(result, 3)
    assert result.stdout == f"{file}: 2 pairs, 1 request without; 2 images rendered again\n"
    assert line.startswith(f"{file}: without what needs them, as 1 image would not render again, such as 000001-00000-000")
    assert "square.png: no such file in the manifest's folder or in runtime.image_roots" in line
    assert {row["id"] for row in pq.read_table(file).to_pylist()} == {"first-0", "first-1"}


def images_of(manifest):
    """The images that a second pass' manifest names."""
    return [(manifest.parent / row.values["init_image"]).read_bytes() for row in read_rows([str(manifest)])]


def test_no_second_pass_replaces_the_images_of_another(painted, tmp_path, monkeypatch):
    other = str(tmp_path / "other")
    with monkeypatch.context() as patch:
        patch.setattr("tests.shards.made.pixels_of", lambda key: 255 - pixels_of(key))
        publish(other, [shard(0), shard(1)])
    first, second = tmp_path / "pass2.jsonl", tmp_path / "pass2.parquet"
    said(export(painted, "--manifest", first))
    before = images_of(first)
    assert len(set(before)) == len(before) > 0
    said(export(other, "--manifest", second))
    assert images_of(first) == before and images_of(second) != before
    # Cut off, an export under the same name leaves manifest and images as they were.
    delete(join(other, "metadata/000001.parquet"))
    assert "missing or altered" in said(export(other, "--manifest", first), 1)[0]
    assert images_of(first) == before
    said(export(painted, "--manifest", first))
    assert images_of(first) == before and not list(tmp_path.rglob(".tmp-*"))


def test_the_winners_are_rendered_further_in_a_second_pass_of_img2img_and_control(rendered, tmp_path):
    output = str(rendered / "out")
    once, again = tmp_path / "refine.jsonl", tmp_path / "guide.parquet"
    assert said(export(output, "--manifest", once, "--strength", 0.5, "--drop", "steps")) == [
        f"{once}: 3 rows, images in refine-images/"
    ]
    # The same image under two names would have one id twice.
    said(export(output, "--manifest", again, "--as", "control", "--scale", 0.7, "--drop", "id", "--drop", "steps"))
    kept = {key: image for record in read_records(output) for key, image in read_images(output, record, scores(output)).items()}
    assert len(kept) == 3
    for folder in ("refine-images", "guide-images"):
        for key, image in kept.items():
            (place,) = (tmp_path / folder).glob(f"{key[:6]}-*/{key}.png")
            assert place.read_bytes() == image.content

    settings = ("defaults.steps=2", "defaults.candidates=1", "model.batch=4", "shards.size=8", HERE)
    config = load("embedded", [f"manifest=[{once},{again}]", *settings])
    plan = make_plan(look(config), str(tmp_path / "second"))
    requests = [placed.request for placed in read_shard(str(tmp_path / "second"), 0).requests]
    assert [request.mode for request in requests] == ["img2img"] * 3 + ["controlnet"] * 3
    assert [request.id for request in requests] == [*sorted(kept), "4", "5", "6"]
    assert [request.prompt for request in requests] == [*PROMPTS, *PROMPTS]
    assert {request.seed for request in requests} == {None} and {request.steps for request in requests} == {2}
    assert {request.strength for request in requests} == {0.5, None}
    assert [[(c.type, c.preprocess, c.scale) for c in r.controls] for r in requests[2:]] == [[]] + [[("canny", "canny", 0.7)]] * 3
    known = scores(output)
    for request in requests[:3]:
        assert request.init_image is not None and (tmp_path / request.init_image).read_bytes() == kept[request.id].content
        wanted = {"topic": "shapes", "source_id": f"first-{PROMPTS.index(request.prompt)}", "source_score": known[request.id][0]}
        assert request.carried == wanted
    totals = run(plan, str(tmp_path / "second"), Watching())
    assert (totals.requests, totals.kept, totals.failed, totals.failed_requests) == (6, 6, 0, 0)
    (verified,) = verify(str(tmp_path / "second"))
    assert verified.finished


def test_the_first_conditioning_and_the_seeds_go_along_where_that_is_asked(rendered, tmp_path):
    output, file = str(rendered / "out"), tmp_path / "again.parquet"
    said(export(output, "--manifest", file, "--conditioning", "--seeds"))
    *_, last = read_rows([str(file)])
    (control,) = last.values["controls"]
    assert (control["image"], control["preprocess"]) == ("square.png", "canny") and last.values["seed"] in (7, 8, 9)
    settings = [f"manifest={file}", f"runtime.image_roots=[{rendered}]"]
    make_plan(look(load("embedded", settings)), str(tmp_path / "second"))
    assert [placed.request.mode for placed in read_shard(str(tmp_path / "second"), 0).requests][-1] == "controlnet_img2img"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ((), 2, "give one of --pairs FILE and --manifest FILE"),
        (("--pairs", "a.parquet", "--manifest", "b.jsonl"), 2, "give one of"),
        (("--pairs", "a.parquet", "--strength", "0.5"), 2, "--strength is not for --pairs"),
        (("--manifest", "a.jsonl", "--images", "all"), 2, "--images is not for --manifest"),
        (("--manifest", "a.jsonl", "--as", "control", "--strength", "0.5"), 2, "--strength is for --as img2img"),
        (("--manifest", "a.jsonl", "--type", "seg"), 2, "--type is for --as control"),
        (("--manifest", "a.jsonl", "--as", "control", "--type", "seg"), 2, "--type seg: say how its map is made"),
        (("--manifest", "a.jsonl", "--drop", "colour"), 1, "--drop colour: no column of the manifest; it has id, "),
        (("--manifest", "a.csv"), 1, "a.csv: no ending of rows; use .parquet or .jsonl"),
        (("--pairs", "a.jsonl", "--images", "kept"), 1, "a.jsonl: images go into a .parquet; give one, or --images none"),
    ],
)
def test_what_does_not_fit_together_is_one_line(painted, tmp_path, monkeypatch, options, status, words):
    monkeypatch.chdir(tmp_path)
    (line,) = said(export(painted, *options), status)
    assert words in line and not list(tmp_path.iterdir())


def test_an_output_that_is_empty_or_altered_is_one_line_and_leaves_the_file_as_it_was(painted, tmp_path):
    file = tmp_path / "pairs.parquet"
    file.write_bytes(b"before")
    assert "no shard is committed there" in said(export(tmp_path / "none", "--pairs", file), 1)[0]
    assert "nothing is kept there" in said(export(tmp_path / "none", "--manifest", tmp_path / "a.jsonl"), 1)[0]
    output = str(shutil.copytree(painted, tmp_path / "out"))
    tar = join(output, "data/000002.tar")
    put(tar, get(tar)[:-1] + b"x")
    assert "data/000002.tar: missing or altered; `promptmill verify" in said(export(output, "--pairs", file), 1)[0]
    assert file.read_bytes() == b"before" and not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]


def test_images_that_have_moved_since_are_found_where_one_says_they_are(rendered, tmp_path):
    (rendered / "moved").mkdir()
    (rendered / "square.png").rename(rendered / "moved" / "square.png")
    try:
        key, made, pairs = "000001-00000-0000", tmp_path / "made.png", tmp_path / "pairs.parquet"
        lost, found = (
            CliRunner().invoke(main, ["regenerate", str(rendered / "out"), key, "--to", str(made), *more])
            for more in ((), ("--image-root", str(rendered / "moved")))
        )
        assert lost.exit_code == 2
        assert lost.stderr.startswith(f"{key}: controls.0.image: square.png: no such file in ")
        assert lost.stderr.endswith("; --image-root FOLDER adds where images lie now\n")
        assert (found.exit_code, found.stdout) == (0, f"{made}: the same pixels, bit for bit\n")
        asked = ("--pairs", pairs, "--images", "all")
        assert any("--image-root FOLDER adds where images lie now" in line for line in said(export(rendered / "out", *asked), 3))
        (line,) = said(export(rendered / "out", *asked, "--image-root", rendered / "moved"))
        assert line.startswith(f"{pairs}: 3 pairs, 0 requests without; ")
        kept = export(rendered / "out", "--pairs", pairs, "--image-root", rendered)
        assert said(kept, 2) == ["--image-root is for --images all"]
    finally:
        (rendered / "moved" / "square.png").rename(rendered / "square.png")
