-- One table has one set of slots (relay/store/set.go): the rows without an heir. A slot whose work another one has taken over names it; to
-- relays that do not know these columns its row looks owned, so that they stand by.
ALTER TABLE saga_outbox_relay
    ADD COLUMN IF NOT EXISTS generation BIGINT NOT NULL DEFAULT 1,   -- of the set that the slot belongs to
    ADD COLUMN IF NOT EXISTS shards     INTEGER NOT NULL DEFAULT 1,  -- slots in that set
    ADD COLUMN IF NOT EXISTS heir       TEXT;                        -- the slot that has taken over what this one left; null: it is in the set

-- When the event was committed, or created where that is not known: its age does not begin anew with its entry. Null: an older version's.
ALTER TABLE saga_outbox_delivery ADD COLUMN IF NOT EXISTS event_at TIMESTAMPTZ;
