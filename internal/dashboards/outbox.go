package main

// outbox shows whether events get through, how fast, and what hinders them.
func outbox() dashboard {
	return build("sagaz-outbox", "Sagaz: outbox",
		"Events on their way from the table saga_outbox to the brokers, as the relay reports it. What belongs to a slot comes from its owner alone, so sums over pods are true.",
		"prometheus", where(), []row{
			{"At a glance", []panel{
				stat("Backlog", "Events waiting: in flight, in the ledger, and (an estimate) in WAL that is not read yet. The autoscaler reads this too.", "short",
					`sum(outbox_pending_events_total{@})`, warn(1000), decimals(0)),
				stat("Oldest event waiting", "Age of the oldest event that is not delivered. 0 s is the normal state; a steady rise means that delivery has stopped.", "s",
					`max(outbox_oldest_pending_seconds{@})`, above(60, 300)),
				stat("Delivered", "Events that brokers have acknowledged, a second; with several sinks an event counts once for each.", "ops",
					`sum(rate(outbox_published_events_total{@}[$__rate_interval]))`),
				stat("Error ratio", "Share of the events offered to a sink that it did not take. Above 1 % an alert fires.", "percentunit",
					`(sum(rate(outbox_publish_errors_total{@}[$__rate_interval])) or sum(rate(outbox_publish_attempts_total{@}[$__rate_interval])) * 0) / sum(rate(outbox_publish_attempts_total{@}[$__rate_interval]))`, alarm(0.01), toLogs("event+refused")),
				stat("Dead letters", "Events given up for good and waiting for a person: sagaz-relay dead-letter list.", "short",
					`sum(outbox_ledger_events{@, state="dead"}) or sum(outbox_pending_events{@}) * 0`, alarm(1), decimals(0), toLogs("dead+letter")),
				stat("Relays", "Pods that answer the scrape. With one, no other would take over.", "short",
					`sum(up{@})`, below(1, 2), decimals(0)),
			}},
			{"Publishing", []panel{
				timeseries("Events through the relay", "Read from slot or table, acknowledged by sinks, and marked in the table. The lines lie on each other unless something queues; several sinks acknowledge each event.", "ops", []target{
					q(`sum(rate(outbox_received_events_total{@}[$__rate_interval]))`, "received"),
					q(`sum(rate(outbox_published_events_total{@}[$__rate_interval]))`, "acknowledged"),
					q(`sum(rate(outbox_marked_events_total{@}[$__rate_interval]))`, "marked"),
				}, width(12)),
				timeseries("Acknowledged, by event type", "Events that brokers have acknowledged. Past 200 types the rest share the value other.", "ops", []target{
					q(`topk(15, sum by (event_type) (rate(outbox_published_events_total{@}[$__rate_interval])))`, "{{event_type}}"),
				}, width(12), stacked),
				timeseries("Acknowledged, by sink", "Events a second that each broker has acknowledged.", "ops", []target{
					q(`sum by (sink) (rate(outbox_acknowledged_events_total{@}[$__rate_interval]))`, "{{sink}}"),
				}),
				timeseries("Bytes, by sink", "Keys and bodies that each broker has acknowledged.", "Bps", []target{
					q(`sum by (sink) (rate(outbox_acknowledged_bytes_total{@}[$__rate_interval]))`, "{{sink}}"),
				}),
				timeseries("Events in a batch", "Mean size of the batches offered to each sink. Small batches under load mean too many lanes, or a broker that waits for nothing.", "short", []target{
					q(`sum by (sink) (rate(outbox_batch_events_sum{@}[$__rate_interval])) / sum by (sink) (rate(outbox_batch_events_count{@}[$__rate_interval]))`, "{{sink}}"),
					q(`max(outbox_batch_size{@})`, "last batch"),
				}),
			}},
			{"Latency", []panel{
				timeseries("Commit to acknowledgement", "From the commit of an event's transaction to the sink's acknowledgement: what consumers feel. By the clocks of database and relay.", "s",
					quantiles("outbox_commit_to_ack_seconds", ", sink", " {{sink}}"), exemplars, width(12), warn(5)),
				heatmap("Commit to acknowledgement, all events", "How the same times are spread. A second band means that one sink or a few keys are slow.", "s",
					`sum by (le) (rate(outbox_commit_to_ack_seconds_bucket{@}[$__rate_interval]))`),
				timeseries("Publishing", "From offering an event's batch to its acknowledgement: the broker's share of the above.", "s",
					quantiles("outbox_publish_duration_seconds", "", ""), exemplars),
				timeseries("Publishing, p99 by event type", "The slowest types. A single slow type points at its topic, partition or queue.", "s", []target{
					q(`topk(10, histogram_quantile(0.99, sum by (le, event_type) (rate(outbox_publish_duration_seconds_bucket{@}[$__rate_interval]))))`, "{{event_type}}"),
				}),
				timeseries("Batch and mark, p99", "Time of an offer to each sink, whatever came of it, and of a transaction of marks.", "s", []target{
					q(`histogram_quantile(0.99, sum by (le, sink) (rate(outbox_batch_publish_seconds_bucket{@}[$__rate_interval])))`, "offer to {{sink}}"),
					q(`histogram_quantile(0.99, sum by (le) (rate(outbox_mark_seconds_bucket{@}[$__rate_interval])))`, "mark"),
				}),
			}},
			{"Errors", []panel{
				timeseries("Error ratio, by sink", "Share of the events offered to the sink that it did not take, at each offer.", "percentunit", []target{
					q(`(sum by (sink) (rate(outbox_publish_errors_total{@}[$__rate_interval])) or sum by (sink) (rate(outbox_publish_attempts_total{@}[$__rate_interval])) * 0) / sum by (sink) (rate(outbox_publish_attempts_total{@}[$__rate_interval]))`, "{{sink}}"),
				}, maximum(1), alarm(0.01), toLogs("event")),
				timeseries("Errors, by reason", "unroutable, too_large, nacked, rejected, encode, unknown_topic are the event's own fault; timeout, connection, other pass.", "ops", []target{
					q(`sum by (sink, reason) (rate(outbox_publish_errors_total{@}[$__rate_interval]))`, "{{sink}}: {{reason}}"),
				}, toLogs("event")),
				timeseries("Error rate, by event type", "Refusals for the event's own fault as a share of all offers that were decided. Such rows are failed and have the reason in last_error.", "percentunit", []target{
					q(`topk(15, sum by (event_type) (rate(outbox_failed_events_total{@}[$__rate_interval])) / (sum by (event_type) (rate(outbox_failed_events_total{@}[$__rate_interval])) + (sum by (event_type) (rate(outbox_published_events_total{@}[$__rate_interval])) or sum by (event_type) (rate(outbox_failed_events_total{@}[$__rate_interval])) * 0)))`, "{{event_type}}"),
				}, maximum(1), alarm(0.01), toLogs("event+refused")),
				timeseries("Offered again", "After transient errors of a sink, and refused events tried again. A steady rise means that a broker does not work.", "ops", []target{
					q(`sum by (pod) (rate(outbox_retry_attempts_total{@}[$__rate_interval]))`, "{{pod}}"),
				}),
				timeseries("Sent to the ledger", "Ledger entries made, by reason: refused, the sink is down, or another event of the key is there already.", "ops", []target{
					q(`sum by (sink, reason) (rate(outbox_parked_events_total{@}[$__rate_interval]))`, "{{sink}}: {{reason}}"),
				}),
				bars("Dead letters made, by event type", "Events given up for good in the time range shown, once for each sink that does not have them.", "short", []target{
					q(`sum by (event_type) (increase(outbox_dead_letter_events_total{@}[$__range]))`, "{{event_type}}"),
				}, decimals(0), toLogs("dead+letter")),
			}},
			{"Queue", []panel{
				timeseries("Backlog", "Events waiting, by pod. The sum is the backlog; a standby has 0.", "short", []target{
					q(`sum by (pod) (outbox_pending_events_total{@})`, "{{pod}}"),
				}, stacked, warn(1000)),
				timeseries("In flight", "Events read and not yet marked, with their limit. At the limit the relay stops reading until sinks acknowledge.", "short", []target{
					q(`sum(outbox_processing_events_total{@})`, "in flight"),
					q(`sum(outbox_inflight_limit_events{@})`, "limit"),
				}),
				timeseries("In flight, bytes", "Their bytes, with the limit. Memory is about twice this.", "bytes", []target{
					q(`sum(outbox_inflight_bytes{@})`, "in flight"),
					q(`sum(outbox_inflight_limit_bytes{@})`, "limit"),
				}),
				timeseries("Rows, by status", "From the owner of the first slot. sent is an estimate and left out here; failed and dead_letter are for a person.", "short", []target{
					q(`max by (state) (outbox_events_by_state{@, state!="sent"})`, "{{state}}"),
				}),
				timeseries("Ledger", "Exceptions, by sink: to be offered again (retry), behind another of their key (held), for a person (dead). Empty in good times.", "short", []target{
					q(`sum by (sink, state) (outbox_ledger_events{@})`, "{{sink}}: {{state}}"),
				}, stacked),
				timeseries("Oldest event waiting", "Age of the oldest event that is not delivered, by slot; dead letters do not count.", "s", []target{
					q(`max by (slot) (outbox_oldest_pending_seconds{@})`, "{{slot}}"),
				}, above(60, 300)),
				timeseries("Found in the table", "Events that the stream did not deliver, by cause: a slot that was missing or lost, rows older than the slot (first_start), rows set back to pending, stuck claims, polling.", "ops", []target{
					q(`sum by (cause) (rate(outbox_recovered_events_total{@}[$__rate_interval]))`, "{{cause}}"),
				}),
				timeseries("Read again and left out", "Events that were finished already: after a crash, or with other workers on the table.", "ops", []target{
					q(`sum(rate(outbox_skipped_events_total{@}[$__rate_interval]))`, "skipped"),
				}),
				timeseries("Looks at the table, p99", "How long a look for rows that the stream does not deliver takes, by what is looked for.", "s", []target{
					q(`histogram_quantile(0.99, sum by (le, kind) (rate(outbox_table_look_seconds_bucket{@}[$__rate_interval])))`, "{{kind}}"),
				}),
			}},
			{"Shards and owners", []panel{
				timeline("Owner", "Which pod holds the lease of each slot; the others are standbys.", []target{
					q(`max by (slot, pod) (outbox_slot_owned{@})`, "{{slot}} {{pod}}"),
				}, states("standby,transparent", "owner,blue")),
				timeline("How events are found", "cdc: from the slot. polling: from the table, because streaming is impossible. recovering: from the table, before the slot is read.", []target{
					q(`max by (slot) (outbox_mode{@, mode="cdc"}) + 2 * max by (slot) (outbox_mode{@, mode="polling"}) + 3 * max by (slot) (outbox_mode{@, mode="recovering"})`, "{{slot}}"),
				}, states("none,transparent", "cdc,green", "polling,orange", "recovering,yellow")),
				timeseries("Slots owned, by pod", "Slots whose lease each pod holds, on each other; how many there are; and, during a change of that (migrate --shards), how many there will be. The stack should reach the line.", "short", []target{
					q(`sum by (pod) (outbox_shards_owned{@})`, "{{pod}}"),
					q(`max(outbox_shards{@})`, "slots"),
					q(`max(outbox_shards_target{@})`, "target"),
				}, stackedBut("slots", "target"), decimals(0)),
				timeseries("Relays", "Those that share the slots, owners and standbys. 1 means that no other would take over.", "short", []target{
					q(`max by (namespace) (outbox_relays{@})`, "{{namespace}}"),
				}, wanted(2)),
				timeseries("Leases taken and lost", "A rolling update makes two a slot. A steady rate means relays that fight or die.", "short", []target{
					q(`sum by (pod) (increase(outbox_lease_changes_total{@}[$__rate_interval]))`, "{{pod}}"),
				}, toLogs("lease")),
			}},
			{"Resources", []panel{
				timeline("Ready", "The answer of each pod's /health/ready. A standby is ready, and so is an owner whose broker is down.", []target{
					q(`max by (pod) (outbox_ready{@})`, "{{pod}}"),
				}, states("not ready,orange", "ready,green"), width(12)),
				timeline("Mode asked for", "RELAY_MODE of each pod. If auto is asked for and events are found by polling, streaming is impossible: sagaz-relay doctor shows why.", []target{
					q(`max by (pod) (outbox_wanted_mode{@, mode="auto"}) + 2 * max by (pod) (outbox_wanted_mode{@, mode="cdc"}) + 3 * max by (pod) (outbox_wanted_mode{@, mode="polling"})`, "{{pod}}"),
				}, states("none,transparent", "auto,green", "cdc,green", "polling,yellow"), width(12)),
				timeseries("Memory", "Resident, and what Go counts against GOMEMLIMIT, which the collector tries to stay within.", "bytes", []target{
					q(`max by (pod) (process_resident_memory_bytes{@})`, "{{pod}} resident"),
					q(`max by (pod) (go_memstats_sys_bytes{@} - go_memstats_heap_released_bytes{@})`, "{{pod}} Go"),
					q(`min(go_gc_gomemlimit_bytes{@})`, "GOMEMLIMIT"),
				}),
				timeseries("Memory, of the limit", "Resident memory as a share of what the container, or the machine, allows. Beyond it the kernel ends the relay.", "percentunit", []target{
					q(`max by (pod) (process_resident_memory_bytes{@} / outbox_memory_limit_bytes{@})`, "{{pod}}"),
				}, maximum(1), warn(0.9)),
				timeseries("CPU, of GOMAXPROCS", "CPU time used, as a share of what GOMAXPROCS lets the relay have. All of it for long means that the relay is what is slow.", "percentunit", []target{
					q(`max by (pod) (rate(process_cpu_seconds_total{@}[$__rate_interval]) / go_sched_gomaxprocs_threads{@})`, "{{pod}}"),
				}, maximum(1), warn(0.9)),
			}},
			{"Sinks, marks, version", []panel{
				timeline("Sinks", "Whether each sink takes what it is offered. isolated: its events go to the ledger, so that the others and the slot move on.", []target{
					q(`min by (sink) (outbox_sink_up{@} and on (namespace, pod) outbox_shards_owned{@} > 0) + 2 * max by (sink) (outbox_sink_isolated{@} and on (namespace, pod) outbox_shards_owned{@} > 0)`, "{{sink}}"),
				}, states("down,orange", "up,green", "isolated,red", "isolated,red"), toLogs("sink")),
				timeseries("Marks", "Rows marked a second, and transactions of marks that had to be repeated.", "ops", []target{
					q(`sum(rate(outbox_marked_events_total{@}[$__rate_interval]))`, "rows"),
					q(`sum(rate(outbox_mark_failures_total{@}[$__rate_interval]))`, "repeated"),
					q(`sum(rate(outbox_pruned_events_total{@}[$__rate_interval]))`, "removed by retention"),
				}, width(6)),
				timeseries("Marks that are HOT", "Share of updates that need no new index entries. Below 0.9 marking costs far more than it should: sagaz-relay doctor.", "percentunit", []target{
					q(`min(outbox_marks_hot_ratio{@})`, "HOT"),
				}, width(6), maximum(1), wanted(0.9)),
				table("Versions", "What is running.", "none", []target{
					q(`max by (namespace, pod, version, revision, goversion) (outbox_build_info{@})`, "running"),
				}, height(5)),
			}},
		})
}
