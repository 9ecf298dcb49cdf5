package node

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tokenizer"
	"github.com/capacloud/capanode/trainer/worker"
)

// A provider that stands alone at the end may hand over any model: only the one of the agreed state is taken.
func TestJudgeModel(t *testing.T) {
	run := wire.RecordCID([]byte("run"))
	s := round.NewState(run, 2, []float32{1, -2, 3.5})
	set := []round.Signed{{Header: round.Header{Tokens: 10, Ranges: []round.Range{{Shard: 1, From: 0, To: 4}}}, Author: "a", ID: round.Hash{1}}}
	s.Advance(set, set, round.Turn{Steps: 1})
	log := openLog(t, filepath.Join(t.TempDir(), "work.jsonl"))
	if err := log.add(worker.Report{Round: 0, Total: 10, Next: s.Hash(), Work: work{"a": 10}}); err != nil {
		t.Fatal(err)
	}
	r := &requester{run: run, rec: job.Record{Rounds: 3, LocalSteps: 1, Tokenizer: "bytes"}, verified: log}
	for name, c := range map[string]struct {
		change func(*hf.Model)
		want   error
	}{
		"the agreed one":      {func(*hf.Model) {}, nil},
		"another weight":      {func(m *hf.Model) { m.Weights[1] = -2.0000002 }, errForeign},
		"another proof":       {func(m *hf.Model) { m.Provenance.Head = m.Provenance.Momentum }, errForeign},
		"no proof":            {func(m *hf.Model) { m.Provenance.Head = "" }, errForeign},
		"no tokenizer":        {func(m *hf.Model) { m.Tokenizer = nil }, errForeign},
		"another tokenizer":   {func(m *hf.Model) { m.Tokenizer = new(tokenizer.BPE) }, errForeign},
		"another run":         {func(m *hf.Model) { m.Provenance.Run = "x" }, errForeign},
		"a round to come":     {func(m *hf.Model) { m.Provenance.Step = 4 }, errForeign},
		"a round not seen":    {func(m *hf.Model) { m.Provenance.Round, m.Weights[0] = 2, 7 }, nil}, // votes decide
		"a state of its word": {func(m *hf.Model) { m.Provenance.State = "lie" }, nil},              // only the weights count
	} {
		proof := s.Proof()
		m := hf.Model{Weights: append([]float32{}, s.Weights...), Tokenizer: tokenizer.Byte{}, Provenance: hf.Provenance{
			Run: run.String(), Round: 1, State: s.Hash().String(), Head: proof.Head.String(), Momentum: proof.Momentum.String(),
		}}
		c.change(&m)
		if err := r.judge(readModel{Model: m}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// Where members' weights differ, a model in mid-run is taken on the word of its member, but only for the agreed ledger.
func TestJudgeModelOfGroups(t *testing.T) {
	run := wire.RecordCID([]byte("run"))
	s := round.NewState(run, 2, []float32{1, -2, 3.5})
	set := []round.Signed{{Header: round.Header{Tokens: 10, Ranges: []round.Range{{Shard: 1, From: 0, To: 4}}}, Author: "a", ID: round.Hash{1}}}
	s.Advance(set, set, round.Turn{Steps: 1, Groups: true})
	log := openLog(t, filepath.Join(t.TempDir(), "work.jsonl"))
	if err := log.add(worker.Report{Round: 0, Total: 10, Next: s.Key(), Work: work{"a": 10}}); err != nil {
		t.Fatal(err)
	}
	r := &requester{run: run, rec: job.Record{Rounds: 3, LocalSteps: 1, Tokenizer: "bytes"}, verified: log}
	proof := s.Proof()
	m := hf.Model{Weights: []float32{9, 9, 9}, Tokenizer: tokenizer.Byte{}, Provenance: hf.Provenance{Run: run.String(), Round: 1, Head: proof.Head.String(), Momentum: proof.Momentum.String()}}
	if err := r.judge(readModel{Model: m}); err != nil {
		t.Errorf("a member's own weights: %v", err)
	}
	m.Provenance.Head = proof.Momentum.String()
	if err := r.judge(readModel{Model: m}); !errors.Is(err, errForeign) {
		t.Errorf("another ledger: %v, want errForeign", err)
	}
}
