// Package variables reads settings into the Config structs of all rooms, by the tags of their
// fields, and knows which of them may be shown.
package variables
