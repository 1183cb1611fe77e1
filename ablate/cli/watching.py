"""Commands that follow a study: how far it is, what an attempt printed, all about an arm."""

from __future__ import annotations

import math

import click

from ablate import completion
from ablate.cli.common import open_store, open_study, say, stderr, stdout, store_words, title_of
from ablate.cli.options import examples, name_argument, store_option


@click.command(epilog=examples("ablate status", "ablate status mine@quick"))
@name_argument
@store_option
def status(name: str | None, location: str | None) -> None:
    """Show how far a study has come.

    Who is at work on it, what failed and what to do next. Changes nothing.
    """
    from ablate.analyse.standing import standing
    from ablate.report.status import print_standing
    from ablate.run.liveness import is_alive

    store, stored = open_study(name, location)
    found = standing(store, stored, is_alive=lambda runner: is_alive(runner, store))
    print_standing(found, stdout(), now=store.now(), options=store_words(location))


@click.command(epilog=examples("ablate watch"))
@name_argument
@store_option
def watch(name: str | None, location: str | None) -> None:
    """Follow a running study from another terminal.

    The picture is the one that `ablate run` shows.
    """
    from ablate.analyse.standing import standing
    from ablate.launch.launcher import agents_folder, kept
    from ablate.report.status import summary
    from ablate.run.liveness import is_alive
    from ablate.run.progress import Progress
    from ablate.run.watch import PATIENCE_S, WATCH_FOOTER, follow_study
    from ablate.store.facts import stored_study, trials_of

    store, stored = open_study(name, location)
    progress = Progress(stored_study(stored), trials_of(store, stored.id), stderr(), footer=WATCH_FOOTER)
    # agents that were started from here may still wait for their machines
    patience_s = math.inf if any(kept(agents_folder())) else PATIENCE_S
    follow_study(store, stored.id, progress, patience_s=patience_s)
    found = standing(store, stored, is_alive=lambda runner: is_alive(runner, store))
    say(f"{stored.title}: {summary(found.counts)}")
    if found.counts.waiting or found.counts.running:
        say(f"nobody is at work on it; go on with: {found.command}")


@click.command(
    options_metavar="[OPTIONS]",
    epilog=examples("ablate logs", "ablate logs batchnorm --seed 2 -n 20", "ablate logs mine wide -f"),
)
@click.argument("words", nargs=-1, metavar="[NAME] [ARM]", shell_complete=completion.offer(completion.arms_or_titles))
@store_option
@click.option("--seed", type=int, metavar="N", help="The trial of this seed.")
@click.option(
    "--candidate",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of an arm that is tuned, the candidate of this number.",
)
@click.option(
    "--attempt", "number", type=click.IntRange(min=1), metavar="N", help="This attempt [default: the latest]."
)
@click.option("-n", "--lines", "last", type=click.IntRange(min=0), metavar="N", help="Only the last lines, so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the attempt ends.")
def logs(
    words: tuple[str, ...],
    location: str | None,
    seed: int | None,
    candidate: int | None,
    number: int | None,
    last: int | None,
    follow: bool,
) -> None:
    """Print what an attempt printed.

    Of the first failed trial, else of a running one, else of the last.
    """
    from ablate.run import logs

    if len(words) > 2:
        raise click.UsageError(f"expected a study and an arm, got {len(words)} words")
    store = open_store(location, read_only=True)
    stored, arm = logs.named(store, [title_of(word) for word in words[:1]] + list(words[1:]))
    attempt = logs.chosen_attempt(store, stored, arm=arm, seed=seed, number=number, candidate=candidate)
    path = logs.log_file(store, attempt, wanted=not follow)
    outcome = attempt.outcome or "running"
    which = f"candidate {candidate} seed {attempt.seed}" if candidate else f"seed {attempt.seed}"
    say(f"{stored.title}: {arm or attempt.arm} {which}, attempt {attempt.claim} ({outcome}): {path}")
    ended = logs.end_of(store, stored, attempt)
    printed = False
    for line in logs.follow(path, last=last, ended=ended) if follow else logs.lines(path, last=last):
        print(line, flush=follow)
        printed = True
    if not printed and last != 0:
        say("(it printed nothing)")


@click.command(epilog=examples("ablate show batchnorm", "ablate show batchnorm mine@quick"))
@click.argument("arm", shell_complete=completion.offer(completion.arms))
@name_argument
@store_option
def show(arm: str, name: str | None, location: str | None) -> None:
    """Show all about one arm.

    What differs, settings, results by seed, attempts and what they ran on.
    """
    from ablate.analyse.arm_details import arm_details
    from ablate.report.arm import print_arm

    store, stored = open_study(name, location)
    print_arm(arm_details(store, stored, arm), stdout())
