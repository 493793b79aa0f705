"""A submitted run on a real cluster whose nodes go and come: `python -m tests.clusters.demo [--s3]`, some five minutes.

Starts a head and a node, submits the embedded family with an elastic pool, follows it, kills the node with all that runs on it once
a shard is committed, adds another, and compares what comes out with a run on this machine alone, byte by byte. With --s3 the output
lies on an S3 server on loopback. Prints the commands and what they said, as docs/cluster.md has them.
"""

import json
import shlex
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import boto3
import click
import fsspec
import numpy as np
import psutil
from moto.server import ThreadedMotoServer

from promptmill.embedded.world import describe, sample_scene
from tests.chaos.site import published
from tests.clusters.nodes import Nodes, nodes, promptmill

SETTINGS = ("--set", "runtime.generators={min: 1, max: 4}", "--set", "manifest=prompts.txt", "--set", "shards.size=12")
PROMPTS = 60


def say(command: list[str], said: str) -> None:
    click.echo(f"$ {shlex.join(command)}")
    click.echo("".join(f"{line}\n" for line in said.splitlines()))


def run(arguments: list[str], folder: Path, **environment: str) -> tuple[str, str]:
    """Run the command to its end and show it; returns what it said."""
    process = promptmill(*arguments, folder=folder, **environment)
    said, errors = process.communicate(timeout=900)
    if process.returncode:
        raise click.ClickException(f"{arguments}: {process.returncode}: {errors}")
    return said, errors


def generators(cluster: Nodes) -> str:
    """How many generators each node has."""
    counts = []
    for number, node in enumerate(cluster.nodes):
        if node.poll() is None:
            titles = [" ".join(each.cmdline()) for each in psutil.Process(node.pid).children(recursive=True)]
            counts.append(
                f"{'head' if number == 0 else f'node {number}'}: {sum(title.startswith('ray::Generator') for title in titles)}"
            )
    return ", ".join(counts)


def follow(process, cluster: Nodes) -> list[str]:
    """Follow a submission; kill its second node once a shard is committed, and add another."""
    lines: list[str] = []
    changed = threading.Event()

    def change() -> None:
        click.echo(f"# generators: {generators(cluster)}; node 1 is killed with all that runs on it")
        cluster.kill(cluster.nodes[1])
        time.sleep(5)
        cluster.add()
        click.echo("# node 2 has joined")
        changed.set()

    for line in process.stdout:
        lines.append(line.rstrip())
        if '"shard"' in line and len([each for each in lines if '"shard"' in each]) == 1:
            threading.Thread(target=change).start()
        if changed.is_set() and '"progress"' in line and "node 2: " in (now := generators(cluster)) and "node 2: 0" not in now:
            click.echo(f"# generators: {now}")
            changed.clear()
    return lines


@click.command()
@click.option("--s3", is_flag=True, help="With the output on S3.")
def main(s3: bool) -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, environment = Path(name), {}
        (folder / "nodes").mkdir()
        rng = np.random.default_rng(0)
        (folder / "prompts.txt").write_text("".join(f"{describe(sample_scene(rng))}\n" for _ in range(PROMPTS)))
        out = str(folder / "out")
        if s3:
            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            stack.callback(server.stop)
            host, port = server.get_host_and_port()
            environment = {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            }
            environment["AWS_DEFAULT_REGION"] = "us-east-1"
            keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
            boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **keys).create_bucket(Bucket="renders")
            client = {"endpoint_url": environment["AWS_ENDPOINT_URL"], "key": "test", "secret": "test"}
            fsspec.config.conf["s3"] = client
            out = "s3://renders/circles"
        cluster = stack.enter_context(nodes(folder / "nodes", **environment))
        asked = ["submit", "embedded", *SETTINGS, "--out", out, "--address", cluster.address]
        began = time.monotonic()
        process = promptmill(*asked, folder=folder, RAY_AUTH_TOKEN=cluster.token, **environment)
        lines = follow(process, cluster)
        errors = process.stderr.read()
        if process.wait():
            raise click.ClickException(errors)
        spent = time.monotonic() - began
        shown = [line for line in lines if json.loads(line)["event"] != "progress"] if all(lines) else lines
        say(["promptmill", *asked], "\n".join([*errors.splitlines()[:2], *shown, *errors.splitlines()[-8:]]))
        for command in (["job", "list"],):
            said, _ = run([*command, "--address", cluster.address], folder, RAY_AUTH_TOKEN=cluster.token)
            say(["promptmill", *command, "--address", cluster.address], said)
        run(["run", "embedded", *SETTINGS, "--out", str(folder / "calm")], folder)
        same = published(out) == published(folder / "calm")
        click.echo(f"# {spent:.0f} s; the same bytes as a run on one machine: {'yes' if same else 'NO'}")
        said, _ = run(["verify", out], folder, **environment)
        say(["promptmill", "verify", out], said)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
