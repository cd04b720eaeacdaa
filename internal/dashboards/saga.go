package main

// saga shows sagas as far as their events show them.
func saga() dashboard {
	name := labelValues("saga_name", "Saga", `outbox_saga_started_total{job=~"$job", namespace=~"$namespace", pod=~"$pod"}`, "saga_name")
	const of = `{@, saga_name=~"$saga_name"}`
	rate := func(series, by string) string {
		return `sum` + by + ` (rate(` + series + of + `[$__rate_interval]))`
	}
	duration := func(q, by string) string {
		return `histogram_quantile(` + q + `, sum by (le` + by + `) (rate(outbox_saga_duration_seconds_bucket` + of + `[$__rate_interval])))`
	}
	during := func(series string) string {
		return `sum by (saga_name) (increase(` + series + of + `[$__range]))`
	}
	// A counter is not there before its first event; none is 0 then.
	failed := `(` + rate("outbox_saga_failed_total", "") + ` or ` + rate("outbox_saga_started_total", "") + ` * 0)`
	completed := `(` + rate("outbox_saga_completed_total", "") + ` or ` + rate("outbox_saga_started_total", "") + ` * 0)`
	return build("sagaz-saga", "Sagaz: sagas",
		"Sagas as the relay sees them by the events that pass through the outbox (RELAY_SAGA_RULES). It cannot know sagas that leave no events, nor what happened before the relay owned the slot: after a handover, sagas under way count as started again, and their duration from then on. Where a table has several slots and a saga's events several keys, completed and failed are exact, started (without a rule for it) and compensated may count once for each relay that sees a part, and what is in progress, and durations, leave such sagas out.",
		"prometheus", append(where(), name), []row{
			{"At a glance", []panel{
				stat("Started", "Sagas of which a first event was seen, a second. After a change of the slot's owner those under way count again; with several slots see the dashboard's description.", "ops", rate("outbox_saga_started_total", "")),
				stat("Completed", "Sagas that ended well, a second.", "ops", rate("outbox_saga_completed_total", "")),
				stat("Failure ratio", "Share of the ended sagas that failed, compensated or not.", "percentunit",
					failed+` / (`+failed+` + `+completed+`)`, alarm(0.05), toLogs("saga")),
				stat("Compensated", "Sagas in which at least one step was compensated, a second; one whose events lie in several slots may count once for each.", "ops", rate("outbox_saga_compensated_total", "")),
				stat("In progress", "Sagas of which the first event was seen and not the last; without those whose events lie in several slots.", "short", `sum(outbox_saga_active`+of+`)`, decimals(0)),
				stat("Oldest in progress", "Age of the oldest of them. A steady rise means a saga that is stuck, or one that writes no event for its end.", "s", `max(outbox_saga_oldest_active_seconds`+of+`)`, warn(3600)),
			}},
			{"Outcomes", []panel{
				timeseries("Sagas", "Started, and how they ended. Compensated sagas are counted separately, because most of them also fail.", "ops", []target{
					q(rate("outbox_saga_started_total", ""), "started"), q(rate("outbox_saga_completed_total", ""), "completed"),
					q(rate("outbox_saga_failed_total", ""), "failed"), q(rate("outbox_saga_compensated_total", ""), "compensated"),
				}),
				timeseries("Started, by saga", "Past 100 names the rest share the value other.", "ops", []target{q(rate("outbox_saga_started_total", " by (saga_name)"), "{{saga_name}}")}, stacked),
				timeseries("Failed, by saga", "Sagas that ended otherwise than well.", "ops", []target{q(rate("outbox_saga_failed_total", " by (saga_name)"), "{{saga_name}}")}, stacked, toLogs("saga")),
				table("By saga, in the time range shown", "Counts are interpolated, so they may have fractions, and the very first event of a kind on a relay that has just started may be missing. A saga that began before the range can end in it.", "short", []target{
					q(during("outbox_saga_started_total"), "Started"), q(during("outbox_saga_completed_total"), "Completed"),
					q(during("outbox_saga_failed_total"), "Failed"), q(during("outbox_saga_compensated_total"), "Compensated"),
					q(`sum by (saga_name) (outbox_saga_active`+of+`)`, "In progress"),
				}, decimals(0)),
			}},
			{"Duration", []panel{
				timeseries("Duration, by outcome", "From a saga's first event to its last, by their created_at; only sagas whose first event this owner saw, and whose events lie in one slot.", "s", []target{
					q(duration("0.5", ", status"), "p50 {{status}}"), q(duration("0.95", ", status"), "p95 {{status}}"), q(duration("0.99", ", status"), "p99 {{status}}"),
				}, width(12)),
				heatmap("Duration, all sagas", "How the same times are spread.", "s", `sum by (le) (rate(outbox_saga_duration_seconds_bucket`+of+`[$__rate_interval]))`),
				timeseries("Duration, p95 by saga", "The slowest sagas.", "s", []target{
					q(`topk(10, `+duration("0.95", ", saga_name")+`)`, "{{saga_name}}"),
				}, width(12)),
				timeseries("Duration, mean by saga", "Sum of durations by their number.", "s", []target{
					q(rate("outbox_saga_duration_seconds_sum", " by (saga_name)")+` / `+rate("outbox_saga_duration_seconds_count", " by (saga_name)"), "{{saga_name}}"),
				}, width(12)),
			}},
			{"In progress", []panel{
				timeseries("In progress, by saga", "Sagas that write no event for their end stay in it until others push them out.", "short", []target{q(`sum by (saga_name) (outbox_saga_active`+of+`)`, "{{saga_name}}")}, width(12), stacked),
				timeseries("Oldest in progress, by saga", "Age by the created_at of its first event. To find the saga itself: the rows of saga_outbox, or the logs dashboard.", "s", []target{
					q(`max by (saga_name) (outbox_saga_oldest_active_seconds`+of+`)`, "{{saga_name}}"),
				}, width(12), warn(3600)),
			}},
			{"Steps", []panel{
				timeseries("Steps, by outcome", "Steps that succeeded, failed, were compensated, or could not be.", "ops", []target{q(rate("outbox_saga_steps_total", " by (outcome)"), "{{outcome}}")}, width(12)),
				bars("Failed steps", "Which steps fail, in the time range shown.", "short", []target{
					q(`topk(10, sum by (saga_name, step_name) (increase(outbox_saga_steps_total{@, saga_name=~"$saga_name", outcome="failed"}[$__range])))`, "{{saga_name}}: {{step_name}}"),
				}, width(12), decimals(0), toLogs("saga")),
				timeseries("Failed compensations", "Sagas of which a step could not be undone, a second. The library's listener reports none; see the runbook of OutboxSagaCompensationFailed.", "ops", []target{
					q(rate("outbox_saga_compensation_failed_total", " by (saga_name)"), "{{saga_name}}"),
				}, width(12), toLogs("saga")),
				bars("Steps that could not be undone", "Steps whose compensation failed, in the time range shown.", "short", []target{
					q(`topk(10, sum by (saga_name, step_name) (increase(outbox_saga_steps_total{@, saga_name=~"$saga_name", outcome="compensation_failed"}[$__range])))`, "{{saga_name}}: {{step_name}}"),
				}, width(12), decimals(0), toLogs("saga")),
			}},
			{"What is not counted", []panel{
				timeseries("Events of no saga", "No rule of RELAY_SAGA_RULES names their type, and they have no header saga_name. If sagas are missing above, look here first.", "ops", []target{
					q(`sum(rate(outbox_saga_unmatched_events_total{@}[$__rate_interval]))`, "unmatched"),
				}, width(12)),
				timeseries("Sagas not followed any more", "More than 20,000 were under way: the one heard of least recently goes, and its duration will not be known.", "ops", []target{
					q(`sum(rate(outbox_saga_tracking_dropped_total{@}[$__rate_interval]))`, "dropped"),
				}, width(12)),
			}},
		})
}
