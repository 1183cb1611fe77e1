"""Commands for more than one machine: the agent, and what starts agents elsewhere."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ablate.cli.common import open_store, resumable, say, stderr, title_of
from ablate.cli.options import Group, complete_title, data_option, examples, store_option
from ablate.errors import EXIT_STOPPED, AblateError, EnvironmentFault
from ablate.report.numbers import plural
from ablate.report.text import visible

if TYPE_CHECKING:
    from ablate.launch.launcher import Launcher, Start, Wanted
    from ablate.store.facts import StoredTrial
    from ablate.study.schema import Study

studies_argument = click.argument("studies", nargs=-1, metavar="[STUDY]...", shell_complete=complete_title)


class Time(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions alone
    """A time as study files have it: `90s`, `30m`, `4h`; also `2d`, and plain seconds, unless a unit is asked for."""

    name = "TIME"

    def __init__(self, *, unit: bool = False) -> None:
        self._unit = unit

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
        number = text[:-1] if unit else text
        if not number.replace(".", "", 1).isdecimal():
            self.fail(f"{text!r} is no time: 90s, 30m, 4h or 2d", param, ctx)
        if self._unit and not unit:  # to Slurm it would be minutes
            self.fail(f"{text!r} has no unit: {text}m or {text}s?", param, ctx)
        return float(number) * (unit or 1)


@click.command(
    epilog=examples("ablate agent", "ablate agent mine.yaml --idle-timeout 10m", "ablate agent --max-trials 1")
)
@studies_argument
@store_option
@data_option
@click.option("-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="At most so many trials at once.")
@click.option(
    "--exit-when-empty/--stay", default=True, show_default=True, help="Whether to leave when nothing waits any more."
)
@click.option("--idle-timeout", type=Time(), help="Wait so long for more work before leaving.")
@click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Leave after so many trials.")
def agent(
    studies: tuple[str, ...],
    location: str | None,
    data_dir: Path | None,
    jobs: int | None,
    exit_when_empty: bool,
    idle_timeout: float | None,
    max_trials: int | None,
) -> None:
    """Run what waits in a store, beside any number of other agents.

    `ablate run STUDY --queue` puts studies there. STUDY is a title, or a file whose code lies beside it here; without
    one, all studies of the store. Settings are those that were queued: an edited file is queued anew. An agent takes
    only what its machine can run and, in an allocation of Slurm, what can end in its time; exit code 75 says that more
    time is needed. Failed trials leave it at 0: an engine that started it anew would not mend them.
    """
    with resumable():
        from ablate.launch import slurm
        from ablate.run.agent import Agent
        from ablate.run.options import Options
        from ablate.run.progress import Progress
        from ablate.run.stopping import Stopped

        def progress(study: Study, trials: Sequence[StoredTrial]) -> Progress:
            return Progress(study, trials, stderr())

        files = {title_of(word): Path(word).absolute() for word in studies if Path(word).is_file()}
        patience = (0.0 if exit_when_empty else math.inf) if idle_timeout is None else idle_timeout
        made = Agent(
            open_store(location),
            [title_of(word) for word in studies],
            files=files,
            options=Options(jobs=jobs, data_dir=data_dir, max_trials=max_trials, allocation=slurm.allocation()),
            progress=progress,
            say=say,
        )
        done = made.run(idle_timeout_s=patience)
        say(f"agent: {plural(done.attempts, 'attempt')} made{_why(done.out_of_time)}")
        if done.failed:
            say(f"{plural(done.failed, 'trial')} failed: `ablate status` says why, `ablate retry` has them tried again")
        if done.stopped_by is not None:
            raise Stopped(done.stopped_by)
    if done.out_of_time:
        sys.exit(EXIT_STOPPED)


def _time_as_written(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    if text is not None:
        Time().convert(text, param, ctx)
    return text


def _launch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command what is asked for of agents elsewhere; it is called with a ``Wanted`` first."""

    @functools.wraps(command)
    def asked(
        studies: tuple[str, ...],
        location: str | None,
        count: int,
        gpus: int,
        cpus: int,
        idle_timeout: str | None,
        max_trials: int | None,
        **others: Any,
    ) -> Any:
        from ablate.launch.launcher import Wanted, shared_store, words_of_agent
        from ablate.store.project import project_folder

        options = {"--idle-timeout": idle_timeout, "--max-trials": str(max_trials) if max_trials else None}
        words = words_of_agent(studies, options)
        titles = tuple(map(title_of, studies))
        return command(Wanted(count, gpus, cpus, words, shared_store(location), project_folder(), titles), **others)

    for option in reversed((
        studies_argument,
        store_option,
        click.option("-n", "count", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many."),
        click.option("--gpus", type=click.IntRange(0, 64), default=0, show_default=True, help="GPUs of each."),
        click.option("--cpus", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU cores of each."),
        click.option(
            "--idle-timeout",
            metavar="TIME",
            callback=_time_as_written,
            help="Each waits so long for more work before leaving.",
        ),
        click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Each leaves after so many trials."),
    )):  # fmt: skip
        asked = option(asked)
    return asked


@click.group(
    cls=Group,
    epilog=examples(
        'ablate agents start slurm -n 16 --gpus 1 --time 4h --sbatch "--account=x"',
        "ablate agents status",
        "ablate agents cancel slurm-1234",
    ),
)
def agents() -> None:
    """Start agents on other machines, and look after them.

    \b
    agents start slurm   as a job array, by a script that `--print` shows
    agents start ray     on a Ray cluster that is there
    agents print k8s     a manifest for `kubectl apply`
    agents status        what was started from this project, and who is at work
    agents cancel        end some: they release what they hold
    """


@agents.group(cls=Group)
def start() -> None:
    """Start agents by an engine that is there. They need a store on PostgreSQL, and the project's folder."""


@start.command("slurm", epilog=examples('ablate agents start slurm mine -n 16 --gpus 1 --time 4h --sbatch "-p gpu"'))
@_launch_options
@click.option("--time", "time_s", type=Time(unit=True), help="The time limit of each; with none, the partition's.")
@click.option("--sbatch", "options", multiple=True, metavar="OPTION", help="A line of #SBATCH more: `--account=x`.")
@click.option("--print", "only_print", is_flag=True, help="Print the script, and start nothing.")
def start_slurm(wanted: Wanted, time_s: float | None, options: tuple[str, ...], only_print: bool) -> None:
    """Start agents as a Slurm job array.

    An agent that is preempted, or warned of its end, writes checkpoints, releases its trials and goes back into
    Slurm's queue.
    """
    from ablate.launch.launcher import agents_folder
    from ablate.launch.slurm import Slurm

    launcher = Slurm(agents_folder(), time_s, options)
    if only_print:
        click.echo(launcher.script(wanted), nl=False)
    else:
        _start(launcher, "slurm", wanted)


@start.command("ray", epilog=examples("ablate agents start ray mine -n 16 --gpus 1"))
@_launch_options
@click.option("--address", default="auto", show_default=True, help="Of the cluster; auto: this machine's.")
def start_ray(wanted: Wanted, address: str) -> None:
    """Start agents on a Ray cluster that is there.

    They outlive this command, and are started again where a node dies. Ray's usage statistics are off.
    """
    from ablate.launch.ray import Ray

    _start(Ray(address), "ray", wanted, where=address)


def _start(launcher: Launcher, engine: str, wanted: Wanted, *, where: str = "") -> None:
    from ablate.launch.launcher import agents_folder, started

    _check_studies(wanted)
    found = started(launcher, engine, wanted, agents_folder(), where=where)
    say(f"{found.name}: {plural(found.count, 'agent')} started; `ablate agents status` shows them")
    click.echo(f"ablate agents cancel {found.name}")


def _check_studies(wanted: Wanted) -> None:
    """Raise AblateError where a study is not in the store, or asks for more than agents are to have.

    Each agent would find out for itself, when its turn has come.
    """
    from ablate.store.facts import find_study, stored_study

    store = open_store(wanted.store, read_only=True)
    for title in wanted.studies:
        asked = stored_study(find_study(store, title)).resources.gpus
        if asked > wanted.gpus:
            raise AblateError(
                f"a trial of `{title}` asks for {plural(asked, 'GPU')}, and agents are to have {wanted.gpus}",
                where="--gpus",
                hint=f"add --gpus {asked}",
            )


@agents.command("status", epilog=examples("ablate agents status"))
@store_option
def agents_status(location: str | None) -> None:
    """Show what was started from this project.

    In its engine's words, and below them, by the store's, who is at work there, started from here or not.
    """
    from ablate.launch.launcher import agents_folder, kept
    from ablate.report.status import life_of
    from ablate.run.liveness import is_alive
    from ablate.store.history import open_runners

    for started in kept(agents_folder()):
        click.echo(f"{started.name}: {plural(started.count, 'agent')}: {_by_engine(started)}")
    store = open_store(location, read_only=True)
    at_work = left_behind = 0
    for each in open_runners(store):
        runner, alive = each.runner, is_alive(each.runner, store)
        at_work += alive
        left_behind += 0 if alive else each.held
        if alive or each.held:
            life = life_of(alive=alive, started=runner.started, heartbeat=runner.heartbeat, now=runner.now)
            held = f"{plural(each.held, 'trial')} {'running' if alive else 'left behind'}"
            click.echo(visible(f"{each.machine}: {life}, {held}"))
    say(f"{plural(at_work, 'runner')} at work, by the store")
    if left_behind:
        say(f"{plural(left_behind, 'trial')} of the dead will go on with who works on that study, now or next")


@agents.command("cancel", epilog=examples("ablate agents cancel slurm-1234"))
@click.argument("name")
def cancel(name: str) -> None:
    """End agents: they write checkpoints and release what they hold. NAME is what `status` calls them."""
    from ablate.launch.launcher import agents_folder, forget, named

    found = named(agents_folder(), name)
    try:
        _launcher_of(found).cancel(found.handle)
    except EnvironmentFault as fault:
        message, where = fault.faults[0].message, fault.faults[0].where
        hint = f"where it is gone for good, remove {agents_folder() / found.note}"
        raise EnvironmentFault(message, where=where, hint=hint) from None
    forget(found, agents_folder())
    say(f"{found.name}: cancelled; nothing is lost, and what waits goes on with new agents")


@agents.group("print", cls=Group)
def print_() -> None:
    """Print what starts agents where ablate can't."""


@print_.command("k8s", epilog=examples("ablate agents print k8s mine.yaml -n 16 --gpus 1 --image IMAGE > agents.yaml"))
@_launch_options
@click.option("--image", required=True, help="A container image with ablate, and the study at this folder's path.")
@click.option("--name", default="ablate", show_default=True, help="The Job's name.")
@click.option("--secret", default="ablate-store", show_default=True, help="The Secret whose `password` is the store's.")
@click.option("--volume", "claim", metavar="CLAIM", help="A volume for runs/, shared by all pods.")
def print_k8s(wanted: Wanted, image: str, name: str, secret: str, claim: str | None) -> None:
    """Print a Job of Kubernetes (`batch/v1`) whose pods are agents."""
    from ablate.launch.kubernetes import manifest

    click.echo(manifest(wanted, image=image, name=name, secret=secret, claim=claim), nl=False)


def _by_engine(found: Start) -> str:
    """Return what an engine says of agents: that it can't be asked is no reason not to ask the store."""
    try:
        told = _launcher_of(found).status(found.handle)
    except EnvironmentFault as fault:
        return f"{found.engine} does not say: {fault.faults[0].message}"
    return ", ".join(f"{count:,} {state}" for state, count in told.items()) or "none left"


def _launcher_of(found: Start) -> Launcher:
    from ablate.launch.launcher import agents_folder
    from ablate.launch.ray import Ray
    from ablate.launch.slurm import Slurm

    return Ray(found.where) if found.engine == "ray" else Slurm(agents_folder())


def _why(out_of_time: bool) -> str:
    return "; what waits is longer than what is left of this allocation" if out_of_time else ""
