package main

const walStatus = `max by (slot) (outbox_slot_wal_status{@, status="reserved"}) + 2 * max by (slot) (outbox_slot_wal_status{@, status="extended"})` +
	` + 3 * max by (slot) (outbox_slot_wal_status{@, status="unreserved"}) + 4 * max by (slot) (outbox_slot_wal_status{@, status="lost"})` +
	` + 5 * max by (slot) (outbox_slot_wal_status{@, status="missing"})`

var walStates = states("none,transparent", "reserved,green", "extended,yellow", "unreserved,orange", "lost,red", "missing,purple")

// replication shows how far the slots are behind, and what that costs the database.
func replication() dashboard {
	return build("sagaz-replication", "Sagaz: replication lag",
		"The replication slots that the relay reads: how far behind, how much WAL they hold on the database's disk, who owns them. As the slot's owner sees them in pg_replication_slots and pg_stat_replication_slots.",
		"prometheus", where(), []row{
			{"At a glance", []panel{
				stat("Lag", "Age of the oldest commit with an event in flight; 0 s when there is none.", "s", `max(outbox_replication_lag_seconds{@})`, above(60, 300)),
				stat("Lag in bytes", "WAL written and not confirmed by the relay, of the slot that is furthest behind.", "bytes", `max(outbox_slot_confirmed_flush_lag_bytes{@})`),
				stat("WAL kept, of the cap", "Retained WAL as a share of max_slot_wal_keep_size. At 100 % PostgreSQL may remove WAL that the slot needs. No value without a cap.", "percentunit",
					`max(outbox_slot_retained_wal_bytes{@} / on (namespace, pod, slot) outbox_slot_wal_keep_size_bytes{@})`, above(0.75, 0.9)),
				stat("WAL until loss", "WAL that may still be written before a slot can be lost. No value without max_slot_wal_keep_size.", "bytes", `min(outbox_slot_safe_wal_size_bytes{@})`),
				stat("WAL status", "The worst wal_status of all slots. lost: PostgreSQL has removed WAL; the relay finds the events in the table.", "none",
					`max(`+walStatus+`)`, walStates),
				stat("Slots not streamed", "Slots whose replication connection nobody has open: without an owner, polling, or recovering.", "short",
					`sum(max by (namespace) (outbox_shards{@})) - sum(max by (namespace, slot) (outbox_stream_up{@}))`, alarm(1), decimals(0)),
			}},
			{"Slots", []panel{
				table("By slot", "What each slot is like now, as its owner sees it. Behind: WAL that is not confirmed. Lag: age of the oldest commit in flight. Owned for: the time since the last handover. A slot without an owner has a 0 in the first column and nothing else.", "short", []target{
					q(`max by (slot) (outbox_slot_owned{@})`, "Owned"), q(`max by (slot, pod) (outbox_slot_lease_seconds{@})`, "Owned for (s)"), q(`max by (slot, pod) (outbox_slot_epoch{@})`, "Epoch"),
					q(`max by (slot, pod) (outbox_replication_lag_seconds{@})`, "Lag (s)"), q(`max by (slot, pod) (outbox_slot_confirmed_flush_lag_bytes{@})`, "Behind (bytes)"),
					q(`max by (slot, pod) (outbox_slot_retained_wal_bytes{@})`, "WAL kept (bytes)"), q(`max by (slot, pod) (outbox_slot_stalled_seconds{@})`, "Not moved for (s)"),
				}, width(16)),
				timeseries("Change of the number of slots", "Slots that there are and, during a change (migrate --shards), that there will be. The lines lie on each other otherwise.", "short", []target{
					q(`max by (namespace) (outbox_shards{@})`, "{{namespace}}: now"), q(`max by (namespace) (outbox_shards_target{@})`, "{{namespace}}: target"),
				}, decimals(0)),
				timeseries("Not moved for", "For how long a slot has not moved though there is work and the next step is the relay's. After RELAY_STALL_TIMEOUT the owner leaves it to another relay.", "s", []target{
					q(`max by (slot) (outbox_slot_stalled_seconds{@})`, "{{slot}}"),
				}, alarm(120)),
				timeseries("Left to the switch", "During a change: WAL that each old slot still has to deliver before the new ones take over. The highest line is what the change waits for.", "bytes", []target{
					q(`max by (slot) (outbox_slot_switch_bytes{@})`, "{{slot}}"),
				}),
				timeseries("Change under way for", "For how long the number of slots has been changing, and the step: making (the new slots) or draining (the old ones).", "s", []target{
					q(`max by (namespace) (outbox_shards_change_seconds{@})`, "{{namespace}}"),
					q(`max by (namespace, state) (outbox_shards_change{@})`, "{{namespace}}: {{state}}"),
				}, warn(600)),
			}},
			{"Lag", []panel{
				timeseries("Lag", "Age of the oldest commit with an event in flight. A steady rise means that delivery has stopped.", "s", []target{
					q(`max by (slot) (outbox_replication_lag_seconds{@})`, "{{slot}}"),
				}, above(60, 300), toLogs("slot")),
				timeseries("Confirmed flush behind WAL", "WAL written and not confirmed by the relay. It rises while events wait, or during a large transaction of other tables.", "bytes", []target{
					q(`max by (slot) (outbox_slot_confirmed_flush_lag_bytes{@})`, "{{slot}}"),
				}),
				timeseries("Oldest event waiting", "In flight, in the ledger, or pending in the table while the slot is not read.", "s", []target{
					q(`max by (slot) (outbox_oldest_pending_seconds{@})`, "{{slot}}"),
				}, above(60, 300)),
			}},
			{"WAL on the database's disk", []panel{
				timeseries("WAL kept, against its limits", "From the budget on the relay sends events of slow sinks to the ledger so that the slot can move. At the cap PostgreSQL may give the slot up.", "bytes", []target{
					q(`max by (slot) (outbox_slot_retained_wal_bytes{@})`, "{{slot}}"),
					q(`max by (slot) (outbox_slot_wal_budget_bytes{@})`, "{{slot}}: budget"),
					q(`max by (slot) (outbox_slot_wal_keep_size_bytes{@})`, "{{slot}}: max_slot_wal_keep_size"),
				}, width(12)),
				timeseries("WAL until loss", "WAL that may still be written before the slot can be lost (safe_wal_size). Alerts: below a quarter and a tenth of the cap.", "bytes", []target{
					q(`min by (slot) (outbox_slot_safe_wal_size_bytes{@})`, "{{slot}}"),
					q(`0.25 * max by (slot) (outbox_slot_wal_keep_size_bytes{@})`, "{{slot}}: warning"),
					q(`0.1 * max by (slot) (outbox_slot_wal_keep_size_bytes{@})`, "{{slot}}: critical"),
				}, width(12)),
				timeline("WAL status", "reserved and extended are safe, unreserved is about to be lost, lost is gone, missing means that there is no slot.", []target{
					q(walStatus, "{{slot}}"),
				}, walStates, toLogs("slot")),
				timeseries("Not read for", "For how long no connection has read the slot; 0 while one does.", "s", []target{
					q(`max by (slot) (outbox_slot_inactive_seconds{@})`, "{{slot}}"),
				}, width(6), alarm(300)),
				timeseries("Read", "1 while a connection reads the slot (active), and while the relay's own is open (stream).", "none", []target{
					q(`max by (slot) (outbox_slot_active{@})`, "{{slot}}: active"),
					q(`max by (slot) (outbox_stream_up{@})`, "{{slot}}: stream"),
				}, width(6), maximum(1)),
			}},
			{"Decoding", []panel{
				timeseries("Decoded", "Bytes of changes that the server has decoded for the slot.", "Bps", []target{
					q(`sum by (slot) (rate(outbox_slot_bytes_total{@}[$__rate_interval]))`, "{{slot}}"),
				}, width(6)),
				timeseries("Transactions", "Transactions that the server has decoded for the slot, other tables' included.", "ops", []target{
					q(`sum by (slot) (rate(outbox_slot_transactions_total{@}[$__rate_interval]))`, "{{slot}}"),
				}, width(6)),
				timeseries("Size of a transaction", "Mean bytes of changes in a decoded transaction.", "bytes", []target{
					q(`sum by (slot) (rate(outbox_slot_bytes_total{@}[$__rate_interval])) / sum by (slot) (rate(outbox_slot_transactions_total{@}[$__rate_interval]))`, "{{slot}}"),
				}, width(6)),
				timeseries("Spilled to disk", "Changes that went to the server's disk while they were decoded: large transactions. Raise logical_decoding_work_mem.", "Bps", []target{
					q(`sum by (slot) (rate(outbox_slot_spill_bytes_total{@}[$__rate_interval]))`, "{{slot}}"),
					q(`sum by (slot) (rate(outbox_slot_stream_bytes_total{@}[$__rate_interval]))`, "{{slot}}: sent early"),
				}, width(6)),
				bars("Transactions spilled", "Transactions that outgrew logical_decoding_work_mem, in the time range shown.", "short", []target{
					q(`sum by (slot) (increase(outbox_slot_spill_transactions_total{@}[$__range]))`, "{{slot}}"),
				}, width(24), height(5), decimals(0)),
			}},
			{"Owner and handovers", []panel{
				timeline("Owner", "Which pod holds the lease of each slot; the others are standbys.", []target{
					q(`max by (slot, pod) (outbox_slot_owned{@})`, "{{slot}} {{pod}}"),
				}, states("standby,transparent", "owner,blue")),
				timeline("How events are found", "cdc: from the slot. polling: from the table. recovering: from the table, before the slot is read.", []target{
					q(`max by (slot) (outbox_mode{@, mode="cdc"}) + 2 * max by (slot) (outbox_mode{@, mode="polling"}) + 3 * max by (slot) (outbox_mode{@, mode="recovering"})`, "{{slot}}"),
				}, states("none,transparent", "cdc,green", "polling,orange", "recovering,yellow")),
				timeseries("Epoch", "How many owners the slot has had. Each step is a handover.", "short", []target{
					q(`max by (slot) (outbox_slot_epoch{@})`, "{{slot}}"),
				}, width(6), toLogs("lease")),
				timeseries("Leases taken and lost", "A rolling update makes two a slot. A steady rate means relays that fight or die.", "short", []target{
					q(`sum by (pod) (increase(outbox_lease_changes_total{@}[$__rate_interval]))`, "{{pod}}"),
				}, width(6), toLogs("lease")),
				timeseries("Connections made again", "Times that the replication connection was lost and made again.", "short", []target{
					q(`sum by (pod) (increase(outbox_stream_reconnects_total{@}[$__rate_interval]))`, "{{pod}}"),
				}, width(6), toLogs("replication")),
				timeseries("Relays", "Those that share the slots, owners and standbys. 1 means that no other would take over.", "short", []target{
					q(`max by (namespace) (outbox_relays{@})`, "{{namespace}}"),
				}, width(6), wanted(2)),
			}},
			{"In flight", []panel{
				timeseries("Events", "Events read and not yet marked. At the limit the relay stops reading, and lag in bytes begins to rise.", "short", []target{
					q(`sum by (pod) (outbox_processing_events_total{@})`, "{{pod}}"),
					q(`sum(outbox_inflight_limit_events{@})`, "limit"),
				}, width(12)),
				timeseries("Bytes", "Their bytes, with the limit.", "bytes", []target{
					q(`sum by (pod) (outbox_inflight_bytes{@})`, "{{pod}}"),
					q(`sum(outbox_inflight_limit_bytes{@})`, "limit"),
				}, width(12)),
			}},
		})
}
