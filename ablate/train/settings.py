"""Read a part of the settings tree strictly: nothing unknown, nothing of another kind, nothing out of range."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ablate.errors import Fault, StudyError


class Settings(BaseModel):
    """One mapping of the settings, declared as annotated fields. Frozen; an int may stand for a float, nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def read(cls, given: Mapping[str, Any], where: str) -> Self:
        """Return the declared values of ``given``, which stands at ``where`` in the settings (``data``).

        Raises StudyError (an AblateError) with every fault of the mapping: a key that nobody would read is a silent
        no-op, the worst fault that an ablation can have.
        """
        if not isinstance(given, Mapping):
            raise StudyError([Fault(f"`{where}` must be a mapping, not {given!r}")])
        try:
            return cls.model_validate(dict(given))
        except ValidationError as failure:
            known = list(cls.model_fields)
            raise StudyError(_fault(dict(error), where, known) for error in failure.errors()) from None


def _fault(error: dict[str, Any], where: str, known: list[str]) -> Fault:
    path = ".".join([where, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        guess = f"did you mean `{where}.{near[0]}`? " if near else ""
        return Fault(f"unknown setting `{path}`", hint=f"{guess}the keys of `{where}` are: {', '.join(known)}")
    if error["type"] == "missing":
        return Fault(f"setting `{path}` is missing", hint=f"the keys of `{where}` are: {', '.join(known)}")
    if error["type"] == "value_error":  # raised by a validator of ours, whose text is a whole sentence
        return Fault(f"`{path}`: {error['ctx']['error']}")
    return Fault(f"`{path}` {error['msg'].removeprefix('Input ')}, not {error['input']!r}")
