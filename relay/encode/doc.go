// Package encode makes records of rows: the envelope that consumers get, the record's headers, and
// its topic and routing key, which are named by templates. It is pure: nothing of it waits, logs,
// or keeps a state. Every event is encoded here once, before it goes to its lanes, so that all
// sinks share one record.
//
// What cannot be made into a record is refused (relay.Refused) for the reason encode, and becomes a
// dead letter like any other refusal. Headers are read as PostgreSQL renders a jsonb. The texts of
// a row of other types are checked first (relay.Event.Loose).
package encode
