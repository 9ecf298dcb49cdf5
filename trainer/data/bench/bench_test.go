package bench

import (
	"context"
	"encoding/json"
	"testing"
)

// Every figure is measured, and what is measured reads the whole corpus: Run fails otherwise.
func TestRun(t *testing.T) {
	f, err := Run(context.Background(), Options{Bytes: 200_000, Rounds: 1, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for name, v := range all {
		if n, ok := v.(float64); ok && !(n > 0) {
			t.Errorf("%s is %v", name, n)
		}
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Run(cancelled, Options{Bytes: 200_000, Rounds: 1, Dir: t.TempDir()}); err == nil {
		t.Error("measured although cancelled")
	}
}
