"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), hash-checked.

Whatever the files were read from, the bytes of the official *binary version* come out: records of one label byte
(CIFAR-100: coarse, fine) and 3072 bytes, the red, green and blue planes of 32×32 pixels. One list of SHA-256 sums
therefore serves both the binary version and the pickles that torchvision keeps.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import io
import os
import pickle
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ablate.errors import DataError
from ablate.failpoints import failpoint

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
TIMEOUT_S = 60
LARGEST = 1 << 28  # bytes of a file: the largest there is has 154 million


@dataclass(frozen=True)
class Source:
    """Where the files of one data set are: ``train`` and ``test`` name (binary, pickled) pairs of files."""

    name: str
    archive: str
    label_keys: tuple[str, ...]
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]


SOURCES = {
    "cifar10": Source(
        name="CIFAR-10",
        archive="cifar-10-binary.tar.gz",
        label_keys=("labels",),
        train=tuple(
            (f"cifar-10-batches-bin/data_batch_{i}.bin", f"cifar-10-batches-py/data_batch_{i}") for i in range(1, 6)
        ),
        test=(("cifar-10-batches-bin/test_batch.bin", "cifar-10-batches-py/test_batch"),),
    ),
    "cifar100": Source(
        name="CIFAR-100",
        archive="cifar-100-binary.tar.gz",
        label_keys=("coarse_labels", "fine_labels"),
        train=(("cifar-100-binary/train.bin", "cifar-100-python/train"),),
        test=(("cifar-100-binary/test.bin", "cifar-100-python/test"),),
    ),
}

SHA256 = {
    "cifar-100-binary/train.bin": "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
    "cifar-100-binary/test.bin": "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
    "cifar-10-batches-bin/data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "cifar-10-batches-bin/data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "cifar-10-batches-bin/data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "cifar-10-batches-bin/data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "cifar-10-batches-bin/data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "cifar-10-batches-bin/test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def data_folder() -> Path:
    """Return the folder that holds the data sets: ``ABLATE_DATA``, else ``ablate/data`` in the user's cache."""
    if chosen := os.environ.get("ABLATE_DATA"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ablate" / "data"


def provide(source: Source, folder: Path) -> None:
    """See to it that ``folder`` holds every file of the data set; what is missing is downloaded, once per folder.

    Raises DataError where that fails. The files' contents are checked when they are read.
    """
    if not _missing(source, folder):
        return
    try:
        failpoint("data-begun")
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / ".download.lock"):
            if missing := _missing(source, folder):  # another worker may have been quicker
                _download(BASE_URL + source.archive, missing, folder)
    except (OSError, EOFError, tarfile.TarError, zlib.error, http.client.HTTPException, _Damaged) as failure:
        if isinstance(failure, urllib.error.HTTPError):
            failure.close()  # it is the server's answer as well, with its connection
        expected = ", ".join(_missing(source, folder))
        reason = str(failure).removeprefix("<urlopen error ").removesuffix(">") or type(failure).__name__
        raise DataError(
            f"{source.name} is not in {folder} (expected: {expected}), "
            f"and downloading {BASE_URL + source.archive} failed: {reason}",
            hint=f"unpack {source.archive} into a folder and name that folder with ABLATE_DATA or --data-dir",
        ) from None


def is_there(source: Source, folder: Path) -> bool:
    """Tell whether ``folder`` holds every file of the data set, without reading one."""
    return not _missing(source, folder)


def read(source: Source, files: tuple[tuple[str, str], ...], folder: Path) -> npt.NDArray[np.uint8]:
    """Return the records of ``files`` (``source.train`` or ``source.test``) as uint8 [N, labels + 3072].

    Raises DataError where a file is missing, can't be read, or differs from the published SHA-256.
    """
    # a bytearray, because torch takes arrays that can be written to
    data = bytearray().join(_read_one(source, binary, pickled, folder) for binary, pickled in files)
    return np.frombuffer(data, np.uint8).reshape(-1, len(source.label_keys) + 3072)


class _Damaged(Exception):
    """What was received is not what was published."""


def _missing(source: Source, folder: Path) -> list[str]:
    pairs = source.train + source.test
    return [binary for binary, other in pairs if not (folder / binary).exists() and not (folder / other).exists()]


def _read_one(source: Source, binary: str, pickled: str, folder: Path) -> bytes:
    path = folder / binary
    try:
        if path.exists():
            data = path.read_bytes()
        else:
            path = folder / pickled
            data = _records(_RestrictedUnpickler(io.BytesIO(path.read_bytes())).load(), source.label_keys)
    except OSError as failure:
        raise DataError(f"{path} can't be read: {failure.strerror}") from None
    except Exception as failure:  # a damaged pickle can fail in any way
        raise DataError(f"{path} is damaged: {failure}", hint="delete the file and fetch it again") from None
    if hashlib.sha256(data).hexdigest() != SHA256[binary]:
        raise DataError(
            f"{path} differs from the published {source.name}: its SHA-256 is another",
            hint="delete the file; the next run downloads it again",
        )
    return data


class _RestrictedUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, strings, numbers and uint8 arrays. Any other class or function is refused.

    An array becomes a ``_Pixels``: numpy itself is never handed what a file made up.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")  # the official pickles were written by Python 2

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype"):
            return _DType if name == "dtype" else _Pixels
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")


class _DType:
    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {name!r} where bytes should be")

    def __setstate__(self, state: object) -> None: ...


class _Pixels:
    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, _dtype, _is_fortran, data = state
        self.rows = np.frombuffer(data, np.uint8).reshape(shape)


def _records(batch: dict[bytes, Any], label_keys: tuple[str, ...]) -> bytes:
    columns = [np.array(batch[key.encode()], np.uint8)[:, None] for key in label_keys]
    return np.concatenate([*columns, batch[b"data"].rows], axis=1).tobytes()


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Let one process in at a time, of all that use the file ``lock``, whose folder is made where it is missing."""
    failpoint("data-lock-begun")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the kernel, however the process ends
        yield


def _download(url: str, wanted: list[str], folder: Path) -> None:
    """Stream the archive and keep the ``wanted`` members only; each appears under its name when it is whole."""
    remaining = set(wanted)
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_S) as response,
        _progress(url, response) as counted,
        tarfile.open(fileobj=counted, mode="r|gz") as archive,
    ):
        for member in archive:
            name = member.name.removeprefix("./")
            if name in remaining and member.size > LARGEST:
                raise _Damaged(f"{name} would have {member.size:,} bytes")
            if name in remaining and (content := archive.extractfile(member)):
                _keep(content, name, folder)
                remaining.discard(name)
            if not remaining:
                return
    raise _Damaged(f"the archive holds no {', '.join(sorted(remaining))}")


def _keep(content: IO[bytes], name: str, folder: Path) -> None:
    failpoint("data-file-begun")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            while block := content.read(1 << 20):
                digest.update(block)
                file.write(block)
            file.flush()
            failpoint("data-file-written")
            os.fsync(file.fileno())
        if digest.hexdigest() != SHA256[name]:
            raise _Damaged(f"the SHA-256 of {name} differs from the published one")
        failpoint("data-file-synced")
        os.replace(part, path)
        failpoint("data-file-renamed")
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Counted:
    """A stream that tells how much of it was read. tarfile needs nothing but ``read``."""

    stream: IO[bytes]
    tell: Callable[[int], None]

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.tell(len(data))
        return data


@contextmanager
def _progress(url: str, response: Any) -> Iterator[Any]:
    """Show on stderr how far the download is: a bar on a terminal, else one line for every tenth."""
    total = int(response.headers.get("Content-Length", 0))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(f"downloading {url}", total=total or None)
            yield _Counted(response, lambda size: bar.advance(task, size))
        return
    print(f"downloading {url}", file=sys.stderr, flush=True)
    done = 0

    def tell(size: int) -> None:
        nonlocal done
        before, done = done, done + size
        if total and done * 10 // total > before * 10 // total:
            print(f"downloaded {done * 10 // total * 10} %", file=sys.stderr, flush=True)

    yield _Counted(response, tell)
