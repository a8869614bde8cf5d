"""A keylane producer in Python: what docs/protocol.md asks for, and nothing else.

    producer.py [--url URL] [--namespace NAME] --resource FIELD < tasks.ndjson

publishes one task per line of JSON; the resource is the text in FIELD. Every task is
confirmed before the next one is sent. When the connection is lost it is opened again,
and the task that was on its way is sent again, marked as such.
"""

import argparse
import itertools
import json
import os
import sys
import time
import uuid

import pika
import pika.exceptions
import xxhash


def partition_of(resource: str, count: int) -> int:
    """The partition of a resource: the share of the hash's range that it falls into."""
    return (xxhash.xxh3_64_intdigest(resource.encode()) * count) >> 64


class NotSetUp(Exception):
    """There is no record of the namespace's topology."""


class Producer:
    """Publishes tasks, in order, each confirmed by the broker."""

    # A broker that is restarting is asked again after these, in seconds; the last for ever.
    PAUSES = [0.1, 0.2, 0.5, 1, 2, 5]

    def __init__(self, url: str, namespace: str = "keylane"):
        self.parameters = pika.URLParameters(url)
        self.namespace = namespace
        # Names this run of us; its tasks are numbered, so that `keylane verify` can
        # check their order and tell copies from second executions.
        self.name = uuid.uuid4().hex[:12]
        self.sequence = 0
        self.topology = None
        self.connection = None
        self._connect()

    def publish(self, resource: str, payload: bytes, id: str = None, kind: str = None) -> str:
        """Publishes one task and waits for the broker's confirm. Returns the task's id.

        Raises ValueError for a resource that is none, and pika's UnroutableError or
        NackError for a task that the broker did not take.
        """
        if not 1 <= len(resource.encode()) <= 1024:
            raise ValueError("a resource has 1 to 1,024 bytes of UTF-8")
        id = id or str(uuid.uuid4())
        headers = {"resource": resource}
        app_id = f"keylane/{self.name}/{self.sequence}"
        self.sequence += 1
        while True:
            properties = pika.BasicProperties(
                message_id=id,
                type=kind,
                app_id=app_id,
                delivery_mode=pika.DeliveryMode.Persistent.value,
                timestamp=int(time.time()),
                headers=headers,
            )
            try:
                self.channel.basic_publish(
                    exchange=f"{self.namespace}.g{self.topology['generation']}",
                    routing_key=str(partition_of(resource, self.topology["partitions"])),
                    body=payload,
                    properties=properties,
                    mandatory=True,
                )
                return id
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
                raise
            except (pika.exceptions.AMQPConnectionError, pika.exceptions.AMQPChannelError):
                # Nobody knows whether the broker has it.
                headers["republished"] = True
                self._connect()

    def close(self):
        self.connection.close()

    def _connect(self):
        for attempt in itertools.count():
            try:
                self.connection = pika.BlockingConnection(self.parameters)
                stored = self._read_topology()
                break
            except (pika.exceptions.AMQPError, NotSetUp):
                # Who has worked before waits, for a broker that is starting as well.
                if self.topology is None:
                    raise
                time.sleep(self.PAUSES[min(attempt, len(self.PAUSES) - 1)])
        if self.topology not in (None, stored):
            raise RuntimeError(f"the topology has changed: {self.topology} became {stored}")
        self.topology = stored
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()

    def _read_topology(self) -> dict:
        """The first record of the stream of topologies is the one in force."""
        channel = self.connection.channel()
        channel.basic_qos(prefetch_count=1)
        records = channel.consume(
            f"{self.namespace}.topology",
            arguments={"x-stream-offset": "first"},
            inactivity_timeout=10,
        )
        method, _, body = next(records)
        if method is None:
            raise NotSetUp(f"namespace {self.namespace} is not set up: run keylane init")
        channel.cancel()
        channel.close()
        topology = json.loads(body)
        if topology["hash"] != "xxh3_64":
            raise RuntimeError(f"an unknown hash: {topology['hash']}")
        return topology


def main():
    options = argparse.ArgumentParser()
    url = os.environ.get("KEYLANE_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f")
    options.add_argument("--url", default=url)
    options.add_argument("--namespace", default=os.environ.get("KEYLANE_NAMESPACE", "keylane"))
    options.add_argument("--resource", required=True, metavar="FIELD")
    options = options.parse_args()
    producer = Producer(options.url, options.namespace)
    count = 0
    for number, line in enumerate(sys.stdin, start=1):
        try:
            resource = json.loads(line)[options.resource]
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(f"line {number}: {error!r}")
        producer.publish(str(resource), line.rstrip("\n").encode())
        count += 1
    producer.close()
    print(f"published {count}")


if __name__ == "__main__":
    main()
