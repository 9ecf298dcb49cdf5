package round

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// StateVersion is the version of the state's byte format.
const StateVersion = 3

// ErrState reports state bytes that are damaged, of another run or of another shape.
var ErrState = errors.New("invalid training state")

// State is what a peer of a run goes on from. All but the two arrays is the run's ledger, which every peer replicates, and so
// are the arrays as long as all members average with all others. Once groups smaller than the run have, each member has
// arrays of its own, until the finale brings them together. Equal states have equal bytes, hence equal hashes and CIDs.
type State struct {
	Run      cid.Cid   // the job record
	Round    uint64    // rounds committed
	Tokens   uint64    // tokens committed
	Steps    uint64    // nominal local steps committed: what the learning rate and the tempo go by
	History  Hash      // chain over the committed sets
	Apart    bool      // members' arrays differ
	Mixed    uint64    // axes of the finale's grid that are done
	View     []Seat    // among whom the next round is dealt, ascending; empty before the first round
	Pulse    Pulse     // what the run measures about itself
	Cursors  []uint64  // next sample position of each shard, counted from the shard's first epoch
	Weights  []float32 // outer weights φ
	Momentum []float32 // outer momentum b, same length
}

// Shape is what a peer knows about a run's state before it holds one.
type Shape struct {
	Run    cid.Cid
	Shards int
	Params int
}

var stateMagic = [8]byte{'C', 'A', 'P', 'S', 'T', 'A', 'T', 'E'}

// NewState returns the state before the first round: the weights are kept, momentum and cursors are zero.
func NewState(run cid.Cid, shards int, weights []float32) *State {
	return &State{
		Run: run, Cursors: make([]uint64, shards), Weights: weights, Momentum: make([]float32, len(weights)),
	}
}

// Shape returns the shape of the state.
func (s *State) Shape() Shape { return Shape{s.Run, len(s.Cursors), len(s.Weights)} }

// countersSize is the bytes between the shape header and the cursors: eight counters and the history.
const countersSize = 8*8 + 32

// HeadSize returns the number of bytes of the largest ledger of the shape: what comes before the arrays.
func (s Shape) HeadSize() int64 {
	return int64(len(s.header())) + countersSize + 8*int64(s.Shards) + 2 + MaxMembers*(2+maxID)
}

// MaxSize returns the number of bytes of the largest state of the shape.
func (s Shape) MaxSize() int64 { return s.HeadSize() + 8*int64(s.Params) }

// header is the part of the bytes that depends on the shape only.
func (s Shape) header() []byte {
	b := append([]byte{}, stateMagic[:]...)
	b = binary.LittleEndian.AppendUint16(b, StateVersion)
	b = binary.LittleEndian.AppendUint16(b, uint16(s.Run.ByteLen()))
	b = append(b, s.Run.Bytes()...)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Shards))
	return binary.LittleEndian.AppendUint64(b, uint64(s.Params))
}

// Head returns the ledger's bytes, the part before the two arrays: shape, counters, history, cursors and view.
func (s *State) Head() []byte {
	b := s.Shape().header()
	p, apart := s.Pulse, uint64(0)
	if s.Apart {
		apart = 1
	}
	for _, x := range [...]uint64{s.Round, s.Tokens, s.Steps, uint64(p.Loss), p.Budget, p.Least, apart, s.Mixed} {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	b = append(b, s.History[:]...)
	for _, c := range s.Cursors {
		b = binary.LittleEndian.AppendUint64(b, c)
	}
	return appendView(b, s.View)
}

// Size returns the number of the state's bytes.
func (s *State) Size() int64 { return int64(len(s.Head())) + 8*int64(len(s.Weights)) }

// WriteTo writes the state's bytes: shape header, counters, history, cursors, view, weights, momentum; all little-endian.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(s.Head())
	total := int64(n)
	for _, array := range [][]float32{s.Weights, s.Momentum} {
		if err != nil {
			return total, fmt.Errorf("round: write state: %w", err)
		}
		var m int64
		m, err = WriteFloats(w, array)
		total += m
	}
	if err != nil {
		return total, fmt.Errorf("round: write state: %w", err)
	}
	return total, nil
}

// Bytes returns the state's bytes.
func (s *State) Bytes() []byte {
	var b bytes.Buffer
	b.Grow(int(s.Size()))
	_, _ = s.WriteTo(&b) // a buffer takes every write
	return b.Bytes()
}

// Hash identifies the state: the SHA-256 of the hashes of its three parts, so that a [Proof] ties a model's weights to it.
func (s *State) Hash() Hash { return s.Proof().State(s.Weights) }

// Key identifies what the members of a run agree on: the state, or only its ledger where their arrays differ.
func (s *State) Key() Hash {
	if s.Apart {
		return Proof{Head: Hash(sha256.Sum256(s.Head()))}.Ledger()
	}
	return s.Hash()
}

// Proof returns what shows that the state's weights belong to its hash.
func (s *State) Proof() Proof { return Proof{Hash(sha256.Sum256(s.Head())), hashFloats(s.Momentum)} }

// Proof is the hashes of a state's parts other than the weights. Whoever knows the hash of a state and has a model can
// check with it that the model is that state's, bit for bit, without fetching the state.
type Proof struct {
	Head     Hash // of the bytes before the weights
	Momentum Hash // of the outer momentum
}

// State returns the hash of the state that has these weights:
//
//	SHA-256("capanode-state/1" ‖ 0 ‖ Head ‖ SHA-256(weights) ‖ Momentum)
func (p Proof) State(weights []float32) Hash {
	middle := hashFloats(weights)
	h := sha256.New()
	h.Write([]byte("capanode-state/1\x00"))
	h.Write(p.Head[:])
	h.Write(middle[:])
	h.Write(p.Momentum[:])
	return Hash(h.Sum(nil))
}

// Ledger returns the key of a state whose arrays are one member's own:
//
//	SHA-256("capanode-ledger/1" ‖ 0 ‖ Head)
func (p Proof) Ledger() Hash {
	return Hash(sha256.Sum256(append([]byte("capanode-ledger/1\x00"), p.Head[:]...)))
}

func hashFloats(x []float32) Hash {
	h := sha256.New()
	_, _ = WriteFloats(h, x) // a hash takes every write
	return Hash(h.Sum(nil))
}

// DecodeState reads a state of the given shape from a stranger's bytes. The size is checked before anything is allocated,
// and every number must be finite.
func DecodeState(b []byte, shape Shape) (*State, error) {
	s, rest, err := decodeHead(b, shape)
	if err != nil {
		return nil, err
	}
	if int64(len(rest)) != 8*int64(shape.Params) {
		return nil, fmt.Errorf("round: state with %d bytes of weights, want %d for %d parameters: %w", len(rest), 8*int64(shape.Params), shape.Params, ErrState)
	}
	s.Weights, s.Momentum = make([]float32, shape.Params), make([]float32, shape.Params)
	if !ReadFloats(s.Weights, rest) || !ReadFloats(s.Momentum, rest[4*shape.Params:]) {
		return nil, fmt.Errorf("round: state holds a number that is not finite: %w", ErrState)
	}
	return s, nil
}

// DecodeHead reads a ledger, the part of a state before the arrays, which stay nil.
func DecodeHead(b []byte, shape Shape) (*State, error) {
	s, rest, err := decodeHead(b, shape)
	if err == nil && len(rest) > 0 {
		return nil, fmt.Errorf("round: %d bytes behind a ledger: %w", len(rest), ErrState)
	}
	return s, err
}

// decodeHead reads a ledger and returns what follows it.
func decodeHead(b []byte, shape Shape) (*State, []byte, error) {
	head := shape.header()
	if len(b) < len(head)+countersSize+8*shape.Shards+2 {
		return nil, nil, fmt.Errorf("round: state of %d bytes is too short for %d shards: %w", len(b), shape.Shards, ErrState)
	}
	if !bytes.Equal(b[:len(head)], head) {
		return nil, nil, fmt.Errorf("round: state of another run, shape or version: %w", ErrState)
	}
	b = b[len(head):]
	s := &State{Run: shape.Run}
	loss, apart := uint64(0), uint64(0)
	for _, x := range [...]*uint64{&s.Round, &s.Tokens, &s.Steps, &loss, &s.Pulse.Budget, &s.Pulse.Least, &apart, &s.Mixed} {
		*x = binary.LittleEndian.Uint64(b)
		b = b[8:]
	}
	s.Pulse.Loss, s.Apart = int64(loss), apart == 1
	if apart > 1 {
		return nil, nil, fmt.Errorf("round: state is %d apart, want 0 or 1: %w", apart, ErrState)
	}
	s.History = Hash(b[:32])
	b = b[32:]
	s.Cursors = make([]uint64, shape.Shards)
	for i := range s.Cursors {
		s.Cursors[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	var err error
	s.View, b, err = readView(b[8*shape.Shards:])
	return s, b, err
}

// Turn is what a round was, besides its headers.
type Turn struct {
	Steps  uint64    // nominal local steps; in the finale they are counted when it is over
	Groups bool      // members averaged in groups smaller than the run
	Offers []peer.ID // in the finale: whose weights are averaged, ascending
	Axes   int       // of the finale's grid: how many of its rounds in a row bring these members together
}

// Advance moves the ledger past a round: one more round, the accepted headers' tokens, their ranges, the pulse, the history and
// the view. The caller has moved the arrays. set is the committed set, in order of the headers' hashes, accepted those of it
// that were applied.
func (s *State) Advance(set, accepted []Signed, t Turn) {
	h := sha256.New()
	h.Write(s.History[:])
	for _, header := range set {
		h.Write(header.ID[:])
	}
	s.History = Hash(h.Sum(nil))
	s.Round++
	headers := make([]Header, len(accepted))
	for i, a := range accepted {
		headers[i] = a.Header
		s.Tokens += a.Tokens
		for _, r := range a.Ranges {
			s.Cursors[r.Shard] = max(s.Cursors[r.Shard], r.To)
		}
	}
	s.Pulse = s.Pulse.After(headers)
	authors := authorsOf(set)
	s.View = nextView(s.View, authors, t.Axes == 0)
	if t.Axes == 0 {
		s.Steps += t.Steps
		s.Apart = s.Apart || t.Groups
		return
	}
	// Who was missing from a mean along one axis is missing from some of the means only, which are then not all the same; the
	// others begin again. In one group all have the same mean whoever was in it.
	if s.Mixed++; t.Axes > 1 && !slices.Equal(t.Offers, authors) {
		s.Mixed = 0
	}
	if s.Mixed >= uint64(t.Axes) {
		s.Apart, s.Mixed = false, 0
		s.Steps += t.Steps
	}
}

// WriteFloats writes an array as raw little-endian 32-bit floats.
func WriteFloats(w io.Writer, x []float32) (int64, error) {
	buf := make([]byte, 64<<10)
	var total int64
	for len(x) > 0 {
		n := min(len(x), len(buf)/4)
		for i, v := range x[:n] {
			binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
		}
		m, err := w.Write(buf[:4*n])
		total += int64(m)
		if err != nil {
			return total, err
		}
		x = x[n:]
	}
	return total, nil
}

// ReadFloats fills dst from raw little-endian bytes, of which there must be enough, and reports whether all are finite.
func ReadFloats(dst []float32, b []byte) bool {
	finite := true
	for i := range dst {
		bits := binary.LittleEndian.Uint32(b[4*i:])
		if bits&0x7f800000 == 0x7f800000 {
			finite = false
		}
		dst[i] = math.Float32frombits(bits)
	}
	return finite
}
