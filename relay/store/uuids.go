package store

import (
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/relay"
)

// uuids is a uuid[] parameter that pgx encodes without reflection on its elements.
type uuids []relay.UUID

var _ pgtype.ArrayGetter = uuids(nil)

func (u uuids) Dimensions() []pgtype.ArrayDimension {
	if u == nil {
		return nil
	}
	return []pgtype.ArrayDimension{{Length: int32(len(u)), LowerBound: 1}}
}

func (u uuids) Index(i int) any { return pgtype.UUID{Bytes: u[i], Valid: true} }
func (u uuids) IndexType() any  { return pgtype.UUID{} }
