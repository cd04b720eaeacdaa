package sessions

import (
	"maps"
	"slices"
	"strings"
)

// settings are what every session has, whatever the connection string, the role or the database
// set. Row security is off so that a policy which hides rows is an error, and not a table that
// seems to have fewer.
//
// synchronous_commit is left to them: how safe a commit has to be is the database's policy.
var settings = map[string]string{
	"client_encoding":                     "UTF8",
	"datestyle":                           "ISO",
	"intervalstyle":                       "postgres",
	"timezone":                            "UTC",
	"bytea_output":                        "hex",
	"extra_float_digits":                  "1",
	"standard_conforming_strings":         "on",
	"quote_all_identifiers":               "off",
	"default_transaction_isolation":       "read committed",
	"default_transaction_read_only":       "off",
	"default_transaction_deferrable":      "off",
	"row_security":                        "off",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"idle_session_timeout":                "0",
}

// pooledSettings are those of them that a pooler takes at the start of a session: it keeps them for
// each of its clients.
var pooledSettings = []string{"client_encoding", "datestyle", "timezone", "standard_conforming_strings"}

// directSetting is a setting of our own that a connection asks for when it starts. A session that
// does not have it afterwards was started by something between us and the server: a pooler.
// PgBouncer refuses it instead.
const directSetting = "sagaz_relay.direct"

// set sets a parameter of the start of a session in place of the same one in another spelling.
func set(params map[string]string, name, value string) {
	for have := range params {
		if strings.EqualFold(have, name) {
			delete(params, have)
		}
	}
	params[name] = value
}

// StartParameters are the names of what a session of ours asks for when it starts, for those who
// configure a pooler to ignore it.
func StartParameters() []string {
	return append(slices.Sorted(maps.Keys(settings)), directSetting)
}
