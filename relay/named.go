package relay

// Named is embedded in a sink's Config: what the sink is called where there are several of its
// kind. It is no setting; whoever reads the settings calls Call.
type Named struct {
	name string
	said func(text string) string
}

// Call gives the sink a name other than its kind's. said puts into a text for people the names that
// the kind's settings have for this sink.
func (n *Named) Call(name string, said func(text string) string) { n.name, n.said = name, said }

// Called is the sink's name: otherwise where it has none of its own.
func (n *Named) Called(otherwise string) string {
	if n.name == "" {
		return otherwise
	}
	return n.name
}

// Said is a text for people that may name settings of the sink.
func (n *Named) Said(text string) string {
	if n.said == nil {
		return text
	}
	return n.said(text)
}
