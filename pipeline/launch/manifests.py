"""Kubernetes manifests of a job on Flink: the operator's FlinkDeployment, and the Job that submits.

The skeletons are in templates/kubernetes; here they are filled in. A session cluster a job: Flink's image runs the
JobManager and the TaskManagers, each TaskManager pod has this project's image beside it as a pool of Python workers,
and the submitting Job has Beam's job server beside the launcher. Secrets only ever appear as ``secretKeyRef`` or as a
mounted file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template as Skeleton
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from itel_cabinet.io.secrets import SecretRef

__all__ = [
    "FIXED_OPTIONS",
    "Kubernetes",
    "ManifestError",
    "Resources",
    "flink_application",
    "flink_deployment",
    "submitting_job",
]

_STATE_VOLUME = "flink-state"
# What this project's image needs: its user's number (see the Dockerfile), and a place for temporary files.
_CONFINEMENT = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
_TEMPORARY_MOUNT = {"name": "temporary", "mountPath": "/tmp"}
_TEMPORARY_VOLUME = {"name": "temporary", "emptyDir": {"sizeLimit": "2Gi"}}
_SECRET_VOLUME = "secrets"
_REST_PORT = 8081
_POOL_PORT = 50000
_FLINK_GROUP = 9999  # what Flink's image runs as, and so what must be able to write to a mounted claim

FIXED_OPTIONS = {
    "job_endpoint": "localhost:8099",
    "environment_type": "EXTERNAL",
    "environment_config": f"localhost:{_POOL_PORT}",
}
"""Beam options that these manifests decide: the job server is in the launcher's pod, a worker pool in each
TaskManager's. ``flink_master`` is decided too, see :attr:`Kubernetes.rest`."""

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=45)]


class ManifestError(ValueError):
    """What these manifests cannot express; one line."""


class Resources(BaseModel):
    """What a container asks for and may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: float = Field(gt=0)
    memory: str = Field(pattern=r"^[0-9]+(Mi|Gi|m|g)$")


class Kubernetes(BaseModel):
    """A template's section ``kubernetes``: where the job runs, and in which images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    namespace: Name = "default"
    image: str = Field(min_length=1)
    """This project's, made by the Dockerfile."""
    flink_image: str = Field(min_length=1)
    flink_version: str = Field(pattern=r"^v[0-9]+_[0-9]+$")
    job_server_image: str = Field(min_length=1)
    service_account: str = "flink"
    config_map: Name = "itel-cabinet"
    """Holds what the template leaves open, under the names of the environment variables."""
    secret: Name = "itel-cabinet"
    """Holds what the secret references lead to, under the names of the variables and files."""
    secret_environment: tuple[str, ...] = ()
    """More variables that workers get from the secret, such as the object store's key."""
    state_dir: str = Field(pattern=r"^[a-z0-9+]+://?[^/]*(/[^/]+)*$")
    """Where checkpoints, savepoints and the JobManager's own state go: a URI, without a slash at its end."""
    state_claim: Name | None = None
    """The volume claim mounted at ``state_dir`` (``file:///...``), to be written by many pods at a time."""
    job_manager: Resources
    task_manager: Resources
    harness: Resources
    jar: str | None = None
    """For an application: the jar in ``flink_image`` that the job was compiled to, ``local:///PATH``."""
    upgrade_mode: Literal["savepoint", "last-state", "stateless"] = "savepoint"
    """For an application: what the operator does with the job's state when the manifest changes."""

    @property
    def rest(self) -> str:
        """``host:port`` of the JobManager, by the operator's rule."""
        return f"{self.name}-rest:{_REST_PORT}"


def flink_deployment(
    kubernetes: Kubernetes, job: str, checkpointing_interval: int, metrics_port: int, secrets: Sequence[SecretRef]
) -> dict[str, Any]:
    """The session cluster, whose Python workers answer at ``metrics_port`` unless that is 0. Pure; raises
    ManifestRefused.
    """
    ports = {"harness-pool": _POOL_PORT, **({"metrics": metrics_port} if metrics_port else {})}
    state = kubernetes.state_dir
    mounts, volumes = _state_volume(kubernetes)
    secret_mounts, secret_volumes = _secret_files(kubernetes, secrets)
    return _filled(
        "flink-deployment.yaml",
        name=kubernetes.name,
        namespace=kubernetes.namespace,
        component=job,
        flink_image=kubernetes.flink_image,
        flink_version=kubernetes.flink_version,
        service_account=kubernetes.service_account,
        checkpointing_interval=f"{checkpointing_interval} ms",
        checkpoints=f"{state}/checkpoints",
        savepoints=f"{state}/savepoints",
        high_availability=f"{state}/high-availability",
        job_manager=kubernetes.job_manager.model_dump(),
        task_manager=kubernetes.task_manager.model_dump(),
        image=kubernetes.image,
        harness_ports=[{"name": name, "containerPort": port} for name, port in ports.items()],
        harness={kind: _quantities(kubernetes.harness) for kind in ("requests", "limits")},
        secrets=_secret_environment(kubernetes, secrets),
        security={"fsGroup": _FLINK_GROUP} if volumes else {},
        state_mounts=mounts,
        state_volumes=volumes,
        confinement=_CONFINEMENT,
        harness_mounts=[_TEMPORARY_MOUNT, *secret_mounts],
        task_manager_volumes=[*volumes, _TEMPORARY_VOLUME, *secret_volumes],
    )


def flink_application(kubernetes: Kubernetes, cluster: Mapping[str, Any], parallelism: int) -> dict[str, Any]:
    """The same cluster with the job in it: the operator starts it, and upgrades it as ``upgrade_mode`` says. Pure;
    raises ManifestRefused.
    """
    if kubernetes.jar is None:
        raise ManifestError("kubernetes.jar is missing: give the jar in flink_image, local:///PATH")
    job = {
        "jarURI": kubernetes.jar,
        "entryClass": "org.apache.beam.runners.flink.FlinkPipelineRunner",
        "parallelism": parallelism,
        "upgradeMode": kubernetes.upgrade_mode,
        "state": "running",
    }
    return {**cluster, "spec": {**cluster["spec"], "job": job}}


def submitting_job(
    kubernetes: Kubernetes, job: str, arguments: Sequence[str], secrets: Sequence[SecretRef], open_: Mapping[str, str]
) -> dict[str, Any]:
    """The Job that launches with ``arguments`` and ends when the Flink job runs. ``open_`` maps the options left open
    to the variables that the config map holds. Pure; raises ManifestRefused.
    """
    mounts, volumes = _secret_files(kubernetes, secrets)
    settings = [
        {"name": name, "valueFrom": {"configMapKeyRef": {"name": kubernetes.config_map, "key": name}}}
        for name in open_.values()
    ]
    host, _, port = kubernetes.rest.partition(":")
    return _filled(
        "submitting-job.yaml",
        name=f"{kubernetes.name}-submit",
        namespace=kubernetes.namespace,
        component=job,
        image=kubernetes.image,
        job_server_image=kubernetes.job_server_image,
        flink_master=f"--flink-master={kubernetes.rest}",
        await_flink=f"import socket; socket.create_connection(({host!r}, {port}), 5)",
        arguments=[job, *arguments],
        environment=[*settings, *_secret_environment(kubernetes, secrets)],
        confinement=_CONFINEMENT,
        mounts=[_TEMPORARY_MOUNT, *mounts],
        volumes=[_TEMPORARY_VOLUME, *volumes],
    )


def _filled(skeleton: str, /, **values: object) -> dict[str, Any]:
    """A skeleton with its ``$placeholders`` replaced; what turned out empty is left out."""
    text = resources.files("itel_cabinet.templates").joinpath("kubernetes", skeleton).read_text(encoding="utf-8")
    # JSON is YAML, so that no value can break out of its place.
    manifest = yaml.safe_load(Skeleton(text).substitute({key: json.dumps(value) for key, value in values.items()}))
    pruned: dict[str, Any] = _without_empty(manifest)
    return pruned


def _without_empty(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_empty(value) for key, value in node.items() if value not in ([], {})}
    return [_without_empty(value) for value in node] if isinstance(node, list) else node


def _quantities(wanted: Resources) -> dict[str, str]:
    return {"cpu": f"{wanted.cpu:g}", "memory": wanted.memory}


def _secret_environment(kubernetes: Kubernetes, secrets: Iterable[SecretRef]) -> list[dict[str, Any]]:
    names = [*(ref.name for ref in secrets if ref.kind == "env"), *kubernetes.secret_environment]
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": kubernetes.secret, "key": name}}}
        for name in dict.fromkeys(names)
    ]


def _secret_files(
    kubernetes: Kubernetes, secrets: Iterable[SecretRef]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Mounts and volumes for ``file:PATH``: the secret's key is the file's name.

    Each folder is mounted whole: a file that is mounted by itself (``subPath``) never changes, so that a rotated secret
    would not arrive.
    """
    folders: dict[str, list[str]] = {}
    keys: set[str] = set()
    for path in dict.fromkeys(ref.name for ref in secrets if ref.kind == "file"):
        folder, _, key = path.rpartition("/")
        if not path.startswith("/"):
            raise ManifestError(
                f"file:{path} is relative: in a container it must be absolute, file:/run/secrets/{path}"
            )
        if folder.count("/") < 2:
            raise ManifestError(
                f"file:{path}: its folder is mounted whole, so it must be one of its own: file:/run/secrets/{key}"
            )
        if key in keys:
            raise ManifestError(f"file:{path}: another secret's file is called {key} too: rename one of them")
        keys.add(key)
        folders.setdefault(folder, []).append(key)
    mounts, volumes = [], []
    for number, (folder, files) in enumerate(folders.items()):
        name = f"{_SECRET_VOLUME}-{number}" if number else _SECRET_VOLUME
        items = [{"key": key, "path": key} for key in files]
        mounts.append({"name": name, "mountPath": folder, "readOnly": True})
        volumes.append({"name": name, "secret": {"secretName": kubernetes.secret, "items": items}})
    return mounts, volumes


def _state_volume(kubernetes: Kubernetes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    if kubernetes.state_claim is None:
        return [], []
    scheme, _, path = kubernetes.state_dir.partition("://")
    if scheme != "file" or not path.startswith("/"):
        raise ManifestError("kubernetes.state_claim: goes with a state_dir that begins with file:///: leave one out")
    claim = {"claimName": kubernetes.state_claim}
    return (
        [{"name": _STATE_VOLUME, "mountPath": path}],
        [{"name": _STATE_VOLUME, "persistentVolumeClaim": claim}],
    )
