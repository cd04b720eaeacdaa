-- The ledger of exceptions: one row for each event that a sink did not get at the first try, until
-- it does (relay/DESIGN.md, "The ledger"). Normally it is empty. A row is written in the
-- transaction that lets the slot pass its event.
CREATE TABLE IF NOT EXISTS saga_outbox_delivery (
    event_id        UUID NOT NULL,
    sink            TEXT NOT NULL,
    slot            TEXT NOT NULL,          -- whose owner delivers it
    -- The order in which the slot's owners took the events; within a key it is the order of
    -- delivery.
    position        BIGINT NOT NULL,
    partition_key   TEXT NOT NULL,
    key_hash        INTEGER NOT NULL,       -- murmur2 of partition_key
    event_type      TEXT NOT NULL,
    commit_lsn      PG_LSN,                 -- null: found by the sweep, not streamed
    -- The inserting transaction; null: not streamed. While it is not visible, its row is not gone.
    xid             XID8,
    state           TEXT NOT NULL CHECK (state IN ('retry', 'held', 'dead')),
    attempts        INTEGER NOT NULL DEFAULT 0,  -- refusals charged to the event
    next_attempt_at TIMESTAMPTZ,            -- in state retry: not before; null: at once
    reason          TEXT,                   -- null for an event that only waits behind another
    last_error      TEXT,
    -- Later events of its key do not wait for it: a dead letter that was passed, a replay.
    detached        BOOLEAN NOT NULL DEFAULT false,
    discarded       BOOLEAN NOT NULL DEFAULT false,  -- given up by a person; the owner takes it out
    replayed_at     TIMESTAMPTZ,            -- a person wants it delivered again
    parked_at       TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (event_id, sink)
);

-- What may be offered now, in order; what becomes due; what a person has given up. Then, for one
-- key, what may be offered, and what the entries behind it have to wait for. An entry that is not
-- detached is in exactly one of the last two.
CREATE INDEX IF NOT EXISTS saga_outbox_delivery_ready ON saga_outbox_delivery (slot, sink, position) WHERE state = 'retry' AND next_attempt_at IS NULL;
CREATE INDEX IF NOT EXISTS saga_outbox_delivery_due ON saga_outbox_delivery (slot, sink, next_attempt_at) WHERE state = 'retry' AND next_attempt_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS saga_outbox_delivery_discarded ON saga_outbox_delivery (slot, sink, position) WHERE discarded;
CREATE INDEX IF NOT EXISTS saga_outbox_delivery_key ON saga_outbox_delivery (slot, sink, key_hash, position)
    WHERE NOT detached AND state = 'retry' AND next_attempt_at IS NULL;
CREATE INDEX IF NOT EXISTS saga_outbox_delivery_blocking ON saga_outbox_delivery (slot, sink, key_hash, position)
    WHERE NOT detached AND (state <> 'retry' OR next_attempt_at IS NOT NULL);

ALTER TABLE saga_outbox_relay
    -- The slot was never allowed to pass this; a slot further on was moved by somebody.
    ADD COLUMN IF NOT EXISTS confirmed_lsn  PG_LSN NOT NULL DEFAULT '0/0',
    -- Rows that the stream does not deliver have to be found in the table before the slot is read.
    ADD COLUMN IF NOT EXISTS sweep_owed     BOOLEAN NOT NULL DEFAULT true,
    ADD COLUMN IF NOT EXISTS sweep_cause    TEXT NOT NULL DEFAULT 'first start',
    -- A pg_snapshot in which those rows are visible; null: not taken yet.
    ADD COLUMN IF NOT EXISTS sweep_snapshot TEXT,
    ADD COLUMN IF NOT EXISTS sweep_lsn      PG_LSN, -- the slot's position that it was taken for
    -- The owner has the lease by renewed_at alone, without a lock.
    ADD COLUMN IF NOT EXISTS pooled         BOOLEAN NOT NULL DEFAULT false;
