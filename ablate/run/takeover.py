"""Trials that nobody works on, though the store says that somebody holds them: they go back to those that wait."""

from __future__ import annotations

from collections.abc import Container

from ablate.run.liveness import Owners
from ablate.run.outcomes import decide
from ablate.store import claims
from ablate.store.claims import Ending, Held
from ablate.store.store import Store
from ablate.train.folder import AttemptFolder
from ablate.train.manifest import has_checkpoint


def take_back_lost(store: Store, owners: Owners, *, runner: str, known: Container[tuple[int, int]]) -> bool:
    """Take back what dead runners held, and what ours holds without knowing, as a claim's reply was lost.

    ``known``: trial and claim of each attempt that our ``runner`` knows of. True where anything waits again.
    """
    held = claims.held_trials(store)
    ours = [each for each in held if each.owner == runner and (each.trial, each.claim) not in known]
    gone = owners.gone([each for each in held if each.owner != runner])
    lost = [(each, _unbegun("lost", each)) for each in ours] + [(each, _death(store, each)) for each in gone]
    taken = [claims.take_back(store, each, ending) for each, ending in lost]
    return any(taken)


def leave_all(store: Store, *, runner: str) -> None:
    """Give back what a runner holds that ends by no fault of the trials', so that it is none of their deaths."""
    for held in claims.held_trials(store):
        if held.owner == runner:
            claims.take_back(store, held, _unbegun("interrupted", held))


def _unbegun(outcome: str, held: Held) -> Ending:
    """Return the ending after which the trial is as it was before."""
    return Ending(outcome, "waiting", errors=held.errors, idle_deaths=held.idle_deaths)


def _death(store: Store, held: Held) -> Ending:
    return decide(
        Ending("lost", ""),
        retries=0,
        errors=held.errors,
        idle_deaths=held.idle_deaths,
        progressed=has_checkpoint(AttemptFolder(store.path_of(held.folder)).checkpoints),
    )
