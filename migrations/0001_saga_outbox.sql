-- The library's own tables (sagaz 1.5.0, OUTBOX_SCHEMA), where they are not there yet: same
-- columns, same order, same index names. Two things differ, and only on tables made here. No index
-- mentions a column that a mark changes, and pages are left half empty. So marking a row sent is a
-- HOT update, which is three times as fast (relay/DESIGN.md, "Marks"). A table that exists is not
-- changed here; "migrate --tune" does that.
CREATE TABLE IF NOT EXISTS saga_outbox (
    event_id        UUID PRIMARY KEY,
    saga_id         VARCHAR(255) NOT NULL,
    aggregate_type  VARCHAR(255) NOT NULL DEFAULT 'saga',
    aggregate_id    VARCHAR(255) NOT NULL,
    event_type      VARCHAR(255) NOT NULL,
    payload         JSONB NOT NULL,
    headers         JSONB NOT NULL DEFAULT '{}',
    status          VARCHAR(50) NOT NULL DEFAULT 'pending',
    created_at      TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    claimed_at      TIMESTAMPTZ,
    sent_at         TIMESTAMPTZ,
    retry_count     INTEGER NOT NULL DEFAULT 0,
    last_error      TEXT,
    worker_id       VARCHAR(255),
    CONSTRAINT valid_status CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['pending'::varchar, 'claimed'::varchar, 'sent'::varchar, 'failed'::varchar, 'dead_letter'::varchar]))
) WITH (fillfactor = 50);

CREATE INDEX IF NOT EXISTS idx_outbox_pending ON saga_outbox (created_at);
CREATE INDEX IF NOT EXISTS idx_outbox_claimed_at ON saga_outbox (claimed_at) WHERE claimed_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS idx_outbox_saga_id ON saga_outbox (saga_id);

CREATE TABLE IF NOT EXISTS saga_outbox_archive (LIKE saga_outbox INCLUDING ALL EXCLUDING IDENTITY EXCLUDING GENERATED);

-- A small index that finds the few rows that are not sent among millions that are. It mentions the
-- status and still keeps marks HOT, from PostgreSQL 16 on. It is made only with our own table,
-- which is recognised by its indexes, and is not copied to the archive.
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 160000
        AND EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('idx_outbox_pending')::oid AND indpred IS NULL) THEN
        CREATE INDEX IF NOT EXISTS saga_outbox_status ON saga_outbox USING brin (status) WITH (pages_per_range = 64, autosummarize = on);
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS consumer_inbox (
    event_id               UUID PRIMARY KEY,
    consumer_name          VARCHAR(255) NOT NULL,
    source_topic           VARCHAR(255) NOT NULL,
    event_type             VARCHAR(255) NOT NULL,
    payload                JSONB NOT NULL,
    consumed_at            TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    processing_duration_ms INTEGER
);

CREATE INDEX IF NOT EXISTS idx_consumer_inbox_cleanup ON consumer_inbox (consumer_name, consumed_at);
