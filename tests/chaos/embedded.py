"""Random kills of real runs of the embedded family: `python -m tests.chaos.embedded [--kills 20]`, some quarter of an hour.

The quickstart's requests in every mode at two steps, by `promptmill run`; the driver, a generator, the scorer or a task that
commits is killed at a random moment, the run is resumed where it ended, and every published byte is compared with a calm run's.
"""

import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

from tests.chaos.matrix import TITLES
from tests.chaos.site import Fresh, kill_one, problems, published

SETTINGS = ("defaults.steps=2", "defaults.candidates=2", "model.batch=8", "shards.size=7")
RENDERING = 8.0  # seconds, about, that a calm run renders


@dataclass
class Real(Fresh):
    """A site of the real command."""

    @property
    def command(self) -> list[str]:
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        return [sys.executable, "-m", "promptmill", "run", "quickstart", "--out", self.out, *settings]


def site(folder: Path, name: str) -> Real:
    (folder / name).mkdir()
    return Real(str(folder / name / "out"), folder / name)


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill real runs."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm = site(folder, "calm")
        began = time.monotonic()
        calm.finish()
        click.echo(f"the calm run took {time.monotonic() - began:.0f} s")
        click.echo("| killed | seconds after loading | resumed | the same bytes |\n|---|---:|---|---|")
        wrong = met = number = 0
        while met < kills and number < 4 * kills:
            number += 1
            kind, pause = rng.choice(["driver", *TITLES]), rng.uniform(0, RENDERING)
            here, hit = site(folder, str(number)), []

            def attack(driver: int, kind: str = kind, pause: float = pause, hit: list[bool] = hit) -> None:
                time.sleep(pause)
                if kind != "driver":
                    hit.append(kill_one(TITLES[kind], driver, rng, within_s=8))
                    return
                try:
                    os.kill(driver, signal.SIGKILL)
                    hit.append(True)
                except ProcessLookupError:
                    hit.append(False)

            ended = here.run(attack=attack)
            if ended.status:
                here.finish()
            same = published(Path(here.out)) == published(Path(calm.out)) and not problems(here.out)
            wrong += not same
            met += any(hit)
            who = kind if any(hit) else f"{kind} (had gone)"
            click.echo(f"| {who} | {pause:.1f} | {'yes' if ended.status else 'no'} | {'yes' if same else 'NO'} |")
        click.echo(f"{met} of {number} kills met somebody")
    sys.exit(1 if wrong or met < kills else 0)


if __name__ == "__main__":
    main()
