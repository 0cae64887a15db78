"""A broker that wants TLS and a password, as the jobs meet it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from itel_cabinet.local.samples import Generator, produce
from itel_cabinet.local.services import HOST, Broker, free_port
from tests.support.accounting import assert_everything_accounted_for, assert_published_once
from tests.support.certificates import self_signed
from tests.support.jobs import Stack

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True)
class Guarded:
    """A broker with a second listener, for clients that bring a password and know its certificate."""

    broker: Broker
    servers: str
    certificate: Path

    def options(self, **config: str) -> dict[str, str]:
        """A job's options for that listener; ``config`` changes them."""
        settings = {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "cabinet",
            "sasl.password": "env:KAFKA_PASSWORD",
            "ssl.ca.location": str(self.certificate),
        } | {name.replace("_", "."): value for name, value in config.items()}
        return {"bootstrap_servers": self.servers, "kafka_config": json.dumps(settings)}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    certificate, key = self_signed(folder)
    both = folder / "keystore.pem"
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    port, controller, guarded = free_port(), free_port(), free_port()
    listeners = f"PLAINTEXT://{HOST}:{port},GUARDED://{HOST}:{guarded}"
    config = {
        "listeners": f"{listeners},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,GUARDED:SASL_SSL",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "true",
        "listener.name.guarded.ssl.keystore.type": "PEM",
        "listener.name.guarded.ssl.keystore.location": str(both),
        "listener.name.guarded.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.guarded.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_cabinet="{PASSWORD}";'
        ),
    }
    broker = Broker(folder / "broker", port, controller, config)
    broker.folder.mkdir()
    broker.start_again()
    with broker:
        yield Guarded(broker, f"{HOST}:{guarded}", certificate)


@pytest.fixture(scope="module")
def broker(guarded: Guarded) -> Broker:
    """In the place of the session's."""
    return guarded.broker


def test_a_topic_that_may_not_be_read_is_named(stack: Stack, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    topic = stack.topic("tracking")
    place = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:cabinet", "*")
    see = AclBinding(*place, AclOperation.DESCRIBE, AclPermissionType.ALLOW)
    admin = AdminClient({"bootstrap.servers": guarded.broker.bootstrap_servers})
    for done in admin.create_acls([see]).values():
        done.result(30)
    with stack.running("cabinet", **guarded.options()) as job:
        assert job.wait(90) == 1, job.errors
    assert f"Kafka, topic {topic}: this user may not read it: grant the right READ on the topic" in job.errors


def test_a_transaction_that_may_not_be_begun_is_named(
    stack: Stack, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    place = (ResourceType.TRANSACTIONAL_ID, "itel-cabinet/", ResourcePatternType.PREFIXED, "User:cabinet", "*")
    admin = AdminClient({"bootstrap.servers": guarded.broker.bootstrap_servers})
    see = AclBinding(*place, AclOperation.DESCRIBE, AclPermissionType.ALLOW)
    for done in admin.create_acls([see]).values():
        done.result(30)
    options = guarded.options()
    with stack.running("trigger", **options) as job:
        assert job.wait(90) == 1, job.errors
        [line] = job.errors.splitlines()
    name = f"itel-cabinet/{stack.prefix}.trigger/check"
    assert line.startswith(f"itel-cabinet: --transactions: Kafka at {guarded.servers}, transaction {name}: "), line
    assert "grant this user the right WRITE on the transactional id" in line

    write = AclBinding(*place, AclOperation.WRITE, AclPermissionType.ALLOW)
    for done in admin.create_acls([write]).values():
        done.result(30)
    records = Generator(82, start=datetime.now(UTC)).claimx_events(50)
    receipts = produce(guarded.broker.bootstrap_servers, stack.topic("enriched"), records, stack.claimx)
    stack.run("trigger", **options)
    assert_published_once(stack, receipts)


def test_a_job_over_tls_with_a_password(stack: Stack, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    records = Generator(81, start=datetime.now(UTC)).tracking_messages(150)
    receipts = produce(guarded.broker.bootstrap_servers, stack.topic("tracking"), records, stack.claimx)
    job = stack.run("cabinet", **guarded.options())
    assert PASSWORD not in job.errors
    assert_everything_accounted_for(stack, receipts)


@pytest.mark.parametrize(
    ("config", "password", "told"),
    [
        ({}, "wrong-password", "--kafka_config: no entry at .*Authentication failed.*check user name and password"),
        ({"ssl_ca_location": ""}, PASSWORD, "--kafka_config: no entry at .*certificate verify failed.*ssl.ca.location"),
        (
            {"security_protocol": "PLAINTEXT"},
            PASSWORD,
            "--bootstrap_servers: no broker answers .*--kafka_config too",
        ),
    ],
    ids=["wrong password", "unknown certificate", "without TLS"],
)
def test_what_is_wrong_is_one_line(
    stack: Stack, guarded: Guarded, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], password: str, told: str
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", password)
    with stack.running("cabinet", **guarded.options(**config)) as job:
        assert job.wait() == 1, job.errors
        [line] = job.errors.splitlines()
    assert re.match(f"itel-cabinet: {told}", line), line
    assert password not in line
