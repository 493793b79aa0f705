import dataclasses
import gzip
import shutil

from promptmill.jobs.planning.plan import read_shard, write_plan, write_shard
from promptmill.jobs.running.finishing import finish, made_of
from promptmill.shards.card import CARD, card
from promptmill.shards.commits import read_record, read_records
from promptmill.shards.storage import delete, get, join, put
from tests.jobs.finished import problems_of, rewrite_record


def test_a_clean_dataset_beside_its_plan_has_no_problem(planned):
    assert problems_of(planned) == []


def test_records_that_are_not_of_the_plan_beside_them_are_found(planned):
    ours = read_record(planned, 0).fingerprint
    rewrite_record(planned, 1, index=False, fingerprint="e" * 64)
    assert problems_of(planned) == [f"commits/000001.json: is of the plan {'e' * 64}, plan/plan.json is {ours}"]


def test_records_of_an_earlier_plan_are_taken_where_its_changes_were_accepted(clean_planned, planned):
    plan, _ = clean_planned
    earlier = dataclasses.replace(plan, inputs={**plan.inputs, "manifest": ["0" * 64]})
    later = dataclasses.replace(plan, accepted={earlier.fingerprint: ["manifest.0: was another"]})
    write_plan(planned, later)
    rewrite_record(planned, 1, fingerprint=earlier.fingerprint)
    put(join(planned, CARD), card(made_of(later, read_records(planned))))
    path = f"plan/earlier/{earlier.fingerprint}.json"
    assert problems_of(planned) == [f"{path}: missing, while the plan says that it was before it"]
    write_plan(planned, earlier, earlier=True)
    assert problems_of(planned) == []
    put(join(planned, path), get(join(planned, path)).replace(b'"rows": 24', b'"rows": 25'))
    assert problems_of(planned) == [f"{path}: altered: the hash that it holds is not its own"]


def test_a_broken_plan_is_found(planned):
    whole = get(join(planned, "plan/plan.json"))
    for content in (b"", b"[]", b"{}"):
        put(join(planned, "plan/plan.json"), content)
        (problem,) = problems_of(planned)
        assert problem.startswith("plan/plan.json: not a plan: ")
    put(join(planned, "plan/plan.json"), whole.replace(b'"candidates": 2', b'"candidates": 3'))
    assert problems_of(planned) == ["plan/plan.json: altered: its fingerprint is not that of what it says"]
    put(join(planned, "plan/plan.json"), whole.replace(b'"roots"', b'"rootz"'))
    assert problems_of(planned) == ["plan/plan.json: not a plan: 'roots'"]
    put(join(planned, "plan/plan.json"), whole.replace(b'"rows": 24', b'"rows": 25'))
    assert problems_of(planned) == ["plan/plan.json: altered: the hash that it holds is not its own"]
    delete(join(planned, "plan/plan.json"))
    assert problems_of(planned) == ["plan/plan.json: missing, while the rest of the plan is there"]
    shutil.rmtree(f"{planned}/plan")
    assert problems_of(planned) == []


def test_a_broken_plan_of_a_shard_is_found(clean_planned, planned):
    path = "plan/shards/000001.json.gz"
    whole, another = get(join(planned, path)), get(join(planned, "plan/shards/000000.json.gz"))
    unit_short = gzip.compress(gzip.decompress(whole).replace(b'"units":[[0,', b'"units":[['), 1, mtime=0)
    for content, says in {
        whole[:-9]: "altered: truncated",
        whole + b"\0": "altered: 1 bytes follow its end",
        whole[:4] + b"\1" + whole[5:]: "altered: it does not begin as gzip does",
        whole[:9] + b"\7" + whole[10:]: "altered: it does not begin as gzip does",
        whole[:90] + bytes([whole[90] ^ 1]) + whole[91:]: "altered: ",
        another: "altered: is the plan of shard 000000",
        unit_short: "altered: its units do not hold each of its requests once",
    }.items():
        put(join(planned, path), content)
        (problem,) = problems_of(planned)
        assert problem.startswith(f"{path}: {says}")
    delete(join(planned, path))
    assert problems_of(planned) == [f"{path}: missing"]
    plan = read_shard(clean_planned[1], 1)
    other = dataclasses.replace(plan.requests[0], request=dataclasses.replace(plan.requests[0].request, prompt="another"))
    write_shard(planned, dataclasses.replace(plan, requests=(other, *plan.requests[1:])))
    assert problems_of(planned) == [f"{path}: altered: what it asks for is not what the fingerprint is over"]
    written = get(join(planned, "plan/plan.json"))
    write_plan(planned, dataclasses.replace(clean_planned[0], shard_hashes=()))  # as an earlier promptmill wrote it
    assert problems_of(planned) == ["plan/shards: altered: what it asks for is not what the fingerprint is over"]
    put(join(planned, "plan/plan.json"), written)
    put(join(planned, path), whole)
    put(join(planned, "plan/shards/000003.json.gz"), whole)
    assert problems_of(planned) == ["plan/shards/000003.json.gz: the plan has no such shard"]


def test_a_kind_of_hardware_that_is_not_as_it_was_written_is_found(planned):
    whole = get(join(planned, "plan/hardware.json"))
    put(join(planned, "plan/hardware.json"), whole.replace(b"x86", b"x87"))
    assert problems_of(planned) == ["plan/hardware.json: altered: the hash that it holds is not its own"]
    put(join(planned, "plan/hardware.json"), whole[:-3])
    assert problems_of(planned)[0].startswith("plan/hardware.json: not a kind of hardware: ")
    put(join(planned, "plan/hardware.json"), get(join(planned, "plan/plan.json")))
    assert problems_of(planned) == ["plan/hardware.json: not a kind of hardware: format: input should be a valid string (found 3)"]
    delete(join(planned, "plan/hardware.json"))
    assert problems_of(planned) == ["plan/hardware.json: missing, while shards are committed"]


def test_a_plausible_record_with_other_counts_than_planned_is_found(planned):
    rewrite_record(planned, 1, index=False, requests=9, rejected=9)
    problems = problems_of(planned)
    assert problems[:2] == [
        "commits/000001.json: says requests 9, the plan has 8",
        "commits/000001.json: says candidates 18, the plan has 16",
    ]
    assert all(problem.startswith("commits/000001.json: ") for problem in problems)


def test_a_shard_beyond_the_plan_is_found(planned):
    put(join(planned, "commits/000003.json"), dataclasses.replace(read_record(planned, 0), shard=3).to_json())
    assert problems_of(planned) == ["commits/000003.json: the plan has no such shard"]


def test_columns_that_are_not_the_plans_are_found(clean_planned, planned):
    plan, _ = clean_planned
    write_plan(planned, dataclasses.replace(plan, carried={**plan.carried, "weight": "string"}))
    said = [problem for problem in problems_of(planned) if problem.startswith("metadata/")]
    assert said == [f"metadata/00000{shard_}.parquet: its columns are not those of the plan" for shard_ in range(3)]


def test_a_card_that_is_not_of_the_plan_and_the_records_is_found_but_its_licence_may_be_chosen(clean_planned, planned):
    whole = get(join(planned, "README.md"))
    for content in (
        whole.replace(b"14", b"15"),
        whole[:-1],
        whole + b"\n",
        whole.replace(b"license: other", b"licence: other"),
        b"",
    ):
        put(join(planned, "README.md"), content)
        assert problems_of(planned) == ["README.md: is not the card that the plan and the commit records make"]
    comment = whole.split(b"\n")[1]
    for line in (comment.replace(b"other", b"mit"), b"license: cc0-1.0"):
        chosen = whole.replace(comment, line)
        put(join(planned, "README.md"), chosen)
        assert problems_of(planned) == []
    finish(clean_planned[0], planned, read_records(planned))
    assert get(join(planned, "README.md")) == chosen
