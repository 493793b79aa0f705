"""References of datasets of format 3 have no hash of an embedding beside a picture, and no row of a second pass says a hash."""

import pytest

from promptmill.configs.columns import COLUMNS, FORMAT, REFERENCES
from promptmill.jobs.sharing.next_manifest import Pass, _form
from promptmill.shards.tables import schema


@pytest.mark.parametrize("format", [3, FORMAT])
def test_rows_of_a_second_pass_say_no_hash_of_a_reference(format):
    declared = [column for column in COLUMNS if column.name == REFERENCES]
    said = _form(schema({}, None, declared=declared, format=format), Pass(conditioning=True))
    assert said.field(REFERENCES).type.value_type.names == ["type", "image", "scale", "mask", "embedding"]
