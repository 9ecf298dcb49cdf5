package node

// tally follows what a requester pays for new work.
type tally struct {
	claimed, paid uint64 // work units when pay last kept up
	late          int    // ticks since
}

// spent takes in a tick and tells whether the credit line is used up. A tick counts when it claims new work and brings no
// receipt, or one that pays for none of it. Work of a fork that died is never paid and must not count for ever, so any
// progress of the pay starts the count anew.
func (t *tally) spent(claimed, paid uint64, err error) bool {
	switch {
	case err == nil && (paid > t.paid || paid >= claimed):
		*t = tally{claimed: claimed, paid: paid}
	case claimed > t.claimed:
		t.late++
	}
	return t.late >= creditLine
}
