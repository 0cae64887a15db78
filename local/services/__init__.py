"""The servers that the system needs, as real processes on this machine: Kafka, Flink, an object store, Prometheus,
Toxiproxy."""

from __future__ import annotations

from itel_cabinet.local.services.artifacts import ArtifactError
from itel_cabinet.local.services.azurite import Azurite, AzuriteError
from itel_cabinet.local.services.flink import Checkpoints, FlinkCluster, FlinkError, Job
from itel_cabinet.local.services.guarded import Guarded
from itel_cabinet.local.services.kafka import Broker, BrokerError, Message
from itel_cabinet.local.services.ports import HOST, free_port
from itel_cabinet.local.services.prometheus import Prometheus, promtool, with_durations
from itel_cabinet.local.services.s3 import S3, S3Error
from itel_cabinet.local.services.toxiproxy import Toxiproxy, ToxiproxyError

__all__ = [
    "HOST",
    "S3",
    "ArtifactError",
    "Azurite",
    "AzuriteError",
    "Broker",
    "BrokerError",
    "Checkpoints",
    "FlinkCluster",
    "FlinkError",
    "Guarded",
    "Job",
    "Message",
    "Prometheus",
    "S3Error",
    "Toxiproxy",
    "ToxiproxyError",
    "free_port",
    "promtool",
    "with_durations",
]
