"""What jobs and commands take as more settings of librdkafka, as a type for pydantic."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from itel_cabinet.io.kafka import client_config
from itel_cabinet.pipeline.json_options import JsonObject

__all__ = ["LibrdkafkaConfig"]

_KAFKA_OPTIONS = {
    "bootstrap.servers": "bootstrap_servers",
    "group.id": "consumer_group",
    "auto.offset.reset": "start_offset",
}


def _check_kafka_config(config: dict[str, str]) -> dict[str, str]:
    for key, option in _KAFKA_OPTIONS.items():
        if key in config:
            raise ValueError(f"{key} cannot be set: use --{option}")
    client_config("", config)
    return config


LibrdkafkaConfig = Annotated[JsonObject, AfterValidator(_check_kafka_config)]
