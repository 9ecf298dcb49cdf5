package bench

import (
	"bytes"
	"testing"
)

func TestRunMeasures(t *testing.T) {
	t.Setenv("CAPANODE_PYTHON", "no-such-python")
	f, err := Run(t.Context(), Options{Bytes: 128 << 10, Plain: 16 << 10, Vocab: 600})
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]float64{"encode": f.Encode, "train": f.Train, "encode over plain": f.EncodeOver, "train over plain": f.TrainOver} {
		if !(v > 0) {
			t.Errorf("%s: %v", name, v)
		}
	}
	if len(f.Missing) != 4 || f.EncodeOverPkg != 0 {
		t.Errorf("without Python %q are missing", f.Missing)
	}
}

func TestTextIsTheSame(t *testing.T) {
	if a, b := Text(10_000), Text(10_000); !bytes.Equal(a, b) || len(a) < 10_000 {
		t.Errorf("%d and %d bytes", len(a), len(b))
	}
}
