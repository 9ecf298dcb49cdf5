package round

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxID is the largest peer ID in bytes that a view holds: keys of today's kinds have 34 to 39.
const maxID = 64

// Seat is a member among whom rounds are dealt: shards, and places in groups. The view of a round is part of the state that it
// starts from, so that all who hold that state deal alike, whatever they have heard of each other since.
//
// Who has a header in a committed set has a seat in the next round. A seat whose member missed one set is kept for another
// round, so that who is late once does not have to come back by a hello.
type Seat struct {
	ID     peer.ID
	Missed bool // the last round was committed without it
}

// Members lists the view, ascending.
func (s *State) Members() []peer.ID {
	ids := make([]peer.ID, len(s.View))
	for i, seat := range s.View {
		ids[i] = seat.ID
	}
	return ids
}

// authorsOf lists the authors of headers, ascending.
func authorsOf(set []Signed) []peer.ID {
	ids := make([]peer.ID, len(set))
	for i, h := range set {
		ids[i] = h.Author
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// nextView gives the authors their seats, and keeps those of members who missed one round if keep is set.
func nextView(view []Seat, authors []peer.ID, keep bool) []Seat {
	var next []Seat
	for _, id := range authors {
		next = append(next, Seat{ID: id})
	}
	for _, s := range view {
		if _, spoke := slices.BinarySearch(authors, s.ID); keep && !spoke && !s.Missed && len(next) < MaxMembers {
			next = append(next, Seat{s.ID, true})
		}
	}
	slices.SortFunc(next, bySeat)
	return next
}

func bySeat(a, b Seat) int {
	switch {
	case a.ID < b.ID:
		return -1
	case a.ID > b.ID:
		return 1
	}
	return 0
}

// appendView appends the view's bytes: the number of seats, and for each whether it missed, the length of its ID, and its ID.
func appendView(b []byte, view []Seat) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(view)))
	for _, s := range view {
		missed := byte(0)
		if s.Missed {
			missed = 1
		}
		b = append(append(b, missed, byte(len(s.ID))), s.ID...)
	}
	return b
}

// readView reads a view from a stranger's bytes and returns what follows it.
func readView(b []byte) ([]Seat, []byte, error) {
	if len(b) < 2 {
		return nil, nil, fmt.Errorf("round: state ends before its view: %w", ErrState)
	}
	count := int(binary.LittleEndian.Uint16(b))
	b = b[2:]
	if count > MaxMembers {
		return nil, nil, fmt.Errorf("round: view of %d members, limit %d: %w", count, MaxMembers, ErrState)
	}
	var view []Seat
	for range count {
		if len(b) < 2 || b[0] > 1 || b[1] == 0 || b[1] > maxID || len(b) < 2+int(b[1]) {
			return nil, nil, fmt.Errorf("round: seat %d of a view is damaged: %w", len(view), ErrState)
		}
		seat := Seat{peer.ID(b[2 : 2+b[1]]), b[0] == 1}
		if len(view) > 0 && bySeat(view[len(view)-1], seat) >= 0 {
			return nil, nil, fmt.Errorf("round: view is not an ascending set: %w", ErrState)
		}
		view, b = append(view, seat), b[2+int(b[1]):]
	}
	return view, b, nil
}
