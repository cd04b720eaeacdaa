-- One table has one set of slots (relay/store/set.go): the rows without an heir. A slot whose work
-- another one has taken over names it. To relays that do not know these columns its row looks
-- owned, so that they stand by.
ALTER TABLE saga_outbox_relay
    ADD COLUMN IF NOT EXISTS generation BIGINT NOT NULL DEFAULT 1,  -- of the slot's set
    ADD COLUMN IF NOT EXISTS shards     INTEGER NOT NULL DEFAULT 1,  -- slots in that set
    ADD COLUMN IF NOT EXISTS heir       TEXT;  -- the slot that took over, or null

-- When the event was committed, or created where that is not known, because its age does not begin
-- again with its entry. Null: of an older version.
ALTER TABLE saga_outbox_delivery ADD COLUMN IF NOT EXISTS event_at TIMESTAMPTZ;
