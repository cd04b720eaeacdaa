-- One row a slot: who owns it, how often it has changed hands, how far its rows are marked. Every
-- mark transaction updates the row, so its page has room for the dead versions between two vacuums.
CREATE TABLE IF NOT EXISTS saga_outbox_relay (
    slot         TEXT PRIMARY KEY,
    epoch        BIGINT NOT NULL,           -- owners so far; a mark with an older one is refused
    owner        TEXT NOT NULL,             -- WORKER_ID
    marked_lsn   PG_LSN NOT NULL DEFAULT '0/0',   -- highest commit LSN of a marked event
    swept_until  TIMESTAMPTZ,               -- everything created before is marked or in the ledger
    taken_at     TIMESTAMPTZ NOT NULL DEFAULT now(),
    renewed_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    released_at  TIMESTAMPTZ                -- set by a clean stop
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
