"""Records as clients in other languages may write them: by the librdkafka that confluent-kafka brings, past its Python
layer, which writes text only as names of headers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import confluent_kafka

from itel_cabinet.local.services import Broker

__all__ = ["produce_raw"]

# Of rdkafka.h: rd_kafka_type_t, rd_kafka_vtype_t and RD_KAFKA_MSG_F_COPY.
_PRODUCER = 0
_END, _TOPIC, _VALUE, _PARTITION, _HEADERS, _MSGFLAGS = 0, 1, 4, 3, 10, 7
_COPY = 0x2


def _library() -> ctypes.CDLL:
    (path,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka-*.so*")
    library = ctypes.CDLL(str(path))
    for function in ("rd_kafka_new", "rd_kafka_conf_new", "rd_kafka_headers_new"):
        getattr(library, function).restype = ctypes.c_void_p
    return library


def produce_raw(
    broker: Broker, topic: str, records: Sequence[tuple[Sequence[tuple[bytes, bytes | None]], bytes]]
) -> None:
    """Write records (headers, value) to partition 0, and wait until the broker has them."""
    kafka = _library()
    text = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(kafka.rd_kafka_conf_new())
    servers = broker.bootstrap_servers.encode()
    assert kafka.rd_kafka_conf_set(conf, b"bootstrap.servers", servers, text, ctypes.c_size_t(512)) == 0, text.value
    handle = ctypes.c_void_p(kafka.rd_kafka_new(_PRODUCER, conf, text, ctypes.c_size_t(512)))
    assert handle.value, text.value
    for headers, value in records:
        own = ctypes.c_void_p(kafka.rd_kafka_headers_new(ctypes.c_size_t(len(headers))))
        for name, content in headers:
            size = -1 if content is None else len(content)
            kafka.rd_kafka_header_add(own, name, ctypes.c_ssize_t(len(name)), content, ctypes.c_ssize_t(size))
        failed = kafka.rd_kafka_producev(
            handle,
            *(ctypes.c_int(_TOPIC), ctypes.c_char_p(topic.encode())),
            *(ctypes.c_int(_PARTITION), ctypes.c_int32(0)),
            *(ctypes.c_int(_VALUE), ctypes.c_char_p(value), ctypes.c_size_t(len(value))),
            *(ctypes.c_int(_HEADERS), own),
            *(ctypes.c_int(_MSGFLAGS), ctypes.c_int(_COPY)),
            ctypes.c_int(_END),
        )
        assert failed == 0
    assert kafka.rd_kafka_flush(handle, 30_000) == 0
    kafka.rd_kafka_destroy(handle)
