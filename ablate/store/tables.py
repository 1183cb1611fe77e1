"""The tables. Text, numbers and JSON, and scores per example packed; times are Unix seconds (UTC).

The CHECKs and the unique indexes make it impossible to write down a second owner, or a result without its attempt:
a bug in the code raises an IntegrityError instead. A change here needs a step in ``migrations``, for the stores that
are there already.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 4

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("key", String, primary_key=True, comment="what is told about the store itself"),
    Column("value", Text, nullable=False, comment="schema: number of the last migration"),
)

study = Table(
    "study",
    metadata,
    Column("id", Integer, primary_key=True, comment="one row per version of a study"),
    Column("name", String, nullable=False, comment="as in the study file"),
    Column("profile", String, nullable=False, comment="empty for the study itself"),
    Column("version", Integer, nullable=False, comment="1, 2, … per name and profile, in order of first use"),
    Column("spec_json", Text, nullable=False, comment="the whole study after profile and overrides"),
    Column("spec_sha256", String, nullable=False, comment="hash of spec_json"),
    Column("file", Text, nullable=False, comment="the study file, for messages; empty where it was declared in Python"),
    Column("created", Double, nullable=False, comment="first use"),
    UniqueConstraint("name", "profile", "version"),
    UniqueConstraint("name", "profile", "spec_sha256"),
)

plan = Table(
    "plan",
    metadata,
    Column("study", ForeignKey("study.id"), primary_key=True, comment="one frozen plan per study version"),
    Column("plan_json", Text, nullable=False, comment="contrasts, seeds, analysis: fixed before trial 1"),
    Column("sha256", String, nullable=False, comment="hash of plan_json"),
    Column("written", Double, nullable=False, comment="when, before the first trial of this version was claimed"),
)

arm = Table(
    "arm",
    metadata,
    Column("id", Integer, primary_key=True, comment="one full assignment of settings in one study version"),
    Column("study", ForeignKey("study.id"), nullable=False, comment="the study version"),
    Column("position", Integer, nullable=False, comment="order in the plan, from 0"),
    Column("name", String, nullable=False, comment="by what differs: batchnorm, without-batchnorm"),
    Column("title", Text, nullable=False, comment="as tables print it"),
    Column("parent", String, comment="the arm it is compared with; NULL for the baseline"),
    Column("settings_json", Text, nullable=False, comment="all settings that the task receives"),
    UniqueConstraint("study", "name"),
)

runner = Table(
    "runner",
    metadata,
    Column("id", String, primary_key=True, comment="random; a runner is one process on one machine"),
    Column("study", ForeignKey("study.id"), comment="the study version it was started for"),
    Column("host", String, nullable=False, comment="host name"),
    Column("boot_id", String, nullable=False, comment="differs after a reboot: its runners are dead"),
    Column("lock_file", Text, nullable=False, comment="held by flock while it lives; the kernel frees it at death"),
    Column("command", Text, nullable=False, comment="how it was started"),
    Column("started", Double, nullable=False, comment="start"),
    Column("heartbeat", Double, nullable=False, comment="last renewal of its leases"),
    Column("ended", Double, comment="clean end; NULL while running or after a kill"),
)

trial = Table(
    "trial",
    metadata,
    Column("id", Integer, primary_key=True, comment="one arm × one seed, known by its content"),
    Column("fingerprint", String, nullable=False, unique=True, comment="hash of all that is declared about it"),
    Column("task", Text, nullable=False, comment="module:function"),
    Column("settings_json", Text, nullable=False, comment="settings"),
    Column("execution_json", Text, nullable=False, comment="dtype, threads"),
    Column("resources_json", Text, nullable=False, comment="gpus, cpus, limits, as first asked for"),
    Column("seed", Integer, nullable=False, comment="seed of the replicate"),
    Column("source", String, nullable=False, server_default="trained", comment="trained or imported"),
    Column("state", String, nullable=False, server_default="waiting", comment="waiting, running, done, failed"),
    Column("reason", Text, comment="why it failed"),
    Column("claim", Integer, nullable=False, server_default="0", comment="raised by each claim; fences later writes"),
    Column("owner", ForeignKey("runner.id"), comment="the runner that holds it while running"),
    Column("lease_until", Double, comment="the owner must renew before then"),
    Column("result_claim", Integer, comment="the claim of the attempt whose result stands"),
    Column("errors", Integer, nullable=False, server_default="0", comment="attempts that ended by its own fault"),
    Column("idle_deaths", Integer, nullable=False, server_default="0", comment="deaths in a row without progress"),
    CheckConstraint("state IN ('waiting', 'running', 'done', 'failed')", name="trial_state"),
    CheckConstraint("source IN ('trained', 'imported')", name="trial_source"),
    CheckConstraint("(state = 'running') = (owner IS NOT NULL)", name="trial_running_has_owner"),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="trial_running_has_lease"),
    CheckConstraint("(state = 'done') = (result_claim IS NOT NULL)", name="trial_done_has_result"),
    Index("trial_state", "state"),
)

replicate = Table(
    "replicate",
    metadata,
    Column("id", Integer, primary_key=True, comment="the place of a trial in a study version"),
    Column("arm", ForeignKey("arm.id"), nullable=False, comment="the arm"),
    Column("role", String, nullable=False, comment="main, confirm or tune"),
    Column("seed", Integer, nullable=False, comment="the seed: the pairing block across arms"),
    Column("trial", ForeignKey("trial.id"), nullable=False, comment="shared by all replicates of equal content"),
    Column("position", Integer, nullable=False, comment="order in the plan"),
    # candidates share a seed where settings are tuned; and where one of them is trained afresh, another may be chosen
    UniqueConstraint("arm", "role", "seed", "trial"),
    CheckConstraint("role IN ('main', 'confirm', 'tune')", name="replicate_role"),
    Index("replicate_trial", "trial"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", Integer, primary_key=True, comment="one try at a trial; retries add attempts, never trials"),
    Column("trial", ForeignKey("trial.id"), nullable=False, comment="the trial"),
    Column("claim", Integer, nullable=False, comment="the claim it was made under: 1, 2, … per trial"),
    Column("runner", ForeignKey("runner.id"), nullable=False, comment="who ran it"),
    Column("slot", String, nullable=False, comment="cpu:0 or a GPU's UUID"),
    Column("folder", Text, nullable=False, comment="attempt folder, relative to the store's folder"),
    Column("started", Double, nullable=False, comment="claimed"),
    Column("ended", Double, comment="NULL while running"),
    Column(
        "outcome",
        String,
        comment="ok, diverged, pruned, oom, timeout, stalled, killed, lost, …, fenced",
    ),
    Column("exit_code", Integer, comment="of the worker process, if it exited"),
    Column("signal", Integer, comment="that ended the worker process, if one did"),
    Column("error", Text, comment="one line: class and message"),
    Column("seconds", Double, comment="wall time of the task; excludes waiting"),
    Column("resumed_from", Integer, comment="claim of the attempt whose checkpoint it started from"),
    Column("code_sha256", String, comment="hash of the task's source"),
    Column("environment_json", Text, comment="versions, host, device"),
    Column("metrics_json", Text, comment="numbers at its end, by metric; text: nan, +inf, -inf"),
    UniqueConstraint("trial", "claim"),
    CheckConstraint("(ended IS NULL) = (outcome IS NULL)", name="attempt_ended_has_outcome"),
    Index(
        "attempt_running",
        "trial",
        unique=True,
        sqlite_where=text("ended IS NULL"),
    ),
)

measurement = Table(
    "measurement",
    metadata,
    Column("id", Integer, primary_key=True, comment="one number that an attempt recorded on its way"),
    Column("trial", ForeignKey("trial.id"), nullable=False, comment="the trial"),
    Column("claim", Integer, nullable=False, comment="the claim of the attempt that measured it"),
    Column("metric", String, nullable=False, comment="declared in the study, or recorded by the task beside those"),
    Column("epoch", Integer, nullable=False, comment="from 1"),
    Column("value", Double, comment="NULL where the value is not a finite number"),
    Column("kind", String, nullable=False, comment="num, nan, +inf or -inf: SQLite keeps NaN as NULL"),
    CheckConstraint("kind IN ('num', 'nan', '+inf', '-inf')", name="measurement_kind"),
    CheckConstraint("(kind = 'num') = (value IS NOT NULL)", name="measurement_value"),
    UniqueConstraint("trial", "claim", "metric", "epoch"),
)

example_set = Table(
    "example_set",
    metadata,
    Column("id", Integer, primary_key=True, comment="one set of examples that trials were scored on"),
    Column("sha256", String, nullable=False, unique=True, comment="hash of the ids, rising, as little-endian int64"),
    Column("size", Integer, nullable=False, comment="how many examples"),
    Column("ids", LargeBinary, nullable=False, comment="the ids, rising: zlib of their int64 differences, from 0 on"),
)

score = Table(
    "score",
    metadata,
    Column("trial", ForeignKey("trial.id"), primary_key=True, comment="the trial"),
    Column("claim", Integer, primary_key=True, autoincrement=False, comment="the claim of the attempt that gave them"),
    Column("metric", String, nullable=False, comment="the metric whose parts they are: their mean is its value"),
    Column("examples", ForeignKey("example_set.id"), nullable=False, comment="the examples, one score each"),
    Column("kind", String, nullable=False, comment="bits (two values) or float32"),
    Column("low", Double, comment="bits: what 0 stands for"),
    Column("high", Double, comment="bits: what 1 stands for"),
    Column(
        "data", LargeBinary, nullable=False, comment="zlib of the bits, first one highest, or little-endian float32"
    ),
    CheckConstraint("kind IN ('bits', 'float32')", name="score_kind"),
    CheckConstraint("(kind = 'bits') = (low IS NOT NULL AND high IS NOT NULL)", name="score_levels"),
)


def create_tables(connection: Connection) -> None:
    """Make all tables that are not there. Partial indexes are the same on SQLite and PostgreSQL."""
    if connection.dialect.name == "postgresql":
        for table in metadata.tables.values():
            for index in table.indexes:  # only now: the word would import PostgreSQL's dialect for every command
                index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
    metadata.create_all(connection)
