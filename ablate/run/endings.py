"""How an attempt has ended: by the worker's last word, by what we did to it, or by what the kernel says of a death."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ablate.errors import EXIT_ENVIRONMENT
from ablate.run.attempts import Attempt
from ablate.run.energy import energy_facts, read_meters
from ablate.run.memory import OomKills, others_on_gpu
from ablate.run.outcomes import decide
from ablate.run.slots import Slot
from ablate.run.workers import Exit
from ablate.store.claims import Ending, Finished, KeptScores
from ablate.study.schema import Study
from ablate.train.folder import FREE_SPACE, UNWRITTEN, AttemptFolder, Result, room_left
from ablate.train.manifest import has_checkpoint

# how an attempt is called that we ended ourselves, by why we did
_BY_US = {"timeout": "timeout", "stalled": "stalled", "pruned": "pruned", "stop": "interrupted"}


@dataclass(frozen=True)
class Closed:
    """An attempt that has ended, and is still to be kept."""

    attempt: Attempt
    finished: Finished


def last_word(folder: AttemptFolder, end: Exit) -> Result | None:
    """Return how an attempt ended by the worker's word; where the disk refused that, what the worker meant to say."""
    result = folder.result()
    if result is None and end.exit_code == UNWRITTEN:
        error = f"{folder.path}: the disk refused the worker's last word ({room_left(folder.path)})"
        return Result("error", error=error, hint=FREE_SPACE, exit_code=EXIT_ENVIRONMENT)
    return result


def never_begun(attempt: Attempt) -> Closed:
    """Return the end of an attempt that its worker did not come to before we stopped: its trial waits as before."""
    claim = attempt.claim
    ending = Ending("interrupted", "waiting", errors=claim.errors, idle_deaths=claim.idle_deaths)
    return Closed(attempt, Finished(claim, ending))


def read_endings(
    group: Sequence[tuple[Attempt, Result | None]],
    slot: Slot,
    end: Exit,
    *,
    study: Study,
    stopping: bool,
    kills: OomKills,
    crowd: int = 1,
) -> list[Closed]:
    """Return the ends of attempts of one process, with all that is to be kept of them.

    ``group`` has each with its last word. ``stopping``: the whole run is. ``crowd``: how many were on their GPU.
    """
    mute = next((attempt for attempt, result in group if result is None), None)  # one death, whose cause counts once
    death = _untold(end, mute, stopping=stopping, kills=kills) if mute else None
    return [_closed(attempt, result, slot, end, death, study=study, crowd=crowd) for attempt, result in group]


def is_crowded_out(result: Result | None, crowd: int) -> bool:
    """Tell whether a GPU has refused memory to one of several that were on it."""
    return crowd > 1 and result is not None and result.gpu_memory


def _closed(
    attempt: Attempt,
    result: Result | None,
    slot: Slot,
    end: Exit,
    death: Ending | None,
    *,
    study: Study,
    crowd: int,
) -> Closed:
    if result is not None:
        ending = _told(end, result, attempt)
    else:
        assert death is not None
        ending = death
    ending = _decided(ending, attempt, slot, result, retries=study.resources.retries, crowd=crowd)
    metrics = result.metrics if result else {}
    ending, scores = _scored(ending, attempt, metrics, primary=study.primary)
    energy = energy_facts(attempt.meter, read_meters(slot.own_gpus), share=len(attempt.group))
    ending = replace(ending, facts={**ending.facts, **energy})
    return Closed(attempt, Finished(attempt.claim, ending, metrics, tuple(attempt.unsaved), scores))


def _told(end: Exit, result: Result, attempt: Attempt) -> Ending:
    outcome = _BY_US.get(attempt.ended_by, result.outcome) if result.outcome == "interrupted" else result.outcome
    return Ending(
        outcome,
        "",
        error=result.error or None,
        exit_code=end.exit_code,
        signal=end.signal,
        seconds=result.seconds,
        resumed_from=int(result.resumed_from) if result.resumed_from else None,
        facts=result.facts,
    )


def _untold(end: Exit, attempt: Attempt, *, stopping: bool, kills: OomKills) -> Ending:
    # a stop request may go to every process of a job step, and reach a worker before us
    ended_by = attempt.ended_by or ("stop" if stopping else "")
    seconds = (time.monotonic() - attempt.started) / len(attempt.group)
    ending = Ending(_BY_US.get(ended_by, "killed"), "", exit_code=end.exit_code, signal=end.signal, seconds=seconds)
    if ending.outcome == "killed" and end.signal is None:
        # it left without a word and without a signal: os._exit in the task
        return replace(ending, outcome="error", error=f"ended with exit code {end.exit_code} and no result")
    if ending.outcome == "killed" and end.signal == signal.SIGKILL and kills.accounts_for(attempt.oom_kills):
        return replace(ending, outcome="oom", error="killed by the kernel, which had no memory left")
    return ending


def _decided(
    ending: Ending, attempt: Attempt, slot: Slot, result: Result | None, *, retries: int, crowd: int
) -> Ending:
    """Return the ending with what becomes of the trial."""
    claim = attempt.claim
    if result is not None and result.exit_code == EXIT_ENVIRONMENT:
        # not the trial's fault: it waits until the data or the machine is there
        return replace(ending, state="waiting", errors=claim.errors, idle_deaths=claim.idle_deaths)
    is_crowded = is_crowded_out(result, crowd)
    others = f"{crowd} trials were on this GPU at once" if is_crowded else ""
    if ending.outcome == "oom" and crowd == 1:
        others = _others_on(slot)
    if others:
        ending = replace(ending, error=f"{ending.error}; {others}")
    return decide(
        ending,
        shared=bool(others),
        crowded=is_crowded,
        retries=retries,
        errors=claim.errors,
        idle_deaths=claim.idle_deaths,
        progressed=has_checkpoint(attempt.folder.checkpoints),
    )


def _others_on(slot: Slot) -> str:
    """Ask what other programs than ablate hold of a slot's GPUs, on which no other worker of ours is."""
    return next((found for gpu in slot.gpus if (found := others_on_gpu(gpu))), "")


def _scored(
    ending: Ending, attempt: Attempt, metrics: Mapping[str, float], *, primary: str
) -> tuple[Ending, KeptScores | None]:
    """Return the ending with what is to be noted of the scores per example, and those of an ``ok`` attempt."""
    if ending.outcome != "ok" or primary not in metrics or not attempt.folder.scores_file.exists():
        return ending, None
    from ablate.run.scores import kept_scores  # numpy, which nothing else here needs

    kept, note = kept_scores(attempt.folder, primary, metrics[primary])
    return (replace(ending, facts={**ending.facts, "scores": note}) if note else ending), kept
