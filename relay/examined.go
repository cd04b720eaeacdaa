package relay

import (
	"context"
	"errors"
)

// Examined is what one check has found of what the relay needs of the database. A start refuses by
// the same checks, a relay that runs makes them again, and the doctor prints them all.
type Examined struct {
	Check  string // its name
	Fine   string // what is well, if nothing is wrong and it is worth a line
	Faults []*SetupError
	Err    error // it could not be found out
}

// Look is a check that notes what it finds.
type Look struct {
	Check string
	Make  func(ctx context.Context) (fine string, faults []*SetupError, err error)
}

// Examine makes checks in their order, up to the end of ctx. An error that a person has to fix is a
// fault.
func Examine(ctx context.Context, looks []Look) []Examined {
	var all []Examined
	for _, look := range looks {
		e := Examined{Check: look.Check}
		e.Fine, e.Faults, e.Err = look.Make(ctx)
		if setup := (*SetupError)(nil); errors.As(e.Err, &setup) {
			e.Faults, e.Err = append(e.Faults, setup), nil
		}
		if len(e.Faults) > 0 || e.Err != nil {
			e.Fine = ""
		}
		all = append(all, e)
		if ctx.Err() != nil {
			break
		}
	}
	return all
}

// FirstFault is the error with which a start ends: first what keeps the relay from working at all,
// then what keeps it from streaming.
func FirstFault(all []Examined) error {
	var streaming *SetupError
	for _, e := range all {
		if e.Err != nil {
			return e.Err
		}
		for _, f := range e.Faults {
			if !f.Streaming {
				return f
			}
			if streaming == nil {
				streaming = f
			}
		}
	}
	if streaming != nil {
		return streaming
	}
	return nil
}
