package job

import (
	"errors"
	"fmt"
	"math"
	"math/bits"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// Limits of a record. What a member allocates for a round before it computes is bounded by them.
const (
	MaxPeers          = 512     // members of a run, as in a roster
	MaxStepTokens     = 1 << 24 // tokens of one optimiser step of one member: 128 MiB of inputs and targets
	MaxRoundSequences = 1 << 22 // sequences of one round of one member: 64 MiB of sample positions
	MaxTokens         = 1 << 62 // tokens of a run, all members together
	MaxFragments      = 256     // parts in which the weights travel
)

// RecordVersion is the version of the canonical job record. Programs that know another one refuse the job instead of training
// something else.
const RecordVersion = 2

// ErrRecord reports a job record from outside that breaks its rules.
var ErrRecord = errors.New("job record")

// Record is a run in canonical form: all that decides its result, and nothing else. Its CID is the run ID. It holds
// what a stranger's process needs to train, so a decoded record must pass [Record.Check] before use.
type Record struct {
	Version         uint64     `cbor:"version"`
	Name            string     `cbor:"name"`
	Task            string     `cbor:"task"`
	Owner           []byte     `cbor:"owner"`   // peer ID whose signature admits members
	Attempt         uint64     `cbor:"attempt"` // tells two runs of one job file apart
	Model           model.Spec `cbor:"model"`
	Dataset         wire.Link  `cbor:"dataset"`
	Tokenizer       string     `cbor:"tokenizer"`
	Rounds          uint64     `cbor:"rounds"`
	LocalSteps      uint64     `cbor:"local_steps"`
	Batch           uint64     `cbor:"batch"`       // sequences in one step of one peer
	MicroBatch      uint64     `cbor:"micro_batch"` // sequences computed at once
	Context         uint64     `cbor:"context"`     // tokens in one sequence
	Peers           uint64     `cbor:"peers"`       // members that the schedule expects
	LearningRate    float64    `cbor:"learning_rate"`
	MinRate         float64    `cbor:"min_learning_rate"`
	Warmup          uint64     `cbor:"warmup"` // steps
	WeightDecay     float64    `cbor:"weight_decay"`
	Clip            float64    `cbor:"clip"`
	Seed            uint64     `cbor:"seed"`
	Pace            string     `cbor:"pace"` // auto or fixed
	Bits            float64    `cbor:"bits"` // budget of the auto pace, per parameter and step
	Codec           string     `cbor:"codec"`
	Group           uint64     `cbor:"group"` // most members that average with each other in a round; 0 chooses
	Fragments       uint64     `cbor:"fragments"`
	Overlap         string     `cbor:"overlap"`   // auto, never or always
	Gradients       string     `cbor:"gradients"` // auto or never: whether the auto pace may make a round one step on everybody's gradients
	OuterRate       float64    `cbor:"outer_learning_rate"`
	OuterMomentum   float64    `cbor:"outer_momentum"`
	CheckpointEvery uint64     `cbor:"checkpoint_every"` // rounds

	Init    *wire.Link `cbor:"init,omitempty"`    // folder of the model whose weights the run starts from; nil starts from the seed
	Adapter *Adapter   `cbor:"adapter,omitempty"` // trained beside the frozen model of Init; nil trains the model itself
	Freeze  []string   `cbor:"freeze,omitempty"`  // patterns of parameters that stay as they are
}

// Dataset is what a run's record says of its dataset.
type Dataset struct {
	CID       cid.Cid
	Tokenizer string // name of the exact mapping that made the tokens
	Vocab     int    // of the tokenizer: the model's, too
}

// Base is the model that a run starts from.
type Base struct {
	CID  cid.Cid // of its folder
	Spec model.Spec
}

// Bind makes the record of a job file for its owner, dataset and attempt.
func (f *File) Bind(owner peer.ID, dataset Dataset, attempt uint64) (Record, error) {
	spec, err := f.spec(dataset.Vocab)
	if err != nil {
		return Record{}, err
	}
	micro := f.Train.MicroBatch
	if micro == 0 {
		micro = f.Train.Batch
	}
	r := Record{
		Version: RecordVersion, Name: f.Name, Task: f.Task, Owner: []byte(owner), Attempt: attempt,
		Model: spec, Dataset: wire.Link{Cid: dataset.CID}, Tokenizer: dataset.Tokenizer,
		LocalSteps: uint64(f.Rounds.LocalSteps), Batch: uint64(f.Train.Batch), MicroBatch: uint64(micro),
		Context: uint64(f.Train.Context), Peers: uint64(f.Market.Peers),
		LearningRate: f.Train.LearningRate, MinRate: f.Train.MinRate, Warmup: uint64(f.Train.Warmup),
		WeightDecay: f.Train.WeightDecay, Clip: f.Train.Clip, Seed: f.Train.Seed,
		Pace: f.Rounds.Pace, Bits: f.Rounds.Bits, Codec: f.Rounds.Codec, Group: uint64(f.Rounds.Group), Fragments: uint64(f.Rounds.Fragments), Overlap: f.Rounds.Overlap, Gradients: f.Rounds.Gradients,
		OuterRate: f.Rounds.OuterRate, OuterMomentum: f.Rounds.Momentum,
		CheckpointEvery: uint64(f.Checkpoint.Every),
	}
	r.Freeze = f.Freeze
	if f.base != nil {
		r.Init = &wire.Link{Cid: f.base.CID}
		r.Adapter = f.adapter()
	}
	r.Rounds = f.rounds(r.tokensPerRound())
	if err := r.Check(); err != nil {
		return r, err
	}
	if _, err := r.Program(); err != nil && r.Adapter != nil {
		return r, f.wrong("lora.targets", "%v", err)
	} else if err != nil {
		return r, f.wrong("freeze", "%v", err)
	}
	return r, nil
}

// DefaultRounds is the length of a run whose file names neither rounds nor tokens.
const DefaultRounds = 30

func (f *File) rounds(tokensPerRound uint64) uint64 {
	switch {
	case f.Train.Rounds > 0:
		return uint64(f.Train.Rounds)
	case f.Train.Tokens > 0:
		return (uint64(f.Train.Tokens) + tokensPerRound - 1) / tokensPerRound
	}
	return DefaultRounds
}

// spec resolves the model part for a vocabulary.
func (f *File) spec(vocab int) (model.Spec, error) {
	if f.base != nil {
		return f.base.Spec, nil
	}
	m := f.Model
	if m == (ModelPart{}) {
		m.Preset = "llama-1m"
	}
	if m.Preset != "" {
		s, err := model.Preset(m.Preset)
		if err != nil {
			return s, f.wrong("model.preset", "%v", err)
		}
		s.Vocab, s.Context = vocab, f.Train.Context
		return s, f.validModel(s)
	}
	s := model.Spec{
		Family: m.Family, Vocab: vocab, Width: m.Width, Layers: m.Layers, Heads: m.Heads, KVHeads: m.KVHeads,
		FeedForward: m.FeedForward, Context: f.Train.Context, RopeTheta: m.RopeTheta, NormEps: m.NormEps, TieEmbeddings: true,
	}
	if s.Family == "" {
		s.Family = model.FamilyLlama
	}
	if s.KVHeads == 0 {
		s.KVHeads = s.Heads
	}
	if s.RopeTheta == 0 {
		s.RopeTheta = 10000
	}
	if s.NormEps == 0 {
		s.NormEps = 1e-5
	}
	if m.Tie != nil {
		s.TieEmbeddings = *m.Tie
	}
	return s, f.validModel(s)
}

func (f *File) validModel(s model.Spec) error {
	err := s.Validate()
	var field *model.FieldError
	if errors.As(err, &field) {
		return f.wrong("model."+field.Field, "%s, allowed: %s", field.Value, field.Allowed)
	}
	return err
}

// Encode returns the record's canonical bytes and its CID, the run ID.
func (r Record) Encode() ([]byte, cid.Cid, error) {
	b, err := wire.Marshal(r)
	if err != nil {
		return nil, cid.Undef, err
	}
	return b, wire.RecordCID(b), nil
}

// Decode reads a record from outside and checks it.
func Decode(b []byte) (Record, error) {
	var r Record
	if err := wire.Unmarshal(b, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, r.Check()
}

// tokensPerRound is what all members together train on in one round.
func (r Record) tokensPerRound() uint64 { return r.TokensPerPeerRound() * r.Peers }

// Steps is the length of the run: it is over after so many nominal optimiser steps of a member.
func (r Record) Steps() uint64 { return r.Rounds * r.LocalSteps }

// TokensPerPeerRound is what one member trains on in one round: steps × sequences × tokens.
func (r Record) TokensPerPeerRound() uint64 { return r.LocalSteps * r.Batch * r.Context }

// Check bounds every field of a record, so that no later arithmetic overflows and nothing is allocated for nonsense.
func (r Record) Check() error {
	if r.Version != RecordVersion || r.Task != "causal-lm" {
		return fmt.Errorf("%w: version %d, task %q: this program runs version %d, causal-lm", ErrRecord, r.Version, r.Task, RecordVersion)
	}
	if _, err := peer.IDFromBytes(r.Owner); err != nil {
		return fmt.Errorf("%w: owner: %w", ErrRecord, err)
	}
	if err := r.Model.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	tok, err := tokenizer.ParseName(r.Tokenizer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if tok.Vocab != 0 && !r.VocabFits(tok.Vocab) || int(tok.End) >= r.Model.Vocab {
		return fmt.Errorf("%w: the model has a vocabulary of %d, tokenizer %s does not fit it", ErrRecord, r.Model.Vocab, r.Tokenizer)
	}
	if !r.Dataset.Defined() || !r.contextFits() || !nameRule.MatchString(r.Name) {
		return fmt.Errorf("%w: dataset %v, vocabulary %d, context %d, name %q do not fit together", ErrRecord, r.Dataset, r.Model.Vocab, r.Context, r.Name)
	}
	for _, n := range []struct {
		name         string
		value, limit uint64
	}{
		{"rounds", r.Rounds, 1e6}, {"local_steps", r.LocalSteps, 1e5}, {"batch", r.Batch, 1 << 16},
		{"micro_batch", r.MicroBatch, r.Batch}, {"peers", r.Peers, MaxPeers}, {"checkpoint_every", r.CheckpointEvery, 1e6},
	} {
		if n.value < 1 || n.value > n.limit {
			return fmt.Errorf("%w: %s is %d, allowed: 1 to %d", ErrRecord, n.name, n.value, n.limit)
		}
	}
	if r.Batch*r.Context > MaxStepTokens || r.LocalSteps*r.Batch > MaxRoundSequences {
		return fmt.Errorf("%w: a step of %d × %d tokens, a round of %d × %d sequences, allowed: %d and %d: lower train.batch, train.context or rounds.local_steps",
			ErrRecord, r.Batch, r.Context, r.LocalSteps, r.Batch, uint64(MaxStepTokens), uint64(MaxRoundSequences))
	}
	if hi, total := bits.Mul64(r.tokensPerRound(), r.Rounds); hi > 0 || total > MaxTokens {
		return fmt.Errorf("%w: %d rounds of %d tokens, allowed: %d in all", ErrRecord, r.Rounds, r.tokensPerRound(), uint64(MaxTokens))
	}
	if r.Batch%r.MicroBatch != 0 || r.Warmup > 1e7 {
		return fmt.Errorf("%w: micro_batch %d must divide batch %d; warmup is %d", ErrRecord, r.MicroBatch, r.Batch, r.Warmup)
	}
	for _, x := range []float64{r.LearningRate, r.MinRate, r.WeightDecay, r.Clip, r.OuterRate, r.OuterMomentum} {
		if math.IsNaN(x) || x < 0 || x > 1e6 {
			return fmt.Errorf("%w: a rate is %v, allowed: 0 to 1e6", ErrRecord, x)
		}
	}
	if err := r.checkTuning(); err != nil {
		return err
	}
	return r.checkRounds()
}

// checkRounds bounds what says how the rounds go.
func (r Record) checkRounds() error {
	if _, err := codec.Parse(r.Codec); err != nil && r.Codec != CodecAuto {
		return fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if r.Pace != PaceAuto && r.Pace != PaceFixed || r.Overlap != OverlapAuto && r.Overlap != OverlapNever && r.Overlap != OverlapAlways {
		return fmt.Errorf("%w: pace %.20q, overlap %.20q, allowed: auto, fixed; auto, never, always", ErrRecord, r.Pace, r.Overlap)
	}
	if r.Gradients != GradientsAuto && r.Gradients != GradientsNever {
		return fmt.Errorf("%w: gradients %.20q, allowed: auto, never", ErrRecord, r.Gradients)
	}
	if !(r.Bits >= 0 && r.Bits <= 1e6) || r.Fragments < 1 || r.Fragments > MaxFragments || r.Group == 1 || r.Group > MaxPeers {
		return fmt.Errorf("%w: %v bits, %d fragments, groups of %d, allowed: 0 to 1e6, 1 to %d, 0 or 2 to %d",
			ErrRecord, r.Bits, r.Fragments, r.Group, uint64(MaxFragments), uint64(MaxPeers))
	}
	return nil
}

// WorkUnit is the number of floating-point operations that one work unit stands for.
const WorkUnit = 1_000_000_000

// WorkUnits returns the whole work units of training on a number of tokens: tokens × FLOPs per token / [WorkUnit],
// rounded down. Buyer and seller compute it from the record alone.
func (r Record) WorkUnits(tokens uint64) (uint64, error) {
	program, err := r.Program()
	if err != nil {
		return 0, err
	}
	flops, err := program.FLOPsPerToken(int(r.Context))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return mulDiv(tokens, uint64(flops), WorkUnit), nil
}
