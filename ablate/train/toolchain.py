"""The compiler that torch.compile calls in its turn. Without torch, so that the runner and `ablate doctor` can look."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

HINT = "install it (on Debian and Ubuntu: `apt install g++ python3-dev`), or take `compile` out of `execution`"
WHOLE = Path(__file__).with_name("whole.sh")


def cpp_compiler() -> str:
    """Return the command that compiles for the CPU, as torch chooses it."""
    return os.environ.get("CXX", "g++")


def missing(*, is_gpu: bool) -> str:
    """Return what torch.compile lacks on this machine; empty where it lacks nothing.

    On a CPU that is a C++ compiler, on a GPU the C compiler by which Triton starts its kernels.
    """
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return f"torch.compile needs the headers of Python, and there is no {sysconfig.get_path('include')}/Python.h"
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    names, kind = (names, "C") if is_gpu else ([cpp_compiler()], "C++")
    if any(shutil.which((shlex.split(name) or [""])[0]) for name in names):
        return ""
    return f"torch.compile needs a {kind} compiler, and there is no `{'` or `'.join(names)}`"
