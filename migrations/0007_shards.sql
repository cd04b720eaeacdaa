-- How the table's events are divided among replication slots: one row for the table, which the
-- first relay makes, or "migrate" (relay/store/readset.go). The columns from target on are of a
-- change of the number of slots that is under way.
CREATE TABLE IF NOT EXISTS saga_outbox_set (
    one         BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    slot        TEXT NOT NULL,             -- RELAY_SLOT: the slot's name, or what those of several begin with
    publication TEXT NOT NULL,             -- the same, RELAY_PUBLICATION
    shards      INTEGER NOT NULL CHECK (shards >= 1 AND shards <= 64),
    generation  BIGINT NOT NULL DEFAULT 1, -- counts the changes of shards
    target      INTEGER CHECK (target >= 1 AND target <= 64),  -- null: no change is under way
    state       TEXT CHECK (state IN ('making', 'draining')),
    switch_lsn  PG_LSN,                    -- from here on the new slots deliver
    since       TIMESTAMPTZ,
    changer     TEXT,                      -- WORKER_ID of who works on it
    trouble     TEXT,                      -- why its last step failed; null: it did not
    CHECK ((target IS NULL) = (state IS NULL))
);

ALTER TABLE saga_outbox_relay
    ADD COLUMN IF NOT EXISTS shard  INTEGER NOT NULL DEFAULT 0,  -- which of its set's shards; of how many is in shards
    -- The process that has the lease (relay/store/roster.go). Null: of a version before this one.
    ADD COLUMN IF NOT EXISTS member BIGINT;
