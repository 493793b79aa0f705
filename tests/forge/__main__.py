"""Writes into docs/security.md what each command says to each hostile dataset."""

import tempfile
from pathlib import Path

from tests.forge.answers import COMMANDS, answer, page, reaching, written
from tests.forge.hostile import HOSTILE
from tests.jobs.datasets import planned_dataset
from tests.jobs.sharing.hub import Hub, serving

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def main() -> None:
    answers = {}
    with tempfile.TemporaryDirectory() as place:
        plan, clean = planned_dataset(Path(place), "defaults.steps=2", "model.batch=1")
        for name in HOSTILE:
            for command in COMMANDS:
                folder, hub = Path(place, name, command), Hub()
                folder.mkdir(parents=True)
                with serving(hub) as url, reaching(url):
                    answers[name, command] = answer(Path(clean), plan, folder, name, command, hub)
    before, _, after = written(SECURITY.read_text())
    SECURITY.write_text(f"{before}\n{page(answers)}\n{after}")


if __name__ == "__main__":
    main()
