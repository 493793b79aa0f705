"""Kills of runs whose output lies on S3 behind a proxy that fails requests: `python -m tests.chaos.stored`, some six minutes.

moto's server on loopback; the proxy answers 500 or 503, resets before or after the request went through, cuts answers, stalls, says
409, or 412 after success. Every published object is compared with the files of a calm run on a local disk.
"""

import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import boto3
import click
import fsspec
from moto.server import ThreadedMotoServer

from tests.chaos.matrix import TITLES, UNITS
from tests.chaos.proxy import FaultyProxy
from tests.chaos.site import PUBLISHED, Site, kill_one, plan, problems, published


def upload(template: Path, output: str) -> None:
    """A planned output put onto S3."""
    system, _ = fsspec.core.url_to_fs(output)
    system.put(f"{template}/", f"{output}/", recursive=True)


def everything(output: str) -> dict[str, bytes]:
    """All objects of an output by path."""
    system, place = fsspec.core.url_to_fs(output)
    system.invalidate_cache()
    return {path.removeprefix(f"{place}/"): system.cat_file(path) for path in system.find(place)}


def stored(output: str) -> dict[str, bytes]:
    """As `site.published`, of an output on S3."""
    files = everything(output).items()
    return {path: content for path, content in files if path.split("/")[0] in (*PUBLISHED, "index.json", "README.md")}


@click.command()
@click.option("--kills", default=3, show_default=True, help="Of each kind.")
@click.option("--share", default=0.05, show_default=True, help="Of the requests that fail.")
def main(kills: int, share: float) -> None:
    """Kill runs on S3."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it says every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    given = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update({"AWS_ENDPOINT_URL": endpoint, **given})
    boto3.client("s3").create_bucket(Bucket="chaos")
    rng, faults, wrong = random.Random(0), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        template = plan(folder, UNITS)
        calm = Site.of(template, folder / "calm")
        calm.finish()
        click.echo("| killed | kills | requests that failed | the same bytes |\n|---|---:|---:|---:|")
        for kind in ("driver", *TITLES):
            same = met = failed = 0
            for number in range(kills):
                output, notes = f"s3://chaos/{kind}-{number}", folder / f"{kind}-{number}"
                notes.mkdir()
                upload(template, output)
                with FaultyProxy(endpoint, share=share, seed=number, stall=0.5) as proxy:
                    site = Site(output, notes, None, ("--seconds", "0.1"), {"AWS_ENDPOINT_URL": proxy.url})
                    pause, hit = rng.uniform(0, 4), []

                    def attack(driver: int, kind: str = kind, pause: float = pause, hit: list[bool] = hit) -> None:
                        if kind != "driver":
                            hit.append(kill_one(TITLES[kind], driver, rng))
                            return
                        time.sleep(pause)
                        os.kill(driver, signal.SIGKILL)
                        hit.append(True)

                    if site.run(attack=attack).status:
                        site.finish()
                    faults += proxy.faults
                    failed += sum(proxy.faults.values())
                met += any(hit)
                same += stored(output) == published(Path(calm.out)) and not problems(output)
            click.echo(f"| {kind} | {met} | {failed} | {same} of {kills} |")
            wrong += kills - min(same, met)
    click.echo(f"by kind: {', '.join(f'{kind} {number}' for kind, number in sorted(faults.items()))}")
    server.stop()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
