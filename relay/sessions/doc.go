// Package sessions makes the relay's PostgreSQL sessions, all of them: the lease's, marks, sweeps,
// replication, the looks of the doctor, migrate and the commands. What a session has to be like is
// defined here once, and not left to what the connection string, the role or the database happen to
// set.
//
//   - Settings that change what statements mean or how long they may take are the relay's own
//     (settings.go).
//   - No functions run but those of PostgreSQL: see below.
//   - DATABASE_URL may have parameters of other clients; they are sorted out here (address.go).
//   - Errors of a server that refuses a session are sorted by who has to do something about them
//     (errors.go).
//
// # search_path
//
// A statement has the names saga_outbox and, in status = 'pending', the operator =. PostgreSQL
// looks both up in the schemas of search_path. An operator for exactly these types wins over its
// own, which needs a cast, wherever it is. So whoever may create objects in one of those schemas
// can have code of theirs run as the relay's role, and as superuser when a DBA runs doctor or
// migrate.
//
// Therefore a session finds out where our tables are, by the search_path that it has been given,
// and then goes on with search_path = pg_catalog, pg_temp. Statements are written with bare table
// names all the same: on its way to the server each of them gets its schema (qualify.go).
// PostgreSQL searches pg_temp for tables only.
//
// A trigger on saga_outbox that relies on the search_path of whoever fires it would not find its
// tables any more. Where there is such a trigger (or a function in a constraint, a default, an
// index), the schemas stay on the path behind pg_catalog, and the doctor reports it. The fix for
// such a function is a search_path of its own. To make one takes a right on the table itself, so
// this opens no door to those who may only create objects.
//
// Sessions that migrate need a schema to create in: the tables' one is alone on their path, behind
// pg_catalog, which is then searched first without being named. Their few statements are written so
// that no function or operator can be taken for another.
package sessions
