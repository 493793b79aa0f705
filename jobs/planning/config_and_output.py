"""Reads the config of a command or a call, and finds its output as an absolute path or a URI."""

from collections.abc import Sequence
from pathlib import Path

from promptmill.configs.loading import load
from promptmill.configs.schema import Config
from promptmill.jobs.planning.plan import PlanError
from promptmill.shards.storage import StorageError, check_uri, is_local, local_path


def configured(config: str, out: str | None, settings: Sequence[str]) -> tuple[Config, str]:
    """Read a config, and return the config with its output as an absolute path or a URI: workers have another current folder.

    Raises:
        ConfigError: As `load`.
        PlanError: A URI holds credentials.
    """
    loaded = load(config, settings)
    output = out or loaded.output or f"runs/{Path(config).stem}"
    without_credentials(loaded.model.base)
    for manifest in loaded.patterns:
        without_credentials(manifest)
    return loaded, absolute(output)


def without_credentials(uri: str) -> str:
    """Return a URI unchanged, after a check that it holds no credentials, which belong into the environment.

    Raises:
        PlanError: The URI holds credentials, or is of no known kind.
    """
    try:
        check_uri(uri)
    except StorageError as error:
        raise PlanError([str(error)]) from None
    return uri


def absolute(output: str) -> str:
    """Return an output as an absolute path or a URI."""
    output = without_credentials(output)
    return str(local_path(output).absolute()) if is_local(output) else output.rstrip("/")
