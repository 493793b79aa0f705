"""Every command that reads a dataset, given each hostile one: a line or a right answer, and nothing outside is read or touched."""

from pathlib import Path

import pytest

from promptmill.shards.image_reader import ENDINGS
from tests.forge.__main__ import SECURITY
from tests.forge.answers import COMMANDS, SECRET, Answer, answer, page, reaching, written
from tests.forge.hostile import HOSTILE
from tests.jobs.datasets import planned_dataset
from tests.jobs.sharing.hub import Hub, serving

# What each command says in its good cases; a run through stubs says nothing about Ray.
ALL = [(name, command) for name in HOSTILE for command in COMMANDS]
answers: dict[tuple[str, str], Answer] = {}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return planned_dataset(tmp_path_factory.mktemp("clean"), "defaults.steps=2", "model.batch=1")


@pytest.fixture(scope="module")
def answered(clean, tmp_path_factory):
    """The answer of a command to a hostile dataset, asked for once."""

    def ask(name: str, command: str) -> Answer:
        if (name, command) not in answers:
            hub = Hub()
            with serving(hub) as url, reaching(url):
                folder = tmp_path_factory.mktemp("forged")
                answers[name, command] = answer(Path(clean[1]), clean[0], folder, name, command, hub)
        return answers[name, command]

    return ask


@pytest.mark.timeout(60)  # a FIFO would be waited for without end
@pytest.mark.parametrize(("name", "command"), ALL)
def test_a_hostile_dataset_touches_nothing_outside_and_is_answered_in_lines(answered, name, command):
    made = answered(name, command)
    assert made.raised is None and made.status in (0, 1, 2), made.raised
    assert made.said and len(made.lines) < 20 and all(line.isprintable() and len(line) < 800 for line in made.lines)
    assert made.untouched and made.around == ("out", "outside", "to")
    assert made.opened <= set(ENDINGS.values())
    assert SECRET not in made.hub


def test_the_page_on_security_says_what_each_command_says(answered):
    for name, command in ALL:
        answered(name, command)
    _, between, _ = written(SECURITY.read_text())
    assert between.strip() == page(answers).strip(), "python -m tests.forge writes it anew"
