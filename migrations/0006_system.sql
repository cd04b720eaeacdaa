-- Which cluster the positions of a row are of: they mean nothing in another one, to which the database was dumped and restored.
-- Null: not noted yet, by a relay older than this.
ALTER TABLE saga_outbox_relay
    ADD COLUMN IF NOT EXISTS system_id BIGINT,  -- pg_control_system()
    ADD COLUMN IF NOT EXISTS timeline  TEXT;    -- of the WAL; a promotion begins another one
