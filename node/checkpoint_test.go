package node

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// Two checkpoints of a run, the second with most tensors frozen: what they have in common is stored once and shown, each is a
// model folder of its own, and the first can go.
func TestCheckpointsShareFrozenTensors(t *testing.T) {
	ctx, home, cfg := context.Background(), t.TempDir(), localConfig(t)
	n, err := openNode(ctx, home, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.join(ctx, p2p.Researcher); err != nil {
		t.Fatal(err)
	}
	run := wire.RecordCID([]byte("run"))
	r := job.Record{Name: "frozen", Dataset: wire.Link{Cid: run}, Tokenizer: tokenizer.Byte{}.Name(), Model: model.Spec{
		Family: model.FamilyLlama, Vocab: 257, Width: 128, Layers: 2, Heads: 4, KVHeads: 2, FeedForward: 512, Context: 16,
		RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true,
	}}
	total, err := r.Model.Parameters()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	s := round.NewState(run, 1, make([]float32, total))
	for i := range s.Weights {
		s.Weights[i] = float32(rng.NormFloat64() * 0.02)
	}
	var used [2]int64
	for i := range used {
		s.Round = uint64(i + 1)
		if _, err := publishModel(ctx, &task{p: &provider{Node: n}, rec: r, run: run, tok: tokenizer.Byte{}}, s); err != nil {
			t.Fatal(err)
		}
		used[i] = n.store.Usage().Used
		for j := range total / 4 { // the first quarter trains on
			s.Weights[j] += float32(rng.NormFloat64() * 0.001)
		}
	}
	all, err := n.weighed(ctx)
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if newest := all[0]; newest.Round != 2 || newest.Size < 4*total || newest.Shared < 2*total || newest.Shared > 3*total {
		t.Fatalf("%+v of a model of %d bytes with a quarter new", newest, 4*total)
	}
	if grown := used[1] - used[0]; grown > all[0].Size-all[0].Shared+8192 {
		t.Fatalf("the store grew by %d bytes for %+v", grown, all[0])
	}
	if err := n.dropOldCheckpoints(ctx, run.String(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.GC(ctx); err != nil {
		t.Fatal(err)
	}
	newest, err := parseCID(all[0].CID)
	if err != nil {
		t.Fatal(err)
	}
	if u := n.store.Usage().Used; u > all[0].Size+8192 {
		t.Fatalf("%d bytes are left for one checkpoint of %d", u, all[0].Size)
	}
	m, err := n.readModel(ctx, newest)
	size := m.bytes
	if err != nil || size != all[0].Size || m.Provenance.Round != 2 || m.Type != hf.Float32 {
		t.Fatalf("%d bytes, %+v, %v", size, m.Provenance, err)
	}
	plain, half := filepath.Join(home, "plain"), filepath.Join(home, "half")
	if err := n.exportSound(ctx, newest, plain); err != nil {
		t.Fatal(err)
	}
	if err := n.exportAs(ctx, newest, half, hf.BFloat16); err != nil {
		t.Fatal(err)
	}
	whole, err := hf.Read(plain)
	if err != nil {
		t.Fatal(err)
	}
	rounded, err := hf.Read(half)
	if err != nil || rounded.Type != hf.BFloat16 {
		t.Fatalf("%v, %v", rounded.Type, err)
	}
	for i, w := range whole.Weights {
		if w != m.Weights[i] || math.Abs(float64(w-rounded.Weights[i])) > math.Abs(float64(w))/256 {
			t.Fatalf("weight %d: %v in the store, %v exported, %v rounded", i, m.Weights[i], w, rounded.Weights[i])
		}
	}
	if st, err := os.Stat(filepath.Join(half, "model.safetensors")); err != nil || st.Size() > 2*total+8192 {
		t.Fatalf("%v, %v", st, err)
	}
	if _, err := Export(ctx, Use{Home: home, Config: cfg}, all[0].CID, t.TempDir(), ExportOptions{Type: "int3"}); !errors.Is(err, ErrUsage) || !errors.Is(err, hf.ErrUnsupported) {
		t.Fatal(err)
	}
	if rep, err := n.store.Verify(ctx); err != nil || len(rep.Faults) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if _, err := n.store.Stat(ctx, newest); errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
}
