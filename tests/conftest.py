"""Fixtures over the catalogue, and the skip of GPU cases where there is no GPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import catalogue
import faulty
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks ``gpu`` items as skipped on a machine without CUDA; asks torch only if there are any."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=catalogue.names())
def case(request: pytest.FixtureRequest) -> catalogue.Case:
    """Each picture of the catalogue in turn; ``@pytest.mark.parametrize("case", names, indirect=True)`` for fewer."""
    return catalogue.case(request.param)


@pytest.fixture
def tmp_container(tmp_path: Path) -> Path:
    """Where a container can be written; nothing is there yet."""
    return tmp_path / "picture.zarr"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole container, see :func:`faulty.make`; not to be changed."""
    path = tmp_path_factory.mktemp("finished") / "p.zarr"
    faulty.make(path)
    return path


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished`` to damage."""
    return Path(shutil.copytree(finished, tmp_path / "p.zarr"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; returns its exit code and what it wrote to stdout and stderr."""
    from tilecodec import cli

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as left:
            code = int(left.code or 0)
        return code, *capsys.readouterr()

    return run
