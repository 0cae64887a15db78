"""The commands `itel-cabinet topics ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from itel_cabinet.pipeline import operate
from itel_cabinet.pipeline.commands.printing import print_json, print_rows
from itel_cabinet.pipeline.commands.shared import PROGRAM, AsJson, DryRun, KafkaConfig, Servers, open_cluster
from itel_cabinet.pipeline.topics import DAY_MS, TopicSpec

__all__ = ["topics_app"]

topics_app = typer.Typer(help="The Kafka topics that the jobs use.")


@topics_app.command("create")
def create_topics(
    bootstrap_servers: Servers,
    replication_factor: Annotated[
        int, typer.Option("--replication_factor", min=1, help="Brokers that hold each record; 1 on a laptop.")
    ] = 3,
    letter_retention_days: Annotated[
        int | None,
        typer.Option("--letter_retention_days", min=1, help="How long dead letters are kept, to be replayed; else 30."),
    ] = None,
    dry_run: DryRun = False,
    kafka_config: KafkaConfig = "{}",
) -> None:
    """Make the topics that are missing; those that exist are left alone. May be repeated."""
    with open_cluster(bootstrap_servers, kafka_config) as cluster:
        for made in operate.create_topics(
            cluster, replication_factor, letter_days=letter_retention_days, dry_run=dry_run
        ):
            spec = made.spec
            kept = f"kept {spec.retention_days} days" if spec.retention_days else "kept as the broker says"
            shape = f"partitions: {spec.partitions}, replicas: {replication_factor}, {kept}"
            verb = "would be created" if dry_run else "created"
            typer.echo(f"{spec.name}: {f'{verb} ({shape})' if made.created else 'exists, left alone'}")


@topics_app.command("describe")
def describe_topics(bootstrap_servers: Servers, kafka_config: KafkaConfig = "{}", as_json: AsJson = False) -> None:
    """Show the topics as they are."""
    rows, missing = [], []
    with open_cluster(bootstrap_servers, kafka_config) as cluster:
        for topic in operate.describe_topics(cluster):
            if isinstance(topic, TopicSpec):
                missing.append(topic.name)
                continue
            kept = None if topic.retention_ms < 0 else topic.retention_ms / DAY_MS
            rows.append(
                {
                    "topic": topic.name,
                    "topic_id": topic.topic_id,
                    "partitions": topic.partitions,
                    "kept_days": kept,
                    "records": topic.records,
                }
            )
    if as_json:
        print_json({"topics": rows, "missing": missing})
        return
    shown = [row | {"kept_days": "for ever" if row["kept_days"] is None else f"{row['kept_days']:g}"} for row in rows]
    heads = {"topic": "topic", "topic_id": "topic id", "partitions": "partitions", "kept_days": "kept days"}
    print_rows(heads | {"records": "records"}, shown)
    if missing:
        typer.echo(f"missing: {', '.join(missing)}; `{PROGRAM} topics create` makes them")
