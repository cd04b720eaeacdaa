// Package doctor looks at everything that a relay needs and at the state of its work. It reports
// what is wrong, why that matters, and the exact statement or setting that fixes it.
//
// It changes nothing. No check depends on another: where a table, a right or a broker is missing,
// the others still report what they can. What cannot be found out is reported as unknown, never
// left out.
//
// It knows many packages, as cmd does: it reports in one place what each of them would only report
// when it fails.
package doctor
