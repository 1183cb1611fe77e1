"""Parts that never overlap, statistics of the training part alone, and files that are what was published."""

import gzip
import hashlib
import io
import pickle
import shutil
import struct
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablate.errors import AblateError, DataError
from ablate.train import cifar
from ablate.train.data import ImageData, load, mean_and_std, resized, split
from tests.loopback import Server, serving

DIGITS = {"name": "digits", "split_seed": 0, "validation": 200}
HUNDRED = {"name": "cifar100", "split_seed": 0, "validation": 10}
TRAIN, TEST = "cifar-100-binary/train.bin", "cifar-100-binary/test.bin"


def rows(images: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in images.flatten(1)]


# --- the split ---------------------------------------------------------------------------------------------------


@given(st.integers(2, 300), st.data())
def test_no_index_is_in_two_parts_and_none_is_invented(count: int, data: st.DataObject) -> None:
    validation = data.draw(st.integers(1, count - 1))
    subset = data.draw(st.none() | st.integers(1, count - validation))
    train, held_out = split(count, validation=validation, subset=subset, split_seed=data.draw(st.integers(0, 9)))
    assert len(held_out) == validation
    assert len(train) == (subset or count - validation)
    assert len({*train.tolist(), *held_out.tolist()}) == len(train) + len(held_out)
    assert {*train.tolist(), *held_out.tolist()} <= set(range(count))


def test_a_smaller_subset_is_a_prefix_and_leaves_the_validation_part_alone() -> None:
    small, held_out = split(100, validation=20, subset=30, split_seed=1)
    whole, same = split(100, validation=20, subset=None, split_seed=1)
    assert torch.equal(small, whole[:30])
    assert torch.equal(held_out, same)


def test_another_split_seed_holds_out_other_images() -> None:
    _, one = split(1000, validation=100, subset=None, split_seed=1)
    _, two = split(1000, validation=100, subset=None, split_seed=2)
    assert set(one.tolist()) != set(two.tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"validation": 1437},
            "error: `data.validation: 1437` ask for more images than the 1437 of the training set\n"
            "hint: none would be left to train on; lower one of them",
        ),
        (
            {"validation": 1000, "subset": 438},
            "error: `data.validation: 1000` and `data.subset: 438` ask for more images than the 1437 of the training "
            "set\nhint: at most 437 remain for `data.subset`; lower one of them",
        ),
        (
            {"validaton": 3},
            "error: unknown setting `data.validaton`\nhint: did you mean `data.validation`? the keys of `data` are: "
            "name, labels, size, split_seed, validation, subset, path, resize, test",
        ),
        ({"name": "mnist"}, "error: `data.name` should be 'cifar10', 'cifar100', 'digits' or 'folder', not 'mnist'"),
        ({"validation": 0}, "error: `data.validation` should be greater than or equal to 1, not 0"),
        ({"subset": True}, "error: `data.subset` should be a valid integer, not True"),
        ({"split_seed": 0.0}, "error: `data.split_seed` should be a valid integer, not 0.0"),
        (
            {"labels": "fine"},
            "error: `data`: only cifar100 has fine and coarse labels, digits has one kind; remove `labels`",
        ),
    ],
)
def test_a_wrong_setting_is_said_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AblateError) as failure:
        load(DIGITS | settings)
    assert str(failure.value) == message
    assert failure.value.exit_code == 2


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(AblateError) as failure:
        load({"name": "digits", "validation": -1, "sise": 4})
    assert [fault.message for fault in failure.value.faults] == [
        "setting `data.split_seed` is missing",
        "`data.validation` should be greater than or equal to 1, not -1",
        "unknown setting `data.sise`",
    ]


# --- digits ------------------------------------------------------------------------------------------------------


def test_digits_parts_hold_every_image_once() -> None:
    data = load(DIGITS)
    assert (len(data.train), len(data.validation), len(data.read_test())) == (1237, 200, 360)
    assert (data.classes, data.channels, data.size) == (10, 1, 8)
    parts = [data.train, data.validation, data.read_test()]
    # scikit-learn's set holds no image twice, so equal pixels would be one image in two parts
    assert len({row for part in parts for row in rows(part.images)}) == 1797
    assert all(part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64 for part in parts)


def test_digits_pixels_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    known = {np.round(v * 255 / 16).astype(np.uint8).tobytes(): t for v, t in zip(pixels, targets, strict=True)}
    data = load(DIGITS)
    for part in (data.train, data.validation, data.read_test()):
        assert [known[row] for row in rows(part.images)] == part.labels.tolist()


def test_digits_test_set_is_stratified_and_depends_on_nothing() -> None:
    test = load(DIGITS).read_test()
    assert torch.bincount(test.labels).tolist() == [36] * 10
    other = load(DIGITS | {"split_seed": 7, "validation": 5, "subset": 100}).read_test()
    assert torch.equal(test.images, other.images)


# --- statistics and size -----------------------------------------------------------------------------------------


def test_mean_and_std_are_the_training_parts_alone() -> None:
    data = load(DIGITS | {"subset": 300})
    pixels = data.train.images.numpy().astype(np.float64) / 255
    assert data.mean.dtype == data.std.dtype == torch.float32
    np.testing.assert_array_equal(data.mean.numpy(), pixels.mean(axis=(0, 2, 3)).astype(np.float32))
    np.testing.assert_array_equal(data.std.numpy(), pixels.std(axis=(0, 2, 3)).astype(np.float32))
    everything = np.concatenate([pixels, data.validation.images.numpy() / 255])
    assert data.mean.item() != pytest.approx(everything.mean(), abs=1e-6)


def test_mean_and_std_of_several_chunks_and_channels() -> None:
    images = torch.randint(0, 256, (700, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = mean_and_std(images)
    np.testing.assert_allclose(mean, (images.numpy() / 255).mean(axis=(0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(std, (images.numpy() / 255).std(axis=(0, 2, 3)), rtol=1e-7)


def test_size_resizes_every_part_and_the_test_set() -> None:
    data = load(DIGITS | {"size": 12})
    assert data.size == 12
    for part in (data.train, data.validation, data.read_test()):
        assert part.images.shape[1:] == (1, 12, 12)
        assert part.images.dtype == torch.uint8


def test_resizing_is_bilinear_and_rounds() -> None:
    # doubling [0, 10]: pixel centres fall at -1/4, 1/4, 3/4, 5/4 of the source: 0, 2.5, 7.5, 10; halves round to even
    image = torch.tensor([[0, 10], [0, 10]], dtype=torch.uint8)[None, None]
    assert resized(image, 4, "cpu")[0, 0].tolist() == [[0, 2, 8, 10]] * 4


def test_resizing_a_constant_image_keeps_its_value() -> None:
    images = torch.full((300, 3, 8, 8), 255, dtype=torch.uint8)
    assert resized(images, 5, "cpu").unique().tolist() == [255]


# --- CIFAR files, made up here -----------------------------------------------------------------------------------


def made_up(labels: int, count: int, seed: int) -> bytes:
    """Records of a made-up CIFAR file: random pixels, labels in range."""
    generator = np.random.default_rng(seed)
    columns = [generator.integers(0, high, (count, 1)) for high in ((10,) if labels == 1 else (20, 100))]
    pixels = generator.integers(0, 256, (count, 3072))
    return np.concatenate([*columns, pixels], axis=1).astype(np.uint8).tobytes()


def python2_pickle(records: bytes, label_keys: tuple[str, ...]) -> bytes:
    """The bytes that Python 2's cPickle (protocol 2) wrote for a CIFAR batch: str, lists of int, one uint8 array."""
    table = np.frombuffer(records, np.uint8).reshape(-1, len(label_keys) + 3072)
    pixels = table[:, len(label_keys) :].tobytes()

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    out = b"\x80\x02}(" + text("batch_label") + text("training batch 1 of 1")
    for column, key in enumerate(label_keys):
        out += text(key) + b"](" + b"".join(b"K" + bytes([v]) for v in table[:, column].tolist()) + b"e"
    out += text("data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
    out += b"K\x01J" + struct.pack("<i", len(table)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    out += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return out + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tbu."


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Made-up content of every CIFAR file, and its SHA-256 in place of the published one."""
    content = {name: made_up(2 if "100" in name else 1, 40, seed) for seed, name in enumerate(sorted(cifar.SHA256))}
    monkeypatch.setattr(cifar, "SHA256", {n: hashlib.sha256(data).hexdigest() for n, data in content.items()})
    return content


def write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def only(files: dict[str, bytes], word: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if word in name}


def all_rows(data: ImageData) -> list[bytes]:
    return sorted(rows(data.train.images) + rows(data.validation.images))


def records_of(content: bytes, labels: int) -> list[bytes]:
    return sorted(content[i + labels : i + labels + 3072] for i in range(0, len(content), labels + 3072))


def test_the_binary_version_is_read(data_home: Path, files: dict[str, bytes]) -> None:
    write(data_home, files)
    data = load(HUNDRED)
    assert (data.classes, data.channels, data.size, len(data.train)) == (100, 3, 32, 30)
    assert all_rows(data) == records_of(files[TRAIN], 2)
    test = data.read_test()
    assert rows(test.images) == [files[TEST][i + 2 : i + 3074] for i in range(0, len(files[TEST]), 3074)]
    assert test.labels.tolist() == list(files[TEST][1::3074])


def test_coarse_labels_are_the_first_byte(data_home: Path, files: dict[str, bytes]) -> None:
    write(data_home, files)
    data = load(HUNDRED | {"labels": "coarse"})
    assert data.classes == 20
    assert data.read_test().labels.tolist() == list(files[TEST][0::3074])


def test_cifar10_joins_its_five_batches(data_home: Path, files: dict[str, bytes]) -> None:
    write(data_home, files)
    data = load(HUNDRED | {"name": "cifar10"})
    assert (data.classes, len(data.train)) == (10, 190)
    assert all_rows(data) == records_of(
        b"".join(files[f"cifar-10-batches-bin/data_batch_{i}.bin"] for i in range(1, 6)), 1
    )
    assert data.read_test().labels.tolist() == list(files["cifar-10-batches-bin/test_batch.bin"][0::3073])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_torchvisions_pickles_give_the_same_images(data_home: Path, files: dict[str, bytes], name: str) -> None:
    write(data_home, files)
    expected = load(HUNDRED | {"name": name})
    source = cifar.SOURCES[name]
    for binary, pickled in source.train + source.test:
        (data_home / binary).unlink()
        write(data_home, {pickled: python2_pickle(files[binary], source.label_keys)})
    shutil.rmtree(data_home / "prepared")
    data = load(HUNDRED | {"name": name})
    assert torch.equal(data.train.images, expected.train.images)
    assert torch.equal(data.train.labels, expected.train.labels)
    assert torch.equal(data.read_test().images, expected.read_test().images)


def test_a_changed_pixel_is_found(data_home: Path, files: dict[str, bytes]) -> None:
    write(data_home, files)
    write(data_home, {TRAIN: files[TRAIN][:-1] + bytes([files[TRAIN][-1] ^ 1])})
    with pytest.raises(DataError) as failure:
        load(HUNDRED)
    assert str(failure.value) == (
        f"error: {data_home / TRAIN} differs from the published CIFAR-100: its SHA-256 is another\n"
        "hint: delete the file; the next run downloads it again"
    )
    assert failure.value.exit_code == 4


def test_a_changed_test_set_is_found_when_it_is_read(data_home: Path, files: dict[str, bytes]) -> None:
    write(data_home, files | {TEST: files[TRAIN]})
    data = load(HUNDRED)
    with pytest.raises(DataError, match=r"test\.bin differs from the published CIFAR-100"):
        data.read_test()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({b"data": Evil()}), "it asks for builtins.print, which no data set needs"),
        (b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.", "it holds an array of b'O' where bytes should be"),
        (b"\x80\x02}.", "b'coarse_labels'"),
        (b"", "Ran out of input"),
    ],
)
def test_a_bad_pickle_is_refused(
    data_home: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data_home, {"cifar-100-python/train": content, "cifar-100-python/test": b""})
    with pytest.raises(DataError) as failure:
        load(HUNDRED)
    path = data_home / "cifar-100-python/train"
    assert str(failure.value) == f"error: {path} is damaged: {reason}\nhint: delete the file and fetch it again"
    assert "must never run" not in capsys.readouterr().out


def test_the_data_folder_is_the_variable_or_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATE_DATA", "/somewhere")
    assert cifar.data_folder() == Path("/somewhere")
    monkeypatch.delenv("ABLATE_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cifar.data_folder() == Path("/cache/ablate/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cifar.data_folder() == Path("/home/me/.cache/ablate/data")


# --- the download, from a server on the loopback -----------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as server:
        monkeypatch.setattr(cifar, "BASE_URL", f"{server.url}/")
        yield server


def archive_of(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in {"cifar-100-binary/fine_label_names.txt": b"apple\n", **content}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=0)


def failure_to_download(folder: Path, expected: str = f"{TRAIN}, {TEST}") -> str:
    """Load, which must fail with the one message all failed downloads have, and return its reason."""
    with pytest.raises(DataError) as failure:
        load(HUNDRED)
    start = (
        f"error: CIFAR-100 is not in {folder} (expected: {expected}), "
        f"and downloading {cifar.BASE_URL}cifar-100-binary.tar.gz failed: "
    )
    end = "\nhint: unpack cifar-100-binary.tar.gz into a folder and name that folder with ABLATE_DATA or --data-dir"
    text = str(failure.value)
    assert text.startswith(start)
    assert text.endswith(end)
    assert not [*folder.rglob("*.part"), *folder.rglob("*.bin")]
    return text.removeprefix(start).removesuffix(end)


def test_what_is_missing_is_downloaded_once_and_nothing_else_is_kept(
    data_home: Path, files: dict[str, bytes], server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["cifar-100-binary.tar.gz"] = archive_of(only(files, "100"))
    data = load(HUNDRED)
    load(HUNDRED)
    assert all_rows(data) == records_of(files[TRAIN], 2)
    assert server.asked == ["/cifar-100-binary.tar.gz"]
    shutil.rmtree(data_home / "prepared")
    kept = sorted(str(path.relative_to(data_home)) for path in data_home.rglob("*") if path.is_file())
    assert kept == [".download.lock", TEST, TRAIN]
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == f"downloading {cifar.BASE_URL}cifar-100-binary.tar.gz"
    assert set(lines[1:]) <= {f"downloaded {tenth} %" for tenth in range(10, 101, 10)}
    assert len(lines) > 2


def test_a_file_that_is_there_is_left_alone(data_home: Path, files: dict[str, bytes], server: Server) -> None:
    write(data_home, {TRAIN: files[TRAIN]})
    before = (data_home / TRAIN).stat().st_mtime_ns
    server.files["cifar-100-binary.tar.gz"] = archive_of(only(files, "100"))
    load(HUNDRED).read_test()
    assert (data_home / TRAIN).stat().st_mtime_ns == before


def test_workers_side_by_side_download_once(files: dict[str, bytes], server: Server) -> None:
    server.files["cifar-100-binary.tar.gz"] = archive_of(only(files, "100"))
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(load, [HUNDRED] * 8))
    assert len({data.train.images.numpy().tobytes() for data in loaded}) == 1
    assert server.asked == ["/cifar-100-binary.tar.gz"]


def test_a_download_with_a_wrong_hash_is_thrown_away(data_home: Path, files: dict[str, bytes], server: Server) -> None:
    server.files["cifar-100-binary.tar.gz"] = archive_of({TRAIN: files[TEST], TEST: files[TEST]})
    assert failure_to_download(data_home) == f"the SHA-256 of {TRAIN} differs from the published one"


def test_a_truncated_archive_is_thrown_away(data_home: Path, files: dict[str, bytes], server: Server) -> None:
    whole = archive_of(only(files, "100"))
    server.files["cifar-100-binary.tar.gz"] = whole[: len(whole) // 3]
    assert failure_to_download(data_home) == "unexpected end of data"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_an_archive_that_was_made_to_lead_elsewhere(data_home: Path, server: Server, kind: bytes) -> None:
    """Neither what it names above the folder nor a link of a wanted name is made."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("../evil", str(data_home.parent / "evil"), "cifar-100-binary/../../evil", ".download.lock"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        for name in (TRAIN, TEST):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "../evil"
            archive.addfile(link)
    server.files["cifar-100-binary.tar.gz"] = gzip.compress(buffer.getvalue())
    assert failure_to_download(data_home)
    assert sorted(path.name for path in data_home.parent.rglob("*")) == [".download.lock", data_home.name]
    assert not (data_home / ".download.lock").stat().st_size


def test_an_archive_without_end_is_not_unpacked(data_home: Path, server: Server) -> None:
    member = tarfile.TarInfo(TRAIN)
    member.size = 1 << 40
    server.files["cifar-100-binary.tar.gz"] = gzip.compress(member.tobuf() + bytes(100_000))
    assert failure_to_download(data_home) == f"{TRAIN} would have {1 << 40:,} bytes"


def test_an_archive_without_the_file(data_home: Path, server: Server) -> None:
    server.files["cifar-100-binary.tar.gz"] = archive_of({})
    assert failure_to_download(data_home) == f"the archive holds no {TEST}, {TRAIN}"


def test_no_archive_at_all(data_home: Path, server: Server) -> None:
    assert failure_to_download(data_home) == "HTTP Error 404: Not Found"
    server.files["cifar-100-binary.tar.gz"] = b"<html>Please log in to this network</html>" * 100
    assert failure_to_download(data_home) == "not a gzip file"


def test_no_connection(data_home: Path) -> None:
    assert failure_to_download(data_home) == "[Errno 111] Connection refused"


def test_a_folder_that_cannot_be_made(data_home: Path) -> None:
    data_home.write_text("a file where the folder should be")
    assert failure_to_download(data_home) == f"[Errno 17] File exists: '{data_home}'"


# --- the real files ----------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.usefixtures("real_data")
def test_real_cifar100_has_the_published_statistics() -> None:
    data = load({"name": "cifar100", "split_seed": 0, "validation": 5000})
    everything = torch.cat([data.train.images, data.validation.images])
    mean, std = mean_and_std(everything)
    assert mean.tolist() == pytest.approx([0.507075, 0.486549, 0.440918], abs=5e-7)
    assert std.tolist() == pytest.approx([0.267334, 0.256438, 0.276150], abs=5e-7)
    assert torch.bincount(torch.cat([data.train.labels, data.validation.labels])).tolist() == [500] * 100
    assert torch.bincount(data.read_test().labels).tolist() == [100] * 100
    pixels = data.train.images.numpy()
    expected = [(pixels[:, channel] / 255).mean() for channel in range(3)]
    assert data.mean.tolist() == pytest.approx(expected, rel=1e-6)
    assert data.mean.tolist() != mean.tolist()


@pytest.mark.data
def test_real_cifar100_as_torchvision_keeps_it(
    real_data: Path, data_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"name": "cifar100", "split_seed": 0, "validation": 49_000}
    expected = load(settings)
    source = cifar.SOURCES["cifar100"]
    for binary, pickled in source.train + source.test:
        write(data_home, {pickled: python2_pickle((real_data / binary).read_bytes(), source.label_keys)})
    monkeypatch.setenv("ABLATE_DATA", str(data_home))
    data = load(settings)  # checked against the published SHA-256 of the binary version
    assert torch.equal(data.train.images, expected.train.images)
    assert torch.equal(data.train.labels, expected.train.labels)


@pytest.mark.data
def test_real_cifar10_batches_have_the_published_hash(real_data: Path) -> None:
    source = cifar.SOURCES["cifar10"]
    for files in (source.train[:1], source.test):
        if (real_data / files[0][0]).exists():
            records = cifar.read(source, files, real_data)
            assert records.shape == (10_000, 3073)
            assert sorted(set(records[:, 0].tolist())) == list(range(10))
