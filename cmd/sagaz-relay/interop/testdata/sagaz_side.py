"""The library's side of the interop test. Every command prints JSON lines; see the functions."""

import asyncio
import json
import os
import random
import sys
import traceback
from datetime import UTC, datetime, timedelta, timezone

from sagaz.core.outbox import OutboxEvent
from sagaz.core.outbox.consumer_inbox import ConsumerInbox
from sagaz.core.storage.backends.postgresql.outbox import PostgreSQLOutboxStorage


def report(**fields):
    print(json.dumps(fields, default=repr), flush=True)


async def open_storage(dsn):
    storage = PostgreSQLOutboxStorage(dsn, pool_min_size=1, pool_max_size=4)
    await storage.initialize()
    return storage


async def initialize(dsn):
    """Makes the library's tables."""
    await (await open_storage(dsn)).close()
    report(done=True)


DEEP = "bottom"
for _ in range(40):
    DEEP = {"down": [DEEP]}

PAYLOADS = [
    {"order_id": "ORD-1", "items": [{"sku": "A", "qty": 2}, {"sku": "B", "qty": 1}]},
    {},
    {"nothing": None, "yes": True, "no": False, "empty": {}, "none": []},
    {"text": "žluťoučký kůň 🐎 日本語 \u2028\u2029 \u007f é e\u0301", "ключ": "значение", "": "empty key"},
    {"text": 'quote " backslash \\ slash / newline \n return \r tab \t bell \u0007 unit \u001f', "html": "<a href='x'>&</a>"},
    {"long": 2**63, "longer": 10**40, "negative": -(2**70), "zero": 0, "one": 1},
    {"tenth": 0.1, "small": 1e-7, "smaller": 2.5e-300, "big": 1e16, "bigger": 1.5e300, "minus": -0.0, "three": 3.0,
     "sum": 0.1 + 0.2, "exact": 123456.789, "digits": 1.7976931348623157e308, "least": 5e-324},
    DEEP,
    {"blob": "0123456789abcdef" * 4000},
    ["a", "list", 1],
    "only a string",
    {"b": 1, "a": 2, "aa": 3, "timestamp": "2026-01-01", "event_id": "not the event's"},
]
HEADERS = [
    {},
    {"trace_id": "abc123", "correlation_id": "c-1"},
    {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "empty": "", "unicode": "ž🐎", "long": "x" * 3000},
    {"content_type": "application/vnd.order+json", "saga_id": "overridden", "zz": "1", "a": "2"},
    {"event_id": "overridden", "event_type": "overridden", 'quote"': 'a "quoted" \\ value\n'},
]
MOMENTS = [
    datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, 0, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, 1, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, 120000, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(1969, 7, 20, 20, 17, 40, 500000, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),  # stored as -infinity
    datetime(1, 1, 1, 0, 0, 1, tzinfo=UTC),
    datetime(999, 12, 31, 23, 59, 59, 7, tzinfo=UTC),
    None,  # the library's own choice
]
KEYS = [None, "ord-1", "ord-2", "", "ключ-🐎", "k" * 255, " spaced ", "0", "ord-3", "ord-4", "ord-5"]


def event(i, prefix, **fields):
    chosen = dict(
        saga_id=f"{prefix}-saga-{i % 7}" if i % 5 else f"{prefix}-сага-{i % 7}",
        event_type=prefix + [".order.created", ".order.paid", ".Order_Compensated-1"][i % 3],
        payload=PAYLOADS[i % len(PAYLOADS)],
        headers=HEADERS[i % len(HEADERS)],
        aggregate_id=KEYS[i % len(KEYS)],
    )
    if i % 4:
        chosen["aggregate_type"] = "order"
    moment = MOMENTS[i % len(MOMENTS)]
    if moment is not None:
        chosen["created_at"] = moment
    return OutboxEvent(**{**chosen, **fields})


async def insert(dsn, prefix, first, count, pause_ms, odd=""):
    """Inserts events in transactions of one to five, and prints each in commit order. odd adds the kinds apart. A count of
    0 goes on until standard input closes."""
    storage = await open_storage(dsn)
    rng = random.Random(int(first))
    events = [event(i, prefix) for i in range(int(first), int(first) + int(count))]
    if odd:
        events += [
            event(1, prefix, event_type=prefix + ".typed", headers={"int": 5, "float": 1.5, "yes": True, "none": None, "table": {"a": [1, "b"]}, "text": "t"}),
            event(2, prefix, event_type=prefix + ".infinity", created_at=datetime.max.replace(tzinfo=UTC)),
            event(3, prefix, event_type=prefix + ".ahead", created_at=datetime.now(UTC) + timedelta(hours=1)),
        ]
    closed = asyncio.create_task(stdin_closed()) if int(count) == 0 else None
    number = int(first)
    while events or (closed and not closed.done()):
        size = rng.randint(1, 5)
        if closed:
            events = [event(i, prefix) for i in range(number, number + size)]
            number += size
        some, events = events[:size], events[size:]
        async with storage._pool.acquire() as conn, conn.transaction():
            for e in some:
                await storage.insert(e, connection=conn)
        for e in some:
            report(event_id=e.event_id, saga_id=e.saga_id, aggregate_id=e.aggregate_id, event_type=e.event_type)
        await asyncio.sleep(int(pause_ms) / 1000)
    await storage.close()


class Receiver:
    """Prints what arrives, with the inbox's verdict."""

    def __init__(self, storage, name):
        self.inbox = ConsumerInbox(storage, name) if storage else None

    async def receive(self, source, body, **fields):
        handled = None
        if self.inbox:
            message = json.loads(body)

            async def handler(payload):
                return True

            handled = bool(await self.inbox.process_idempotent(message["event_id"], source, message["event_type"], message["payload"], handler))
        report(source=source, body=body.decode("utf-8"), handled=handled, **fields)


async def stdin_closed():
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def consume_kafka(bootstrap, topics, inbox=""):
    """Prints what comes into the topics from now on, until standard input closes."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    storage = await open_storage(inbox) if inbox else None
    receiver = Receiver(storage, "interop-kafka")
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, enable_auto_commit=False)
    await consumer.start()
    partitions = []
    for topic in topics.split(","):
        while not (found := consumer.partitions_for_topic(topic)):
            await consumer._client.force_metadata_update()
            await consumer._client._wait_on_metadata(topic)
        partitions += [TopicPartition(topic, p) for p in sorted(found)]
    consumer.assign(partitions)
    for p, end in (await consumer.end_offsets(partitions)).items():  # seek_to_end takes half a second for each
        consumer.seek(p, end)
    report(ready=True)

    async def loop():
        async for m in consumer:
            await receiver.receive(
                m.topic, m.value, partition=m.partition, key=None if m.key is None else m.key.decode("utf-8"),
                headers=[[k, v.decode("utf-8")] for k, v in m.headers],
            )

    await until_closed(loop())
    await consumer.stop()
    if storage:
        await storage.close()


async def consume_rabbitmq(url, exchange, inbox=""):
    """Prints what comes to a queue that is bound to everything, until standard input closes."""
    import aio_pika

    storage = await open_storage(inbox) if inbox else None
    receiver = Receiver(storage, "interop-rabbitmq")
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=100)
    source = await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(source, "#")

    async def loop():
        async with queue.iterator() as messages:
            report(ready=True)
            async for m in messages:
                await receiver.receive(
                    m.routing_key, m.body, exchange=m.exchange, headers=[[k, v] for k, v in m.headers.items()],
                    content_type=m.content_type, content_encoding=m.content_encoding, delivery_mode=int(m.delivery_mode or 0), priority=m.priority,
                    message_id=m.message_id, type=m.type, timestamp=m.timestamp and m.timestamp.isoformat(), correlation_id=m.correlation_id,
                    reply_to=m.reply_to, expiration=m.expiration, app_id=m.app_id, user_id=m.user_id,
                )
                await m.ack()

    await until_closed(loop())
    await source.delete()
    await connection.close()
    if storage:
        await storage.close()


async def until_closed(loop):
    """Runs loop until standard input closes; when loop fails first, so do we."""
    work, closed = asyncio.create_task(loop), asyncio.create_task(stdin_closed())
    await asyncio.wait([work, closed], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        traceback.print_exception(work.exception())
        sys.stderr.flush()
        os._exit(1)  # the reader of standard input would hold us up
    work.cancel()


async def read(dsn, sagas):
    """Prints what the library's storage makes of the rows."""
    storage = await open_storage(dsn)
    for saga in json.loads(sagas):
        for e in await storage.get_events_by_saga(saga):
            report(event=e.to_dict())
    report(
        pending=await storage.get_pending_count(), stuck=[e.event_id for e in await storage.get_stuck_events(0)],
        dead=[e.to_dict() for e in await storage.get_dead_letter_events()], count=await storage.count(),
    )
    await storage.close()


async def archive(dsn):
    """Archives every sent row."""
    storage = await open_storage(dsn)
    report(archived=await storage.archive_sent_events(older_than_days=0), left=await storage.count())
    await storage.close()


async def cloudevents(path):
    """Reads deliveries, one JSON object a line, by the SDK of CloudEvents, and prints what events they are."""
    from cloudevents.core.bindings import amqp, kafka
    from cloudevents.core.formats.json import JSONFormat

    with open(path, encoding="utf-8") as lines:
        for d in map(json.loads, lines):
            body, headers = d["body"].encode("utf-8"), dict(d["headers"])
            if d["content_type"]:
                message = amqp.AMQPMessage({"content-type": d["content_type"]}, headers, body)
                event = amqp.from_amqp(message, JSONFormat())
                structured = d["content_type"].startswith("application/cloudevents")
            else:
                key = None if d["key"] is None else d["key"].encode("utf-8")
                message = kafka.KafkaMessage({k: v.encode("utf-8") for k, v in headers.items()}, key, body)
                event = kafka.from_kafka(message, JSONFormat())
                structured = headers["content-type"].startswith("application/cloudevents")
            time = event.get_time()
            attributes = {k: v for k, v in event.get_attributes().items() if isinstance(v, str)}
            report(attributes=attributes, structured=structured, time=time and time.isoformat(), data=event.get_data())


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
