// Package orders writes the events of made-up order sagas into an outbox, as an application would.
//
// Outbox is for any outbox, and touches no other table. Shop has tables of its own and keeps books
// of what it has committed, in which order, so that a checker knows what should have arrived.
package orders
