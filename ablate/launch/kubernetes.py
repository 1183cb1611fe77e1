"""Kubernetes: agents as the pods of an indexed Job, printed as a manifest for `kubectl apply`."""

from __future__ import annotations

import json
import re

from ablate.errors import EXIT_REQUEST, AblateError
from ablate.launch.launcher import Wanted

# an index whose pod is evicted, or whose node dies, is given another pod; wrong words would only fail again
MANIFEST = """\
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {count}
  parallelism: {count}
  backoffLimit: {backoff}
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      - action: FailJob
        onExitCodes:
          containerName: agent
          operator: In
          values: [{refused}]
  template:
    metadata:
      labels:
        app.kubernetes.io/name: ablate
    spec:
      restartPolicy: Never  # the Job makes another pod in its place
      automountServiceAccountToken: false  # agents have nothing to ask of Kubernetes
      terminationGracePeriodSeconds: 120  # for a checkpoint, when a pod must go
      containers:
        - name: agent
          image: {image}
          workingDir: {folder}
          command: {command}
          env:
            - name: ABLATE_STORE
              value: {store}
            - name: ABLATE_AGENT  # what `ablate status` calls it, beside the pod's name
              value: {agent}
            - name: PGPASSWORD
              valueFrom:
                secretKeyRef:
                  name: {secret}
                  key: password
          resources:
            requests:
              cpu: {cpus}
            limits:
              cpu: {cpus}
{gpus}          volumeMounts:
            - name: shared-memory
              mountPath: /dev/shm
{mount}      volumes:
        - name: shared-memory  # workers of data loaders hand over their batches there
          emptyDir:
            medium: Memory
{volume}"""
GPUS = """\
              nvidia.com/gpu: {gpus}
"""
MOUNT = """\
            - name: runs  # shared by all pods: what one has trained, another goes on with
              mountPath: {runs}
"""
VOLUME = """\
        - name: runs
          persistentVolumeClaim:
            claimName: {claim}
"""
LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"


def manifest(wanted: Wanted, *, image: str, name: str, secret: str, claim: str | None) -> str:
    """Return the manifest of a Job. ``claim``: the volume for `runs/`; without one, what a dead pod trained is lost.

    Raises AblateError where a name is none of Kubernetes'.
    """
    longest = 63 - len(f"-{wanted.count - 1}")  # pods are called by their index, and their hosts by both
    _check("--name", name, LABEL, longest, "lower-case letters, digits and `-`")
    for option, value in {"--secret": secret, "--volume": claim}.items():
        if value is not None:
            _check(option, value, SUBDOMAIN, 253, "lower-case letters, digits, `-` and `.`")
    return MANIFEST.format(
        name=_quoted(name),
        agent=_quoted(f"k8s-{name}"),
        count=wanted.count,
        backoff=6 * wanted.count,
        refused=EXIT_REQUEST,
        image=_quoted(image),
        folder=_quoted(str(wanted.folder)),
        command=json.dumps(["ablate", "agent", *wanted.words], ensure_ascii=False),
        store=_quoted(wanted.store),
        secret=_quoted(secret),
        cpus=wanted.cpus,
        gpus=GPUS.format(gpus=wanted.gpus) if wanted.gpus else "",
        mount=MOUNT.format(runs=_quoted(str(wanted.folder / "runs"))) if claim else "",
        volume=VOLUME.format(claim=_quoted(claim)) if claim else "",
    )


def _check(option: str, value: str, form: str, longest: int, letters: str) -> None:
    if len(value) > longest or not re.fullmatch(form, value):
        hint = f"{letters}, at most {longest}, and at both ends a letter or digit"
        raise AblateError(f"{value!r:.80} is no name of Kubernetes", where=option, hint=hint)


def _quoted(text: str) -> str:
    """Return a text as YAML reads it back, whatever is in it: JSON is YAML."""
    return json.dumps(text, ensure_ascii=False)
