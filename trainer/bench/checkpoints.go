package bench

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/lab"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/tempo"
)

// CheckpointOptions say how a model is trained to have two checkpoints of it.
type CheckpointOptions struct {
	Model  string // preset
	Text   lab.Text
	Rounds int     // of which the last two leave the checkpoints; at least 2
	Steps  int     // local steps of a round
	Frozen float64 // share of the weights at most, in whole tensors from the first on, that training leaves as they are
}

// CheckpointPair are the weights of one model after two rounds that follow each other.
type CheckpointPair struct {
	Spec          model.Spec
	Params        []engine.Param
	Before, After []float32
	Frozen        float64 // share of the weights that was frozen
	Loss          float64 // validation loss at the end, nats per token
}

// TrainCheckpoints trains two peers with the program's rounds, of float32 updates and the outer step of its defaults, on a text of bytes.
func TrainCheckpoints(ctx context.Context, o CheckpointOptions) (c CheckpointPair, err error) {
	if o.Rounds < 2 || o.Steps < 1 || o.Frozen < 0 || o.Frozen > 1 {
		return c, fmt.Errorf("bench: checkpoints of %d rounds of %d steps, %g frozen: %w", o.Rounds, o.Steps, o.Frozen, lab.ErrSetup)
	}
	if c.Spec, err = model.Preset(o.Model); err != nil {
		return c, fmt.Errorf("bench: %w", err)
	}
	c.Spec.Context = min(c.Spec.Context, 64) // attention over more costs time and changes nothing
	program, err := c.Spec.Program()
	if err != nil {
		return c, fmt.Errorf("bench: %w", err)
	}
	params, size, err := engine.Layout(program.Params)
	if err != nil {
		return c, fmt.Errorf("bench: %w", err)
	}
	c.Params = params
	frozen := 0
	for _, p := range params {
		if float64(frozen+p.Size()) > o.Frozen*float64(size) {
			break
		}
		frozen += p.Size()
	}
	c.Frozen = float64(frozen) / float64(size)
	beat := tempo.Beat{LocalSteps: o.Steps, Codec: "fp32", Outer: outer.Settings{LearningRate: 0.7, Momentum: 0.3}}
	setup := lab.Setup{
		Model: c.Spec, Text: o.Text, Peers: 2, Rows: 8, Steps: o.Rounds * o.Steps, Seed: 1, Rate: 3e-3, Points: 1, Windows: 32, Frozen: frozen,
	}
	keep := map[int]*[]float32{setup.Steps - o.Steps: &c.Before, setup.Steps: &c.After}
	result, err := lab.Run(ctx, setup, keeping{lab.Gather{Label: "checkpoints", Pace: func(uint64) tempo.Beat { return beat }}, keep})
	c.Loss = result.Loss
	return c, err
}

// keeping is a method whose shared weights are kept after some steps.
type keeping struct {
	lab.Method
	after map[int]*[]float32
}

// Begin implements [lab.Method].
func (k keeping) Begin(s *lab.Swarm) (lab.Trial, error) {
	t, err := k.Method.Begin(s)
	return keptTrial{t, k.after}, err
}

type keptTrial struct {
	lab.Trial
	after map[int]*[]float32
}

func (k keptTrial) Step(ctx context.Context, t int) error {
	err := k.Trial.Step(ctx, t)
	if to := k.after[t+1]; to != nil {
		*to = append([]float32(nil), k.Shared(0)...)
	}
	return err
}
