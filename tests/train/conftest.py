"""One thread, no network, and the real CIFAR files where ABLATE_TEST_DATA names them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ablate.train import cifar


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for each test, and a download address where nobody listens."""
    folder = tmp_path / "data"
    monkeypatch.setenv("ABLATE_DATA", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(cifar, "BASE_URL", "http://127.0.0.1:1/")
    return folder


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the real files. Tests that use it carry the mark ``data``."""
    folder = os.environ.get("ABLATE_TEST_DATA")
    if not folder:
        pytest.skip("ABLATE_TEST_DATA names no folder with the real CIFAR files")
    monkeypatch.setenv("ABLATE_DATA", folder)
    return Path(folder)
