"""An addition of a foreseeable kind is one entry in a table and its code: each is made here, in a copy, and seen to work.

A copy of the package is changed as a contributor would change it, in at most three files, and asked for what follows.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_FILES = 3


@pytest.fixture
def changed(tmp_path):
    """Return what makes a copy of promptmill with these changes, by file, each of pairs (there, instead); runs code in it."""
    package = tmp_path / "promptmill"
    shutil.copytree(ROOT / "src" / "promptmill", package, ignore=shutil.ignore_patterns("__pycache__", "weights"), symlinks=False)
    (package / "embedded" / "weights").symlink_to(ROOT / "embedded" / "weights")

    def with_changes(changes, code):
        assert len(changes) <= MOST_FILES
        for name, pairs in changes.items():
            file = package / name
            text = file.read_text() if file.exists() else ""
            for there, instead in pairs:
                assert text.count(there) == 1 or not text, f"{name}: {there!r} is there {text.count(there)} times"
                text = text.replace(there, instead) if text else instead
            file.write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        script = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return with_changes


def test_a_manifest_column_is_an_entry_of_the_table_and_a_field_of_the_request(changed):
    said = changed(
        {
            "configs/columns.py": [
                ("FORMAT = 4\n", "FORMAT = 5\n"),
                (
                    '    Column("mode", _TEXT,',
                    '    Column("style", _TEXT, "in which it is drawn", _INPUT, since=5),\n    Column("mode", _TEXT,',
                ),
            ],
            "manifests/requests.py": [
                (
                    "    mode: Mode | None = None\n",
                    "    mode: Mode | None = None\n    style: str | None = Field(None, max_length=99)\n",
                ),
                (
                    "    references: tuple[Reference, ...] = ()\n    syntax:",
                    "    references: tuple[Reference, ...] = ()\n    style: str | None = None\n    syntax:",
                ),
                ('        "seed": columns.seed,\n', '        "seed": columns.seed,\n        "style": columns.style,\n'),
            ],
        },
        """
        import json
        from promptmill.configs.loading import load
        from promptmill.configs.parameters import Defaults
        from promptmill.manifests.own_outputs import as_input
        from promptmill.manifests.requests import from_json, make_request, to_json
        from promptmill.manifests.rules import Rules
        from promptmill.manifests.rows import Row
        from promptmill.pipelines.work.metadata_rows import request_row
        from promptmill.pipelines.work.recipe import Recipe
        from promptmill.pipelines.work.results import Outcome
        from promptmill.pipelines.work.units import Placed
        from promptmill.shards.card import Made, card
        from promptmill.shards.index import Totals
        from promptmill.shards.tables import schema

        config = load("embedded", ["manifest=x"])
        shapes = {}
        rules = Rules(config.defaults)
        one, other, plain = (
            make_request(Row("m.jsonl", 1, {"prompt": "a", **more}), 1, rules, shapes)
            for more in ({"style": "oil"}, {"style": "ink"}, {})
        )
        forms = {format: schema({}, None, format=format) for format in (4, 5)}
        rows = {format: request_row(Recipe(config, form), 0, Placed(0, one), Outcome(0, ())) for format, form in forms.items()}
        values = {name: rows[5].get(name) for name in forms[5].names} | {"key": "000000-00000-0000"}
        page = card(Made(Totals(1, 1), forms[5], "png", 90, ())).decode()
        print(json.dumps({
            "requests": [one.style, other.style, plain.style],
            "again": from_json(to_json(one)).style,
            "fingerprint": "style" in to_json(plain),
            "rows": [rows[4].get("style"), rows[5]["style"]],
            "forms": ["style" in forms[4].names, "style" in forms[5].names],
            "second pass": as_input(values, {}).get("style"),
            "card": "| `style` | `string` | in which it is drawn |" in page and "name: style" in page,
        }))
        """,
    )
    assert said == {
        "requests": ["oil", "ink", None],
        "again": "oil",
        "fingerprint": False,
        "rows": [None, "oil"],
        "forms": [False, True],
        "second pass": "oil",
        "card": True,
    }


def test_an_outcome_is_a_field_of_the_counts_and_the_status_that_rows_have(changed):
    said = changed(
        {
            "shards/outcomes.py": [
                (
                    "    spared: int = _outcome(",
                    '    censored: int = _outcome("Censored ones were refused by the model.\\n")\n    spared: int = _outcome(',
                ),
            ],
            "pipelines/work/metadata_rows.py": [
                (
                    '        "status": "failed" if failure else "drafted",\n',
                    '        "status": {"refused_content": "censored"}.get(failure.code, "failed") if failure else "drafted",\n',
                ),
            ],
        },
        """
        import dataclasses, json
        from promptmill.actors.receipts import Receipt
        from promptmill.configs.loading import load
        from promptmill.configs.parameters import Defaults
        from promptmill.jobs.running.metrics import Metrics
        from promptmill.jobs.showing.progress import Tally
        from promptmill.jobs.showing.summary import run_lines
        from promptmill.manifests.requests import make_request
        from promptmill.manifests.rules import Rules
        from promptmill.manifests.rows import Row
        from promptmill.pipelines.work.metadata_rows import candidate_row, shared_row
        from promptmill.pipelines.work.recipe import Recipe
        from promptmill.pipelines.work.results import Candidate, Failure, Outcome
        from promptmill.pipelines.work.units import Placed, Unit
        from promptmill.shards.assembly import Assembly, assemble
        from promptmill.shards.card import Made, card
        from promptmill.shards.commits import read_records
        from promptmill.shards.index import publish_index
        from promptmill.shards.parts import write_part
        from promptmill.shards.tables import schema

        config, form = load("embedded", ["manifest=x"]), schema({}, None)
        request = make_request(Row("m.jsonl", 1, {"prompt": "a", "candidates": 2}), 1, Rules(config.defaults))
        recipe, placed = Recipe(config, form, "out", "f" * 64), Placed(0, request)
        shared = shared_row(recipe, 0, placed, Outcome(0, ()))
        rows = [
            {**candidate_row(recipe, shared, 0, 0, Candidate(i, i, None, 1, Failure(code, "no"))), "image": None}
            for i, code in enumerate(("refused_content", "render_error"))
        ]
        write_part("out", "000000-00000.parquet", rows, form, "f" * 64)
        record = assemble("out", Assembly(0, ["000000-00000.parquet"], [], 1, 2), form, "png", "f" * 64)
        totals = publish_index("out", read_records("out"), 1)
        receipt = Receipt.of(Unit(0, 0, (placed,)), rows, [], {})
        put, tally = [], Tally(2)
        metrics = Metrics("out", 2, lambda name, value, labels: put.append((name, labels.get("outcome"), value)))
        metrics.unit(receipt)
        tally.add(receipt)
        print(json.dumps({
            "record": json.loads(record.to_json())["censored"],
            "index": json.load(open("out/index.json"))["totals"]["censored"],
            "receipt": [receipt.censored, receipt.failed, receipt.candidates],
            "metric": ["promptmill_candidates_total", "censored", 1] in [list(one) for one in put],
            "progress": [tally.counts.censored, tally.settled],
            "summary": "1 censored" in next(run_lines(totals, tally, "out")),
            "card": "Censored ones were refused by the model." in card(Made(totals, form, "png", 90, ())).decode(),
        }))
        """,
    )
    assert said == {
        "record": 1,
        "index": 1,
        "receipt": [1, 1, 2],
        "metric": True,
        "progress": [1, 2],
        "summary": True,
        "card": True,
    }


def test_a_metric_is_an_entry_and_the_line_that_records_it(changed):
    said = changed(
        {
            "jobs/running/metrics.py": [
                (
                    '    Metric("promptmill_shards_total",',
                    '    Metric("promptmill_bare_requests_total", "counter", "Requests without an image."),\n'
                    '    Metric("promptmill_shards_total",',
                ),
                (
                    '        self.put("promptmill_units_total", 1)\n',
                    '        self.put("promptmill_units_total", 1)\n'
                    '        self.put("promptmill_bare_requests_total", receipt.failed_requests)\n',
                ),
            ],
        },
        """
        import json
        from promptmill.actors.receipts import Receipt
        from promptmill.jobs.running.metrics import METRICS, Metrics, _instrument
        put = {}
        receipt = Receipt("u", 0, {}, None, requests=4, failed_requests=3)
        Metrics("out", 8, lambda name, value, labels: put.update({name: value})).unit(receipt)
        instrument = _instrument("promptmill_bare_requests_total")
        print(json.dumps([put["promptmill_bare_requests_total"], instrument.info["description"]]))
        """,
    )
    assert said == [3, "Requests without an image."]


def test_an_output_format_is_a_word_of_the_config_and_an_entry_with_its_encoder(changed):
    said = changed(
        {
            "configs/schema.py": [
                ('ImageFormat = Literal["png", "jpg", "webp"]', 'ImageFormat = Literal["png", "jpg", "webp", "avif"]')
            ],
            "shards/image_files.py": [
                (
                    "@dataclass(frozen=True)\nclass Format:",
                    textwrap.dedent(
                        """\
                        def _save_avif(image: Image.Image, file: io.BytesIO, quality: int, provenance: Provenance) -> None:
                            image.save(file, "AVIF", quality=quality, exif=user_comment(provenance.parameters()))


                        @dataclass(frozen=True)
                        class Format:"""
                    ),
                ),
                (
                    '    "png": Format(',
                    '    "avif": Format("AVIF", _save_avif, lambda c: c[4:12] == b"ftypavif", lambda c: False),\n'
                    '    "png": Format(',
                ),
            ],
        },
        """
        import json
        import numpy as np
        from promptmill.configs.loading import load
        from promptmill.shards.image_files import Provenance, encode_image
        from promptmill.shards.image_reader import PictureError, read_picture
        from promptmill.shards.card import Made, card
        from promptmill.shards.index import Totals
        from promptmill.shards.tables import schema

        config = load("embedded", ["manifest=x", "shards.image_format=avif", "shards.quality=80"])
        pixels = np.full((64, 64, 3), (200, 40, 40), np.uint8)
        made = Provenance("a", "", 1, "ddim", 1.0, 0, 64, 64, "m")
        content = encode_image(pixels, config.shards.image_format, config.shards.quality, made)
        read = np.asarray(read_picture(content, "avif", 64, 64), int)
        try:
            read_picture(content, "webp", 64, 64)
            taken = True
        except PictureError:
            taken = False
        page = card(Made(Totals(1, 1), schema({}, None), "avif", 80, ())).decode()
        print(json.dumps([int(abs(read - pixels).max()) < 16, taken, "avif at quality 80" in page and "name: avif" in page]))
        """,
    )
    assert said == [True, False, True]


def test_a_kind_of_scorer_is_a_class_of_the_config_and_a_module_of_its_name(changed):
    said = changed(
        {
            "configs/scorers.py": [
                (
                    "AnyScorer = Annotated[OpenClipScorer | PreferenceScorer | HeadScorer,",
                    'class LightScorer(_Scorer, Weights):\n    """How light an image is."""\n\n    kind: Literal["light"]\n\n\n'
                    "AnyScorer = Annotated[OpenClipScorer | PreferenceScorer | HeadScorer | LightScorer,",
                ),
            ],
            "pipelines/scoring/light.py": [
                (
                    "",
                    textwrap.dedent(
                        '''\
                        """Scores how light an image is."""

                        import numpy as np

                        from promptmill.pipelines.work.results import Scored


                        class Light:
                            def score(self, prompts, images):
                                return [Scored(float(np.float32(image.mean())), np.zeros(1, np.float32)) for image in images]


                        def load(scorer, batch, device):
                            return Light()
                        '''
                    ),
                ),
            ],
        },
        """
        import json
        import numpy as np
        from promptmill.configs.loading import load
        from promptmill.pipelines.models.identity import model_identity
        from promptmill.pipelines.models.scorer_sources import check_scorers
        from promptmill.pipelines.scoring.scorers import load_scorers
        from promptmill.pipelines.work.metadata_rows import ranking_columns, scores_row

        light = "{name: light, kind: light, source: ./embedded/weights/clip, floor: 20}"
        config = load("embedded", ["manifest=x", f"ranking.scorers=[{light}]", "ranking.weights={light: 1}"])
        check_scorers(config.ranking)
        scorers = load_scorers(config.ranking, "cpu", 1)
        (scored,) = scorers.score(["a"], [np.full((64, 64, 3), 50, np.uint8)])
        row = scores_row(config.ranking, scored)
        print(json.dumps([
            [column.name for column in ranking_columns(config.ranking)],
            row["light_score"],
            sorted(model_identity(config.model, config.ranking))[-1],
        ]))
        """,
    )
    assert said == [["light_score", "rank_score", "rejected_for"], 50.0, "ranking.scorers.light"]
