"""Ablation studies in PyTorch: a study is expanded into trials, trials are run as attempts, attempts leave facts,
facts become effects, effects become a report."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

# the names of ``ablate.api``, where each stands with its docstring; loaded when one is first used
__all__ = [
    "AblateError",
    "Analysis",
    "Plan",
    "Study",
    "StudyError",
    "analyse_study",
    "declare",
    "load",
    "plan_study",
    "read_study",
    "render",
    "run_study",
    "to_yaml",
    "trials_frame",
]

if TYPE_CHECKING:
    from ablate.api import (
        AblateError,
        Analysis,
        Plan,
        Study,
        StudyError,
        analyse_study,
        declare,
        load,
        plan_study,
        read_study,
        render,
        run_study,
        to_yaml,
        trials_frame,
    )
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module `ablate` has no `{name}`")
        from ablate import api

        return getattr(api, name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
