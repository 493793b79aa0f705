import dataclasses
import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.sharing.dedup import Signs, copy_without, find
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import Verified, verify
from promptmill.manifests.own_outputs import as_input
from promptmill.shards.commits import read_records
from promptmill.shards.sidecars import json_form
from promptmill.shards.storage import get, put
from promptmill.shards.tables import schema
from promptmill.shards.tars import read_tar
from tests.jobs.datasets import planned_dataset
from tests.shards.made import publish, shard

# Images of the same row in the first and the last shard have the same embedding; their pixels have nothing in common.
SAME = "0.9999"
PAIRS = {f"000002-0000{row}-0000": f"000000-0000{row}-0000" for row in range(7)}


@pytest.fixture
def dataset(tmp_path):
    return Path(planned_dataset(tmp_path)[1])


def dedup(*arguments):
    return CliRunner().invoke(main, ["dedup", *map(str, arguments)])


def files(out):
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in out.rglob("*") if path.is_file()}


def verified(out):
    *problems, last = verify(str(out))
    assert isinstance(last, Verified)
    return [str(problem) for problem in problems if isinstance(problem, Problem)], last.totals


def rows(file):
    return {row["key"]: row for row in pq.read_table(file).to_pylist()}


def test_near_duplicates_are_marked_beside_the_data_and_nothing_else_changes(dataset):
    before = files(dataset)
    result = dedup(dataset, "--embedding", SAME)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "14 images, 7 of them superfluous in 7 groups (7 by embedding)"
    marked = rows(dataset / "dedup.parquet")
    assert len(marked) == 14
    assert {key: row["duplicate_of"] for key, row in marked.items() if row["duplicate_of"]} == PAIRS
    assert all(marked[twin]["group"] == marked[kept]["group"] is not None for twin, kept in PAIRS.items())
    assert {row["by"] for row in marked.values()} == {None, "embedding"}
    summary = json.loads((dataset / "dedup.json").read_text())
    assert (summary["images"], summary["distinct"], summary["groups"], summary["by"]) == (14, 7, 7, {"embedding": 7})
    assert summary["requests_without_another_image"] == 7
    after = files(dataset)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"dedup.parquet", "dedup.json"}
    assert verified(dataset)[0] == []
    again = dedup(dataset, "--embedding", SAME, "--json")
    assert json.loads(again.stdout) == summary and files(dataset) == after


def test_a_copy_lacks_them_and_holds(dataset, tmp_path):
    before = files(dataset)
    copy = tmp_path / "copy"
    result = dedup(dataset, "--embedding", SAME, "--to", copy)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"7 images in {copy}"
    assert {name: value for name, value in files(dataset).items() if not name.startswith("dedup")} == before
    assert verified(copy)[0] == []
    then, now = verified(dataset)[1], verified(copy)[1]
    assert (now.kept, now.rejected) == (then.kept - 7, then.rejected + 7)
    assert (now.requests, now.candidates, now.failed) == (then.requests, then.candidates, then.failed)
    # The last shard has lost all its images, and with them its tar.
    assert sorted(path.name for path in (copy / "data").iterdir()) == ["000000.tar"]
    one, other = ({s.key: s.files["png"] for s in read_tar((out / "data/000000.tar").read_bytes())} for out in (dataset, copy))
    assert one == other
    gone = rows(copy / "metadata/000002.parquet")
    was = rows(dataset / "metadata/000002.parquet")
    for key, kept in PAIRS.items():
        assert (gone[key]["status"], gone[key]["selected"], gone[key]["duplicate_of"]) == ("rejected", False, kept)
        changed = {name for name in was[key] if gone[key][name] != was[key][name]}
        assert changed == {"status", "selected", "sha256", "bytes"}
    assert "duplicate_of" not in as_input(rows(copy / "metadata/000000.parquet")["000000-00000-0000"])


def test_the_card_of_a_copy_declares_its_columns_and_says_what_it_is(dataset, tmp_path):
    copy_without(str(dataset), find(str(dataset), Signs(0.9999, None)), str(tmp_path / "copy"))
    card = (tmp_path / "copy" / "README.md").read_text()
    features = yaml.safe_load(card.split("---\n")[1])["dataset_info"]["features"]
    form = pq.read_schema(tmp_path / "copy/metadata/000000.parquet")
    assert [column["name"] for column in features[1]["struct"]] == json_form(form).names
    assert "7 of the rejected were kept before" in card
    assert "`duplicate_of` | `string` | the key of the image" in card


def test_a_copy_is_not_taken_for_what_its_original_plan_makes(dataset, tmp_path):
    copy_without(str(dataset), find(str(dataset), Signs(0.9999, None)), str(tmp_path / "copy"))
    fingerprints = {record.fingerprint for out in (dataset, tmp_path / "copy") for record in read_records(str(out))}
    assert len(fingerprints) == 2
    # Made again, it would have its near-duplicates back.
    (tmp_path / "copy/data/000000.tar").unlink()
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "copy"), "--repair"])
    assert result.exit_code == 2 and "has no plan/ to repair it by" in result.stderr


def test_without_embeddings_hashes_are_compared_and_it_is_said(tmp_path):
    out, form, made = tmp_path / "out", schema({}, None), shard(0)

    def bare(rows):
        return tuple({name: value for name, value in row.items() if name in (*form.names, "image")} for row in rows)

    made = dataclasses.replace(made, parts=tuple(map(bare, made.parts)), failed=bare(made.failed))
    publish(str(out), [made], form=form)
    result = dedup(out, "--embedding", "0.5")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [f"{out}: was rendered with shards.embeddings none, so only hashes are compared"]
    assert result.stdout.startswith("7 images, 0 of them superfluous in 0 groups")
    assert json.loads((out / "dedup.json").read_text())["compared"] == {"embedding": None, "hash": 4}
    assert all(len(row["phash"]) == 16 for row in rows(out / "dedup.parquet").values())


def test_what_cannot_be_done_is_one_line(dataset, tmp_path):
    def said(*arguments):
        result = dedup(*arguments)
        assert result.exit_code != 0
        (line,) = result.stderr.splitlines()
        return line

    assert said(tmp_path / "nothing") == f"{tmp_path / 'nothing'}: no shard is committed there"
    assert not (tmp_path / "nothing").exists()
    assert said(dataset, "--to", dataset) == f"{dataset}: is not empty; give another --to"
    (dataset / "_SUCCESS").unlink()
    assert "is not finished" in said(dataset, "--to", tmp_path / "copy")
    tar = dataset / "data" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    assert said(dataset).startswith(f"{tar}: missing or altered")
    publish(str(tmp_path / "empty"), [shard(0, statuses=("rejected", "failed"))])
    with pytest.raises(PlanError, match="nothing is kept there yet"):
        find(str(tmp_path / "empty"), Signs(None, None))


def test_on_s3_as_on_a_disk(dataset, tmp_path, s3_bucket):
    for path in dataset.rglob("*"):
        if path.is_file():
            put(f"{s3_bucket}/original/{path.relative_to(dataset)}", path.read_bytes())
    local, remote = (
        dedup(place, "--embedding", SAME, "--to", copy)
        for place, copy in ((dataset, tmp_path / "copy"), (f"{s3_bucket}/original", f"{s3_bucket}/copy"))
    )
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.output
    for name in files(tmp_path / "copy"):
        assert get(f"{s3_bucket}/copy/{name}") == (tmp_path / "copy" / name).read_bytes()
    assert get(f"{s3_bucket}/original/dedup.parquet") == (dataset / "dedup.parquet").read_bytes()
    assert verified(f"{s3_bucket}/copy")[0] == []
