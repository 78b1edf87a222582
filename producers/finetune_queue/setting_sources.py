"""Where settings are read from: the environment, a `.env` file, a folder of secret files. Nothing is checked here."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SecretsSettingsSource
from pydantic_settings import SettingsError as PydanticSettingsError

DEFAULT_SECRETS_DIR = Path("/run/secrets")
PREFIXES = ("finetune_", "segmind_")

# What Kubernetes sets in every pod for a Service whose name begins like our settings ("finetune-redis"): not a typo.
_SERVICE_LINK = re.compile(r"\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)", re.I)

Given = dict[str, tuple[Any, str]]
"""Setting name in lower case -> its raw value, None for an unknown name, and the source that it came from."""


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIXES) and not _SERVICE_LINK.fullmatch(name)


def read_mapping(model: type[BaseSettings], environ: Mapping[str, str]) -> tuple[Given, list[str]]:
    """Return the settings among these variables, and unknown names that begin like one; the list of problems is empty,
    as no source can be unreadable."""
    found = {name.lower(): (value, "given") for name, value in environ.items() if value}
    return {name: pair for name, pair in found.items() if name in model.model_fields or _is_ours(name)}, []


@contextmanager
def _no_unreadable_lines(problems: list[str]) -> Iterator[None]:
    """Add a problem for each line of `.env` that python-dotenv cannot read. It would only skip the line, and log
    neither the file nor that a setting now has its default."""

    def tell(record: logging.LogRecord) -> bool:
        line = record.args[0] if isinstance(record.args, tuple) and record.args else "?"
        problems.append(f".env: line {line} cannot be read. Write NAME=value, and close quotes")
        return False

    logger = logging.getLogger("dotenv.main")
    logger.addFilter(tell)
    try:
        yield
    finally:
        logger.removeFilter(tell)


def read_sources(model: type[BaseSettings]) -> tuple[Given, list[str]]:
    """Return the settings of all sources, and unknown names that begin like one; also a problem for each source that
    cannot be read."""
    problems: list[str] = []
    env = EnvSettingsSource(model)
    try:
        with _no_unreadable_lines(problems):
            dotenv = DotEnvSettingsSource(model, env_file=Path(".env"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f".env: cannot be read ({type(error).__name__})")
        dotenv = DotEnvSettingsSource(model, env_file=None)
    sources: list[tuple[str, Iterable[str], Mapping[str, Any]]] = [
        ("environment", env.env_vars, env()),
        (".env", dotenv.env_vars, dotenv()),
    ]
    chosen = env.env_vars.get("finetune_secrets_dir") or dotenv.env_vars.get("finetune_secrets_dir")
    folder = Path(chosen) if chosen else DEFAULT_SECRETS_DIR
    if folder.is_dir():
        try:
            files: list[str] = [path.name.lower() for path in folder.iterdir() if path.is_file()]
            secrets = {name: value for name, value in SecretsSettingsSource(model, folder)().items() if value}
        except (OSError, PydanticSettingsError) as error:
            problems.append(f"FINETUNE_SECRETS_DIR: a file in {folder} cannot be read ({type(error).__name__})")
        else:
            sources.append((f"file in {folder}", files, secrets))
    elif chosen:
        problems.append(f"FINETUNE_SECRETS_DIR: {folder} is not a folder. Example: FINETUNE_SECRETS_DIR=/run/secrets")
    given: Given = {}
    for source, names, values in sources:
        for name in names:
            if name not in model.model_fields and _is_ours(name):
                given.setdefault(name, (None, source))
        for name, value in values.items():
            given.setdefault(name, (value, source))
    return given, problems
