-- The sinks of the slot's last owner, with commas, so that the next one can tell which are new, and which are gone. Null: it did not say.
ALTER TABLE saga_outbox_relay ADD COLUMN IF NOT EXISTS sinks TEXT;
