-- The sinks of the slot's last owner, with commas, so that the next one knows which are new, and
-- which are gone. Null: not noted.
ALTER TABLE saga_outbox_relay ADD COLUMN IF NOT EXISTS sinks TEXT;
