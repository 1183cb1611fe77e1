"""From a ``Study`` to the text of its file: reading that gives the study again."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from ablate.study.document import parse_scalar
from ablate.study.schema import Study


class _Representer(SafeRepresenter):
    """Quotes each text that an unquoted scalar would not give back."""

    def ignore_aliases(self, _: Any) -> bool:
        return True

    def represent_str(self, text: str) -> ScalarNode:
        style = None if parse_scalar(text) == text else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def to_yaml(study: Study) -> str:
    """Return the study file that declares the same study, all overrides in place.

    A study of a profile is that profile of the file: ``ablate run FILE --profile NAME``.
    """
    spec = study.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if study.profile:
        spec["profiles"] = {study.profile: {}}
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the first metric is the primary one
    yaml.width = 1 << 20
    text = io.StringIO()
    yaml.dump(spec, text)
    return text.getvalue()
