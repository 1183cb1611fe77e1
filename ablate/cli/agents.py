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
from ablate.cli.options import complete_title, data_option, examples, store_option
from ablate.errors import EXIT_STOPPED
from ablate.report.numbers import plural

if TYPE_CHECKING:
    from ablate.launch.launcher import Launcher, Start, Wanted
    from ablate.store.facts import StoredTrial
    from ablate.study.schema import Study

studies_argument = click.argument("studies", nargs=-1, metavar="[STUDY]...", shell_complete=complete_title)


class Time(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions alone
    """A time as study files have it: `90s`, `30m`, `4h`; also `2d`, and plain seconds."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
        number = text[:-1] if unit else text
        if not number.replace(".", "", 1).isdecimal():
            self.fail(f"{text!r} is no time: 90s, 30m, 4h or 2d", param, ctx)
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
    one, all studies of the store. An agent takes only what its machine can run and, in an allocation of Slurm, what
    can end in its time; exit code 75 says that more time is needed.
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
        if done.stopped_by is not None:
            raise Stopped(done.stopped_by)
    if done.out_of_time:
        sys.exit(EXIT_STOPPED)


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
        return command(Wanted(count, gpus, cpus, words, shared_store(location), project_folder()), **others)

    for option in reversed((
        studies_argument,
        store_option,
        click.option("-n", "count", type=click.IntRange(1, 100_000), default=1, show_default=True, help="How many."),
        click.option("--gpus", type=click.IntRange(0, 64), default=0, show_default=True, help="GPUs of each."),
        click.option("--cpus", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU cores of each."),
        click.option("--idle-timeout", metavar="TIME", help="Each waits so long for more work before leaving."),
        click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Each leaves after so many trials."),
    )):  # fmt: skip
        asked = option(asked)
    return asked


@click.group(
    epilog=examples(
        'ablate agents start slurm -n 16 --gpus 1 --time 4h --sbatch "--account=x"',
        "ablate agents status",
        "ablate agents cancel slurm-1234",
    )
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


@agents.group()
def start() -> None:
    """Start agents by an engine that is there. They need a store on PostgreSQL, and the project's folder."""


@start.command("slurm", epilog=examples('ablate agents start slurm mine -n 16 --gpus 1 --time 4h --sbatch "-p gpu"'))
@_launch_options
@click.option("--time", "time_s", type=Time(), help="The time limit of each; with none, the partition's.")
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

    open_store(wanted.store, read_only=True)  # or each agent would find out for itself
    found = started(launcher, engine, wanted, agents_folder(), where=where)
    say(f"{found.name}: {plural(found.count, 'agent')} started; `ablate agents status` shows them")
    click.echo(f"ablate agents cancel {found.name}")


@agents.command("status", epilog=examples("ablate agents status"))
@store_option
def agents_status(location: str | None) -> None:
    """Show what was started from this project.

    In its engine's words; and who is at work, by the store.
    """
    from ablate.launch.launcher import agents_folder, kept
    from ablate.run.liveness import is_alive
    from ablate.store.history import runners_at_work

    for each in kept(agents_folder()):
        told = _launcher_of(each).status(each.handle)
        states = ", ".join(f"{count:,} {state}" for state, count in told.items()) or f"{each.engine} knows it no more"
        click.echo(f"{each.name}: {plural(each.count, 'agent')}: {states}")
    store = open_store(location, read_only=True)
    found = [(runner, held) for runner, held in runners_at_work(store) if is_alive(runner, store)]
    for runner, held in found:
        click.echo(f"at work on {runner.host}: {plural(held, 'trial')}")
    say(f"{plural(len(found), 'runner')} at work, by the store")


@agents.command("cancel", epilog=examples("ablate agents cancel slurm-1234"))
@click.argument("name")
def cancel(name: str) -> None:
    """End agents: they write checkpoints and release what they hold. NAME is what `status` calls them."""
    from ablate.launch.launcher import agents_folder, forget, named

    found = named(agents_folder(), name)
    _launcher_of(found).cancel(found.handle)
    forget(found, agents_folder())
    say(f"{found.name}: cancelled; nothing is lost, and what waits goes on with new agents")


@agents.group("print")
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


def _launcher_of(found: Start) -> Launcher:
    from ablate.launch.launcher import agents_folder
    from ablate.launch.ray import Ray
    from ablate.launch.slurm import Slurm

    return Ray(found.where) if found.engine == "ray" else Slurm(agents_folder())


def _why(out_of_time: bool) -> str:
    return "; what waits is longer than what is left of this allocation" if out_of_time else ""
