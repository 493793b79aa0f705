import pytest

from promptmill.jobs.running.run import run
from promptmill.shards.commits import CommitError
from promptmill.shards.storage import delete, get, join, names, put
from tests.jobs.running.test_run import Watching


@pytest.mark.parametrize("path", ["data/000000.tar", "metadata/000001.parquet"])
def test_a_dataset_of_which_a_committed_file_was_taken_away_is_not_said_to_be_finished(clean_planned, planned, path):
    content = get(join(planned, path))
    for name in (path, "_SUCCESS", "index.json"):
        delete(join(planned, name))
    with pytest.raises(CommitError, match=f"{path}: was committed, and is gone; .* --repair"):
        run(clean_planned[0], planned, Watching())
    assert not {"_SUCCESS", "index.json"} & {*names(planned)}
    put(join(planned, path), content)
    run(clean_planned[0], planned, Watching())
    assert {"_SUCCESS", "index.json"} <= {*names(planned)}
