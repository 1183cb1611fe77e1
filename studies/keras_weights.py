"""Weights of a Keras ResNet V2, from the files that Keras writes to the names and layouts of resnet50v2.py.

    python studies/keras_weights.py resnet50v2.weights.h5 resnet50v2.pt     converts a file, so that h5py isn't needed

Three kinds are read: legacy .h5 (what Keras publishes, and `model.save("x.h5")` writes), Keras 3's .weights.h5, and
.keras. A classifier on top, a head and an optimizer are passed over. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from ablate.errors import AblateError, DataError, EnvironmentFault
from ablate.train.cifar import data_folder

# in the order in which Keras 3 numbers them
CONV = {"kernel": "weight", "bias": "bias"}
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
LAYER = re.compile(r"(?:(conv\d+_block\d+)_)?(conv1_conv|post_bn|preact_bn|\d_conv|\d_bn)")
HOME = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"


def find(name: str) -> Path:
    """Return the file of that path, which counts from the data folder. Raises DataError where there is none."""
    path = data_folder() / Path(name).expanduser()
    if not path.is_file():
        raise DataError(
            f"there is no file {path}, which `model.weights` names",
            hint=f"put it there (Keras publishes its own at {HOME}), set another path, or `none` for random weights",
        )
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(backbone: nn.Module, path: Path) -> None:
    """Give the backbone the weights of the file: all of its layers, or none and an AblateError that says why."""
    found = read(path)
    wanted = {name: value for name, value in backbone.state_dict().items() if not name.endswith("num_batches_tracked")}
    faults = [f"has no `{name}`" for name in wanted if name not in found]
    faults += [f"has `{name}`, which the network has not" for name in found if name not in wanted]
    faults += [
        f"has `{name}` of shape {list(value.shape)}, the network's is {list(wanted[name].shape)}"
        for name, value in found.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if faults:
        more = f" ({len(faults)} such differences)" if len(faults) > 1 else ""
        raise AblateError(
            f"{path} is of another network: it {faults[0]}{more}",
            hint="`model.weights` must fit `model.blocks`, `model.widths` and the images' channels (Keras's have 3)",
        )
    backbone.load_state_dict(found, strict=False)  # without BatchNorm's count of batches, which is not used


def read(path: Path) -> dict[str, Tensor]:
    """Return the backbone's weights that the file holds, float32, by the names of its state dict.

    Raises DataError for a file that can't be read, AblateError for one with other contents.
    """
    try:
        if path.suffix == ".pt":
            return _converted(path)
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return _of_keras(io.BytesIO(archive.read("model.weights.h5")), path)
        return _of_keras(path, path)
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as failure:
        reason = str(failure).partition("\n")[0]
        raise DataError(
            f"{path} can't be read as weights: {reason}", hint="a .h5 or .keras file of Keras, or a converted .pt file"
        ) from None


def _converted(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise AblateError(f"{path} is no state dict", hint="convert it by `python studies/keras_weights.py`")
    return {str(name): value for name, value in state.items() if not str(name).endswith("num_batches_tracked")}


def _of_keras(file: Path | IO[bytes], path: Path) -> dict[str, Tensor]:
    try:
        import h5py
    except ImportError:
        raise EnvironmentFault(
            f"{path} is read by h5py, which is not installed", hint="pip install 'ablation-study[keras]'"
        ) from None
    state: dict[str, Tensor] = {}
    with h5py.File(file) as opened:
        for layer, variable, dataset in _variables(opened):
            match = LAYER.fullmatch(layer)
            if not match:
                continue
            names = NORM if layer.endswith("bn") else CONV
            if variable.isdecimal() and int(variable) < len(names):
                variable = list(names)[int(variable)]
            name = ".".join(filter(None, [*match.groups(), names.get(variable, variable)]))
            if name in state:
                raise AblateError(f"{path} has two layers `{layer}`", hint="save the ResNet alone")
            if dataset.dtype.kind != "f":  # bfloat16 stands there as whole numbers
                raise AblateError(f"{path}: `{layer}` holds {dataset.dtype}, not floats", hint="save it as float32")
            value = torch.as_tensor(dataset.astype("float32")[()])
            state[name] = value.permute(3, 2, 0, 1).contiguous() if value.dim() == 4 else value
    if not state:
        raise AblateError(
            f"{path} names no layer of a ResNet V2",
            hint="Keras before 3.6 writes no names into .weights.h5 and .keras: save it as .h5",
        )
    return state


def _variables(opened: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield each array of an HDF5 file with its layer's name, and with its own: a word (legacy), or its number."""
    arrays: list[str] = []
    opened.visit(arrays.append)
    for place in arrays:
        if hasattr(dataset := opened[place], "dtype"):
            group = dataset.parent
            layer = group.attrs.get("name") or group.name.rpartition("/")[2]
            yield str(layer), place.rpartition("/")[2].partition(":")[0], dataset


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: keras_weights.py KERAS_FILE TO.pt", file=sys.stderr)
        return AblateError.exit_code
    source, target = map(Path, arguments)
    try:
        if target.suffix != ".pt":
            raise AblateError(f"{target} should end in .pt")
        state = read(source)
    except AblateError as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    torch.save(state, target)
    print(f"{target}: {sum(value.numel() for value in state.values()):,} parameters of {len(state)} arrays")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
