-- The cluster of a row's positions: they mean nothing in another one, to which the database was
-- dumped and restored. Null: not noted yet, by an older relay.
ALTER TABLE saga_outbox_relay
    ADD COLUMN IF NOT EXISTS system_id BIGINT,  -- pg_control_system()
    ADD COLUMN IF NOT EXISTS timeline  TEXT;    -- of the WAL; a promotion begins another one
