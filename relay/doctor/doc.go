// Package doctor looks at everything that a relay needs and at how its work stands, and says what
// is wrong, why that matters, and the exact statement or setting that mends it.
//
// It changes nothing. Each check stands on its own: where a table, a right or a broker is missing,
// the others still tell what they can. What cannot be found out is said as unknown, never passed
// over.
//
// It knows many rooms, as cmd does: it says in one place what each of them would only say when it
// fails.
package doctor
