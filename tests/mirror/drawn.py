"""What a mirror file holds, as another program reads it with Optuna."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.pool import NullPool


def storage_of(path: Path) -> RDBStorage:
    return RDBStorage(f"sqlite:///{path}", engine_kwargs={"poolclass": NullPool})


def trials_in(path: Path, name: str) -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=storage_of(path)).trials


def states_in(path: Path, name: str) -> Counter[str]:
    return Counter(trial.state.name for trial in trials_in(path, name))


def trial_in(path: Path, name: str, arm: str, seed: int) -> FrozenTrial:
    (found,) = (t for t in trials_in(path, name) if (t.user_attrs["arm"], t.user_attrs["seed"]) == (arm, seed))
    return found


def content(path: Path) -> dict[str, Any]:
    """Return all of a mirror but the times, which a mirror that is drawn later knows more exactly."""
    storage = storage_of(path)
    return {
        study.study_name: {
            "direction": study.direction,
            "attributes": study.user_attrs,
            "system": study.system_attrs,
            "trials": [
                (
                    trial.number,
                    trial.state.name,
                    trial.value,
                    trial.params,
                    trial.distributions,
                    trial.user_attrs,
                    trial.intermediate_values,
                )
                for trial in storage.get_all_trials(storage.get_study_id_from_name(study.study_name))
            ],
        }
        for study in storage.get_all_studies()
    }
