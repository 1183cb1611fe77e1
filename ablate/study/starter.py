"""Starter studies: what `ablate init` writes. Each runs as it is, on digits that need no download."""

from __future__ import annotations

import importlib.util
import json
import os
from importlib.resources import files
from pathlib import Path

from ablate.errors import AblateError
from ablate.failpoints import failpoint
from ablate.study.editors import json_schema
from ablate.study.schema import NAME_RULE, is_name
from ablate.study.words import did_you_mean

# template → whose code it runs
TEMPLATES = {"classifier": "classifier", "function": "function", "command": "command", "tuned": "classifier"}
SCHEMA_FILE = ".ablate-schema.json"  # as the first line of every template names it
_WORD = "starter"  # what a study and its module are called in the templates


def write_starter(place: Path, template: str) -> list[Path]:
    """Write a study called like the last part of ``place``, its code and the schema for editors; return the first two.

    In a folder that exists, it is called like the template. Nothing is overwritten but an older schema. Raises
    AblateError where a file is in the way or the name won't do.
    """
    if template not in TEMPLATES:
        raise AblateError(f"there is no template `{template}`", hint=did_you_mean(template, TEMPLATES))
    folder, name = (place, template) if place.is_dir() else (place.parent, place.name.removesuffix(".yaml"))
    module = name.replace("-", "_")
    if not is_name(name) or not module.isidentifier():
        hint = f"{NAME_RULE}, a letter first; `ablate init DIR/NAME` writes into a folder"
        raise AblateError(f"`{name}` can't be the name of a study with its code", hint=hint)
    study, code = folder / f"{name}.yaml", folder / f"{module}.py"
    for path in (study, code):
        if os.path.lexists(path):
            raise AblateError("it is there already, and is left as it is", where=str(path), hint="choose another name")
    if _is_installed(module):
        raise AblateError(f"{code} would hide the installed module `{module}`", hint="choose another name")
    failpoint("starter-begun", meets_disk=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path, kept in ((code, f"{TEMPLATES[template]}.py"), (study, f"{template}.yaml")):
        text = (files("ablate.study") / "templates" / kept).read_text(encoding="utf-8")
        text = text.replace(f"{_WORD}.py", f"{module}.py").replace(f"{_WORD}:", f"{module}:").replace(_WORD, name)
        with path.open("x", encoding="utf-8") as file:  # x: what came there in between is not overwritten
            file.write(text)
    (folder / SCHEMA_FILE).write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    return [study, code]


def _is_installed(module: str) -> bool:
    """Tell whether there is such a module elsewhere; a folder of that name is none."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None
