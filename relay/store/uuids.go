package store

import (
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sagaz-relay/relay/relay"
)

// uuids is a uuid[] parameter that pgx encodes without reflection on its elements, and without an
// allocation for each.
type uuids []relay.UUID

var _ pgtype.ArrayGetter = uuids(nil)

func (u uuids) Dimensions() []pgtype.ArrayDimension {
	if u == nil {
		return nil
	}
	return []pgtype.ArrayDimension{{Length: int32(len(u)), LowerBound: 1}}
}

func (u uuids) Index(i int) any { return (*element)(&u[i]) }
func (u uuids) IndexType() any  { return (*element)(nil) }

// element is one of them, where it is.
type element relay.UUID

var _ pgtype.UUIDValuer = (*element)(nil)

func (e *element) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: *e, Valid: true}, nil }
