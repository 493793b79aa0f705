import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import huggingface_hub
import pytest
from click.testing import CliRunner

from promptmill.configs.own_files import ROOT
from promptmill.jobs.cli import main
from promptmill.jobs.planning.plan import read_plan, write_plan
from promptmill.jobs.running.finishing import finish
from promptmill.jobs.sharing import push as pushing
from promptmill.shards.commits import read_records
from promptmill.shards.generations import drop_earlier
from promptmill.shards.storage import delete, get, join, put
from tests.jobs.datasets import commit_planned, planned_dataset
from tests.jobs.sharing.hub import SIGNATURE, TOKEN, Hub, serving

TOP = ("data", "metadata", "commits", "plan")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return planned_dataset(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A finished dataset of another plan."""
    return planned_dataset(tmp_path_factory.mktemp("other"), "seed=5")[1]


@pytest.fixture
def output(made, tmp_path):
    """A finished dataset of three shards, with what never leaves the house beside it."""
    place = shutil.copytree(made[1], tmp_path / "out")
    for private in ("stats/20260101T000000.000000-0001.jsonl", "parts/b.parquet", "lease/000001.json", "data/.tmp-0123"):
        (place / private).parent.mkdir(exist_ok=True)
        (place / private).write_text("host")
    return place


@pytest.fixture
def hub():
    return Hub()


@pytest.fixture
def endpoint(hub, monkeypatch):
    """The stand-in, to which this process's client goes, too."""
    with serving(hub) as url:
        file = url + "/{repo_id}/resolve/{revision}/{filename}"
        unset = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": file, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in unset.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(pushing, "PAUSES", (0.01, 0.01))
        huggingface_hub.close_session()
        yield url


def published(folder: Path, *more: str) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    paths = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in paths.items() if "/" not in name or name.split("/")[0] in (*TOP, *more)}


def push(output, *options):
    return CliRunner().invoke(main, ["push", str(output), *options])


def refused(result) -> str:
    """The one line of a push that did not succeed."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.stderr.splitlines()
    assert TOKEN not in result.output and SIGNATURE not in result.output
    return line


def elsewhere(url, tmp_path, *command, **more):
    """A command as people give it, in a process whose environment alone says where the Hub is."""
    unset = {
        "HF_HUB_OFFLINE": "",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **unset},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_a_push_killed_in_the_middle_goes_on_with_what_is_missing_and_the_repository_is_the_output(output, hub, tmp_path):
    hub.hold_at = 4  # of the six files of shards that are large: all of the first two shards, and one of the third
    with serving(hub) as url:
        small = "from promptmill.jobs import cli; from promptmill.jobs.sharing import push; push.FILES_A_COMMIT = 3; cli.main()"
        first = elsewhere(url, tmp_path, "-c", small, "push", output, "pictures")
        assert hub.held.wait(60), first.communicate(timeout=5)
        first.kill()
        first.wait()
        committed = hub.files("me/pictures")
        assert "commits/000000.json" in committed and "commits/000002.json" not in committed and "_SUCCESS" not in committed
        before = list(hub.uploads)
        assert len(before) == 4
        hub.hold_at = None
        second = elsewhere(url, tmp_path, "-m", "promptmill", "push", output, "pictures")
        said, errors = second.communicate(timeout=60)
        assert second.returncode == 0, errors
        assert TOKEN not in said + errors
        assert f"{url}/datasets/me/pictures: " in said and ", 5 were there" in said
        # What had been sent was not sent again, and what is there is the output.
        assert len(hub.uploads) == len(set(hub.uploads)) and hub.uploads[:4] == before
        assert hub.files("me/pictures") == published(output)
        assert "host" not in repr(hub.commits) and not any(path.startswith(("stats", "parts")) for path in hub.files("me/pictures"))

        code = (
            "import datasets; found = datasets.load_dataset('me/pictures', split='train'); print(len(found), found[0]['png'].size)"
        )
        loading = elsewhere(url, tmp_path, "-c", code)
        assert loading.communicate(timeout=60)[0].splitlines() == ["14 (16, 16)"]


def test_a_second_push_sends_nothing_and_one_after_a_retry_only_what_changed(made, output, hub, endpoint):
    plan, _ = made
    assert push(output, "me/pictures").exit_code == 0
    sent, commits = len(hub.uploads), len(hub.commits)
    again = push(output, "me/pictures")
    assert again.exit_code == 0 and ": 0 files sent (0 B), " in again.stdout
    assert (len(hub.uploads), len(hub.commits)) == (sent, commits)

    commit_planned(str(output), plan, [2], {2: 1})
    drop_earlier(str(output), 2, 1)
    finish(plan, str(output), read_records(str(output)))
    third = push(output, "me/pictures")
    assert third.exit_code == 0 and ", 3 old files removed" in third.stdout
    assert hub.files("me/pictures") == published(output)
    assert hub.commits[commits] == ["index.json", "_SUCCESS"]  # taken away before shards were
    assert len(hub.uploads) == sent  # a shard made again has the same bytes, which the Hub knew under another name


def test_an_output_on_s3_is_pushed_from_there(output, hub, endpoint, s3_bucket, monkeypatch):
    monkeypatch.setattr(pushing, "BYTES_AT_ONCE", 1)  # a file at a time
    fsspec.filesystem("s3").put(f"{output}/", f"{s3_bucket}/out", recursive=True)
    result = push(f"{s3_bucket}/out", "pictures")
    assert result.exit_code == 0, result.output
    assert hub.files("me/pictures") == published(output)


def test_a_branch_is_pushed_to_beside_main_and_options_say_which_folders_go_along(output, hub, endpoint):
    result = push(output, "pictures", "--revision", "v2", "--private", "--no-plan", "--stats")
    assert result.exit_code == 0, result.output
    assert hub.repositories["me/pictures"]["private"] and hub.files("me/pictures") == {}
    wanted = {path: content for path, content in published(output, "stats").items() if not path.startswith("plan/")}
    assert hub.files("me/pictures", "v2") == wanted


def test_private_refuses_a_repository_that_is_public(output, hub, endpoint):
    assert push(output, "pictures").exit_code == 0
    before = list(hub.commits)
    assert "me/pictures is public, and --private does not change that" in refused(push(output, "pictures", "--private"))
    assert hub.commits == before


THEIRS = {
    "README.md": b"theirs",
    "data/000000.parquet": b"rows",
    "data/000123.tar.md": b"notes",
    "plan/roadmap.md": b"plan",
    "plan/shards/0.json.gz": b"plan",
    "commits/history.csv": b"a,b",
    "commits/12.json": b"{}",
    "notes/a.txt": b"notes",
}


@pytest.fixture
def repository(hub):
    """The files of a repository that is there already."""
    hub.repositories["me/pictures"] = {"private": False, "branches": {"main": {".gitattributes": b"*.tar filter=lfs\n"}}}
    return hub.repositories["me/pictures"]["branches"]["main"]


def test_a_repository_of_other_data_is_left_alone_and_even_in_its_place_only_what_a_push_makes_is_taken_away(
    output, hub, endpoint, repository
):
    repository.update(THEIRS)
    before = dict(repository)
    said = "me/pictures: holds commits/12.json, and is not of a dataset like this; name another repository, or give --replace"
    assert said in refused(push(output, "pictures"))
    assert repository == before and hub.commits == []
    assert push(output, "pictures", "--replace").exit_code == 0
    assert hub.files("me/pictures") == {**THEIRS, **published(output)}
    assert push(output, "pictures").exit_code == 0  # it is this dataset's now


def test_what_would_be_read_as_part_of_a_dataset_is_neither_taken_away_nor_left_in(output, hub, endpoint, repository):
    assert push(output, "pictures").exit_code == 0
    before = len(hub.commits)
    repository["data/theirs.tar"] = b"theirs"
    for more in ((), ("--replace",)):
        assert "holds data/theirs.tar, which would be read as part of the dataset" in refused(push(output, "pictures", *more))
    assert len(hub.commits) == before and "data/theirs.tar" in repository


def test_files_of_shards_that_are_gone_are_taken_away(output, hub, endpoint, repository):
    repository["README.md"] = b"what the Hub's own form puts there"
    assert push(output, "pictures").exit_code == 0
    gone = ("data/000009.tar", "metadata/000009.1.parquet", "commits/000009.1.json", "plan/shards/000009.json.gz")
    repository.update(dict.fromkeys((*gone, f"plan/earlier/{'0' * 64}.json"), b"of an earlier, longer dataset"))
    assert push(output, "pictures").exit_code == 0
    assert hub.files("me/pictures") == published(output)


@pytest.mark.parametrize("cut_off", [False, True])
def test_another_dataset_of_promptmills_is_replaced_only_where_that_is_asked(output, hub, endpoint, repository, other, cut_off):
    assert push(other, "pictures").exit_code == 0
    if cut_off:
        del repository["index.json"], repository["_SUCCESS"]
    before, commits = dict(repository), len(hub.commits)
    by = "commits/000000.json" if cut_off else "index.json"
    assert f"me/pictures: holds another dataset, by its {by}; name another" in refused(push(output, "pictures"))
    assert repository == before and len(hub.commits) == commits
    # Begun with --replace and cut off, it goes on without.
    begun = pushing._Hub.commit

    def once(self, message, files, removed=()):
        begun(self, message, files, removed)
        if files:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pushing, "FILES_A_COMMIT", 3)  # a shard
        patch.setattr(pushing._Hub, "commit", once)
        assert push(output, "pictures", "--replace").exit_code == 130
    assert repository["commits/000000.json"] != before["commits/000000.json"]
    assert repository["commits/000002.json"] == before["commits/000002.json"]
    assert push(output, "pictures").exit_code == 0
    assert hub.files("me/pictures") == published(output)


def test_a_dataset_whose_changes_were_accepted_goes_where_it_was(output, hub, endpoint, other):
    assert push(other, "pictures").exit_code == 0
    former = read_plan(other)
    assert former is not None
    write_plan(str(output), former, earlier=True)
    assert push(output, "pictures").exit_code == 0
    assert hub.files("me/pictures") == published(output)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("_SUCCESS", "not finished; `promptmill status"),
        ("data/000002.tar", "data/000002.tar is missing; `promptmill verify"),
        ("README.md", "README.md is missing"),
    ],
)
def test_an_output_that_is_not_finished_or_not_whole_is_refused_before_the_hub_is_asked(output, broken, said):
    delete(join(str(output), broken))
    assert said in refused(push(output, "pictures"))


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_that_is_not_as_its_record_says_is_never_committed(output, hub, endpoint, remote, request):
    where = str(output)
    if remote:
        where = f"{request.getfixturevalue('s3_bucket')}/out"
        fsspec.filesystem("s3").put(f"{output}/", where, recursive=True)
    content = get(join(where, "data/000002.tar"))
    put(join(where, "data/000002.tar"), content[:-1] + b"x")
    assert "data/000002.tar: altered; `promptmill verify" in refused(push(where, "pictures"))
    assert hub.commits == []


@pytest.mark.parametrize(
    ("path", "failure", "said"),
    [
        ("/api/whoami", (401, "bad {authorization}", -1), "HTTP 401, the token is not accepted; log in with `hf auth login`"),
        ("/api/repos", (402, "Payment required", -1), "HTTP 402, the account has to be paid for, or is full (Payment required)"),
        (
            "/datasets/me/pictures.git",
            (403, "Private repository storage limit reached", -1),
            "(Private repository storage limit reached)",
        ),
        ("/api/datasets/me/pictures/commit", (400, "Quota", -1), "HTTP 400 (Quota)"),
        ("/objects", (403, "AccessDenied", -1), "HTTP 403, the token may not write there (AccessDenied)"),
        ("/api/datasets/me/pictures/commit", (503, "Busy", -1), "HTTP 503, the same command goes on once it can (Busy)"),
        ("/api/datasets/me/pictures/tree", (404, "gone", -1), "HTTP 404, no such owner, repository or branch (gone)"),
    ],
)
def test_what_the_hub_refuses_is_one_line_without_the_token(output, hub, endpoint, path, failure, said):
    hub.failing[path] = list(failure)
    assert said in refused(push(output, "pictures"))


def test_a_commit_that_fails_in_passing_is_tried_again(output, hub, endpoint):
    hub.failing["/api/datasets/me/pictures/commit"] = [502, "Bad gateway", 2]
    assert push(output, "pictures").exit_code == 0
    assert hub.files("me/pictures") == published(output)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_commit_whose_answer_was_lost_is_not_made_twice(made, output, hub, endpoint, lost):
    assert push(output, "pictures").exit_code == 0
    commit_planned(str(output), made[0], [2], {2: 1})
    drop_earlier(str(output), 2, 1)
    finish(made[0], str(output), read_records(str(output)))
    before, hub.losing = len(hub.commits), lost
    result = push(output, "pictures")
    assert result.exit_code == 0, result.stderr
    assert hub.files("me/pictures") == published(output)
    assert len(hub.commits) == before + 3  # taken away, added, finished


def test_an_owner_who_is_not_you_a_name_that_is_none_and_a_branch_of_nonsense_are_one_line(output, hub, endpoint):
    assert "HTTP 403, the token may not write there (You don't have the rights" in refused(push(output, "them/pictures"))
    assert "Repo id must" in refused(push(output, "me/pic/tures"))


def test_without_a_token_a_network_or_a_hub_to_ask_one_line_says_so(output, endpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "HF_HUB_OFFLINE is set; unset it to push" in refused(push(output, "pictures"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    huggingface_hub.close_session()
    assert "http://127.0.0.1:9, pictures: cannot be reached: " in refused(push(output, "pictures"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "there is no token; log in with `hf auth login`, or set HF_TOKEN" in refused(push(output, "pictures"))


def test_shards_stay_whole_and_commits_below_a_hundred_files(made):
    record = read_records(made[1])[0]
    many = [
        pushing.File(dataclasses.replace(file.record, path=file.path.replace("000000", f"{shard:06d}")))
        for shard in range(100)
        for file in pushing._files(record)
    ]
    batches = list(pushing._batches(many))
    assert [file for batch in batches for file in batch] == many
    assert [len(batch) for batch in batches] == [96, 96, 96, 12]
