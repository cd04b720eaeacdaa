-- Since when, by the owner's clock in Unix milliseconds, it may have sent what it has not marked: a
-- sink whose broker can be read tells the next owner what of it arrived (relay/engine/doubt.go).
-- Null: nothing is in doubt, or nothing is known of it.
ALTER TABLE saga_outbox_relay ADD COLUMN IF NOT EXISTS doubt_since BIGINT;
