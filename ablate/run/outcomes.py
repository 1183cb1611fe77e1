"""One policy over every way an attempt can end: what becomes of its trial. Pure."""

from __future__ import annotations

from dataclasses import replace

from ablate.store.claims import Ending

MAX_IDLE_DEATHS = 3
DONE = ("ok", "diverged", "pruned")  # to diverge is a result, and to be behind others
DEATHS = ("killed", "lost")  # not by the trial's own word; never counted against the user's retries
SHOWN = {
    "error": "error",
    "oom": "out of memory",
    "timeout": "ran into its timeout",
    "stalled": "stalled",
    "killed": "was killed",
    "lost": "was lost with its runner",
}


def decide(
    ending: Ending,
    *,
    retries: int,
    errors: int,
    idle_deaths: int,
    progressed: bool,
    shared: bool = False,
    crowded: bool = False,
) -> Ending:
    """Complete an ending with the next state of its trial.

    ``errors`` and ``idle_deaths`` are the trial's counts before this attempt; ``progressed`` says whether the attempt
    left a checkpoint, ``shared`` whether others held part of the memory that was refused, ``crowded`` whether these
    were trials, of which there will be fewer at once. An error uses up one of the user's retries; a stall is tried once
    more; a timeout would only happen again, and so would memory that was refused to who had it alone. A bystander of
    others' hunger, whom the kernel kills or who finds a GPU half taken, is tried once more. A death without progress is
    forgiven twice, lest a poisonous trial run for ever.
    """
    if ending.outcome in DONE:
        return replace(ending, state="done", errors=errors, idle_deaths=0)
    if ending.outcome in ("interrupted", "fenced") or crowded:
        return replace(ending, state="waiting", errors=errors, idle_deaths=idle_deaths)
    if ending.outcome in DEATHS:
        idle = 0 if progressed else idle_deaths + 1
        if idle >= MAX_IDLE_DEATHS:
            reason = f"died {idle} times in a row without progress"
            return replace(ending, state="failed", reason=reason, errors=errors, idle_deaths=idle)
        return replace(ending, state="waiting", errors=errors, idle_deaths=idle)
    bystander = ending.outcome == "oom" and (shared or ending.signal is not None)
    allowed = max(retries, 1) if bystander else {"error": retries, "stalled": max(retries, 1)}.get(ending.outcome, 0)
    reason = SHOWN[ending.outcome] + (f": {ending.error}" if ending.error else "")
    state = "waiting" if errors < allowed else "failed"
    return replace(
        ending, state=state, reason=reason if state == "failed" else None, errors=errors + 1, idle_deaths=idle_deaths
    )
