//go:build !unix

package pgserver

type proc struct{ pid int }

// childrenOf finds none: PostgreSQL's children notice by themselves that their parent is gone, a
// little later.
func childrenOf(int) []proc { return nil }

func (p proc) alive() bool { return false }
func (p proc) kill()       {}
