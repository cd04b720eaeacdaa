package columns

// Filterable is an expression of the column's text, as it is delivered, that PostgreSQL takes in
// the filter of a publication, or "" if there is none. A filter may have immutable functions that
// come with PostgreSQL, and no casts by way of a type's output function; these functions may be
// called, though. It may not mention a column of a type or with a collation that somebody has made:
// a domain, an enum, citext, a nondeterministic collation.
func (c *Column) Filterable() string {
	if c.Collation != "" {
		return ""
	}
	switch c.OID {
	case OIDText, OIDVarchar:
		return c.Name
	case OIDBPChar:
		return "textin(bpcharout(" + c.Name + "))" // a cast to text would take the blanks away
	case OIDUUID:
		return "textin(uuid_out(" + c.Name + "))"
	case oidInt8:
		return "textin(int8out(" + c.Name + "))"
	case oidInt4:
		return "textin(int4out(" + c.Name + "))"
	case oidInt2:
		return "textin(int2out(" + c.Name + "))"
	}
	return ""
}
