"""What settings that are refused are told."""

import pytest

from finetune_queue.settings import SettingsError, load_settings


def problems_of(environ: dict[str, str] | None = None, *, worker: bool = False) -> tuple[str, ...]:
    """Return the problems of settings that have some."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, worker=worker)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def problem_of(environ: dict[str, str]) -> str:
    """Return the only problem of settings that have one."""
    [problem] = problems_of(environ)
    return problem
