"""Declares the command `push`."""

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import without_credentials
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import FAILED


@click.command()
@click.argument("out")
@click.argument("repository")
@click.option("--private", is_flag=True, help="Create it private; refuse one that is public.")
@click.option("--revision", metavar="BRANCH", help="The branch to push to, created where it is not there.  [default: main]")
@click.option("--plan/--no-plan", default=True, help="Push plan/ too, which names your manifest's folders.  [default: plan]")
@click.option("--stats/--no-stats", default=False, help="Push stats/ too: times and host names.  [default: no-stats]")
@click.option("--replace", is_flag=True, help="Put it in the place of another dataset that the repository holds.")
def push(out: str, repository: str, private: bool, revision: str | None, plan: bool, stats: bool, replace: bool) -> None:
    """Upload a finished dataset to the Hugging Face Hub; given again, it sends only what is missing there.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    from promptmill.jobs.sharing.hub_errors import PushError
    from promptmill.jobs.sharing.push import push as upload

    with one_line_errors():
        without_credentials(out)
        try:
            done = upload(out, repository, private, revision, plan, stats, replace, lambda line: echo(line, err=True))
        except PushError as error:
            stop(FAILED, str(error))
        removed = f", {summary.many(done.removed, 'old file')} removed" if done.removed else ""
        sent = f"{summary.many(done.sent, 'file')} sent ({summary.size(done.bytes)})"
        echo(f"{done.url}: {sent}, {done.there:,} were there{removed}")
