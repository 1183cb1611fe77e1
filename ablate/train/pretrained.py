"""Networks of torchvision and timm without their last layer, with published weights, weights of a file, or none.

Published weights of torchvision are downloaded once into torch's own folder of checkpoints (``TORCH_HOME``) and checked
by the hash that their names hold, at every reading. Files are read as tensors alone (``weights_only``).
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models

from ablate.errors import AblateError, DataError
from ablate.train import cifar
from ablate.train.context import Context

FILES = (".pth", ".pt")
TIMM = "timm/"


def backbone(name: str, weights: str | None, context: Context) -> tuple[nn.Module, int]:
    """Return the network ``name``, float images [B, 3, H, W] → features [B, F], and F.

    name     torchvision's (``resnet18``), or timm's as ``timm/resnet18.a1_in1k``
    weights  of torchvision's enumeration (``IMAGENET1K_V1`` or ``ResNet18_Weights.IMAGENET1K_V1``), for timm
             ``pretrained``; a file's name (see ``weights_file``); or None: drawn at random

    The SHA-256 of what was read is noted as the fact ``weights_sha256``. Raises AblateError for a name that is not
    known, DataError for weights that can't be had or do not fit.
    """
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM), weights, context)
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise AblateError(
            f"torchvision has no network `{name}`",
            hint=f"did you mean `{near[0]}`?" if near else "torchvision.models.list_models() has their names",
        )
    net, features = without_head(models.get_model(name, weights=None))
    if weights is not None:
        load_weights(net, weights_file(weights) if weights.endswith(FILES) else _published(name, weights), context)
    return net, features


def without_head(net: nn.Module) -> tuple[nn.Module, int]:
    """Return the network with its last linear layer left out, and how many features that layer was given."""
    linear = [(path, layer) for path, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise AblateError(f"{type(net).__name__} has no linear layer at its end", hint="choose another network")
    path, layer = linear[-1]
    net.set_submodule(path, nn.Identity())
    return net, layer.in_features


def weights_file(name: str) -> Path:
    """Return where a file of weights is: absolute, or below the data folder, torch's checkpoints or a package's folder.

    So weights that an installed package ships are named ``package/folder/file.pth``.
    """
    places = [cifar.data_folder(), _checkpoints(), *(Path(place) for place in sys.path if place.endswith("-packages"))]
    for path in (place / name for place in places):  # an absolute name stays what it is
        if path.is_file():
            return path
    looked = name if os.path.isabs(name) else f"{name}, looked for in {', '.join(map(str, places))}"
    raise DataError(
        f"there is no file of weights {looked}",
        hint="put it into one of these folders" if looked != name else "",
    )


def load_weights(net: nn.Module, path: Path, context: Context) -> None:
    """Give ``net`` the weights of a file: all of its own, by name and shape; at most a last layer may be left over.

    Raises DataError where the file can't be read, holds other things than tensors, or is of another network.
    """
    try:
        content = path.read_bytes()
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as failure:  # a damaged file can fail in any way
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise DataError(f"{path} is not a file of weights that can be read safely: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path} holds no state dict", hint="write one by torch.save(model.state_dict(), path)")
    own = net.state_dict()
    counted = [name for name in own if name.endswith("num_batches_tracked")]  # older files have none
    missing = [name for name in own if name not in state and name not in counted]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    left = [name for name in state if name not in own]
    if missing or other or not {name.rpartition(".")[2] for name in left} <= {"weight", "bias"} or len(left) > 2:
        kinds = (("missing", missing), ("of another shape", other), ("of no use", left))
        said = "; ".join(f"{len(names)} {kind} ({', '.join(names[:2])} …)" for kind, names in kinds if names)
        raise DataError(f"{path} holds the weights of another network: {said}")
    net.load_state_dict({name: state.get(name, value) for name, value in own.items()})
    context.fact("weights_sha256", hashlib.sha256(content).hexdigest())


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _published(name: str, weights: str) -> Path:
    """Return the file of weights of torchvision's enumeration, downloaded where it is missing."""
    enumeration = models.get_model_weights(name)
    known = enumeration.__members__
    short = weights.removeprefix(f"{enumeration.__name__}.")
    if short not in known:
        raise AblateError(
            f"torchvision's `{name}` has no weights `{weights}`",
            hint=f"there are: {', '.join(known)}; a file's name ends in {' or '.join(FILES)}",
        )
    return provide(known[short].url, _checkpoints())


def provide(url: str, folder: Path) -> Path:
    """Return the file that ``url`` names, in ``folder``; it is downloaded where it is missing, once per folder.

    Its SHA-256 has to begin with the eight or more digits before its suffix (``resnet18-f37072fd.pth``), whether it was
    there or not. Raises DataError where that fails.
    """
    path = folder / url.rpartition("/")[2]
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    prefix = found[1] if found else ""
    try:
        if not path.exists():
            with cifar.only_one(folder / ".ablate.lock"):
                if not path.exists():  # another worker may have been quicker
                    print(f"downloading {url}", file=sys.stderr, flush=True)
                    torch.hub.download_url_to_file(url, str(path), prefix or None, progress=False)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, RuntimeError, EOFError) as failure:
        close = getattr(failure, "close", None)  # an HTTPError is the server's answer as well, with its connection
        if close:
            close()
        reason = str(failure).removeprefix("<urlopen error ").removesuffix(">") or type(failure).__name__
        raise DataError(
            f"the weights {path.name} are not in {folder}, and downloading {url} failed: {reason}",
            hint=f"fetch {url} elsewhere and put it into that folder (TORCH_HOME names the one above hub/)",
        ) from None
    if not digest.startswith(prefix):
        raise DataError(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {prefix}",
            hint="delete the file; the next run downloads it again",
        )
    return path


def _of_timm(name: str, weights: str | None, context: Context) -> tuple[nn.Module, int]:
    try:
        import timm
    except ImportError:
        raise AblateError(
            f"`{TIMM}{name}` needs timm, which is not installed", hint="pip install 'ablation-study[timm]'"
        ) from None
    if weights is not None and weights != "pretrained" and not weights.endswith(FILES):
        raise AblateError(f"`{TIMM}{name}` has no weights `{weights}`", hint="set `pretrained`, a file's name, or null")
    try:
        net: Any = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0)
    except Exception as failure:  # of the network, or of any of the libraries that timm downloads with
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise DataError(
            f"timm can't make `{name}`{' with its weights' if weights else ''}: {reason}",
            hint="timm.list_models() has its names; weights come from huggingface.co into HF_HOME, or from a file "
            "that `weights` names",
        ) from None
    if weights is not None and weights != "pretrained":
        load_weights(net, weights_file(weights), context)
    return net, int(net.num_features)
