package bench_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/lab"
)

func TestTrainCheckpoints(t *testing.T) {
	text := lab.Split([]byte(strings.Repeat("What is trained changes; what is frozen stays as it was.\n", 200)))
	c, err := bench.TrainCheckpoints(t.Context(), bench.CheckpointOptions{Model: "llama-tiny", Text: text, Rounds: 3, Steps: 2, Frozen: 0.3})
	if err != nil {
		t.Fatal(err)
	}
	frozen := int(c.Frozen*float64(len(c.After)) + 0.5)
	if frozen == 0 || c.Frozen > 0.3 || len(c.Before) != len(c.After) || c.Loss <= 0 {
		t.Fatalf("%d of %d weights frozen, loss %g", frozen, len(c.After), c.Loss)
	}
	if !slices.Equal(c.Before[:frozen], c.After[:frozen]) {
		t.Error("frozen weights changed")
	}
	same := 0
	for i := frozen; i < len(c.After); i++ {
		if c.Before[i] == c.After[i] {
			same++
		}
	}
	if same > (len(c.After)-frozen)/2 { // embeddings of bytes that the text lacks hardly move
		t.Errorf("%d of %d trained weights did not change", same, len(c.After)-frozen)
	}
	if _, err := bench.TrainCheckpoints(t.Context(), bench.CheckpointOptions{Model: "llama-tiny", Text: text, Rounds: 1, Steps: 2}); err == nil {
		t.Error("two checkpoints of one round")
	}
}
