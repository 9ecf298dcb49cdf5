// Package engine owns the tensor engine: the small set of operations that model families are written over, and the
// executors that run them. It refuses to know about rounds, peers and files: its world is batches, flat parameter views
// and losses.
//
// A family describes itself as a [Program] over the operations of [Graph]; an executor (package gomlx below) turns the
// program into an [Engine].
package engine

import (
	"context"
	"errors"
)

// ErrMemory reports a model or batch whose estimate exceeds the memory limit. It is returned before allocation.
var ErrMemory = errors.New("does not fit in memory")

// ErrNumerics reports a step whose loss or gradient norm is not finite. The state is as before the step.
var ErrNumerics = errors.New("loss or gradient is not finite")

// ErrHung reports a step that the watchdog gave up on. The engine cannot be used afterwards.
var ErrHung = errors.New("engine step hung")

// ErrPlugin reports a device that cannot compute: its PJRT plugin is missing, does not load, or finds no device, or this
// build cannot have one.
var ErrPlugin = errors.New("no engine for this device")

// Ignore as a target excludes that position from the loss.
const Ignore int32 = -1

// Batch is one micro-batch. A language model reads Inputs and Targets alone; [Needs] says what others read.
type Batch struct {
	Rows, Context int       // sequences, and tokens or feature lines of each
	Inputs        []int32   // token IDs [Rows, Context], row-major
	Features      []float32 // continuous inputs: [Rows, Context, width], or images [Rows, Channels, Height, Width]
	Types         []int32   // which part of its text each token is in [Rows, Context]; nil means all 0
	Lengths       []int32   // real tokens of each row, 1 to Context; nil means all
	Picks         []int32   // lines that Gather keeps [Rows, picks], ascending within a row
	Targets       []int32   // [Rows, lines of the loss]: next tokens or classes; [Ignore] where no loss is wanted
}

// Step holds the hyper-parameters of one optimiser step (AdamW, decoupled weight decay).
type Step struct {
	LearningRate float64
	Beta1, Beta2 float64
	Epsilon      float64
	WeightDecay  float64 // applied to parameters with Decay set
	ClipNorm     float64 // global gradient norm is clipped to this; 0 means no clipping
}

// Engine holds one replica of one model. Its methods are not safe for concurrent use.
type Engine interface {
	// Train runs one optimiser step over the micro-batches (gradients are averaged over their tokens) and returns the
	// mean loss in nats per target token.
	Train(ctx context.Context, batches []Batch, step Step) (loss float64, err error)
	// Evaluate returns the mean loss in nats per target token without changing the state.
	Evaluate(ctx context.Context, batch Batch) (loss float64, err error)
	// Logits returns the logits [Rows, Context, Vocab] of a batch, row-major.
	Logits(ctx context.Context, batch Batch) ([]float32, error)
	// State returns the parameter and optimiser state as it is now. The caller may read and write its slices until the
	// next call of another method; then it asks again. An executor on a device copies what changed in each direction.
	State() *State
	// Close frees the executor's buffers.
	Close() error
}

// Decoder continues one sequence token by token, keeping the keys and values of what it has seen. It shares its engine's
// memory and must not run beside it. Weights that change under it are not noticed.
type Decoder interface {
	// Next appends tokens to the sequence and returns the logits [Vocab] of what follows the last of them, valid until
	// the next call. They have the bits that Engine.Logits gives for the whole sequence. A sequence longer than the
	// model's context is [ErrBatch].
	Next(ctx context.Context, tokens []int32) ([]float32, error)
	// Len returns the length of the sequence.
	Len() int
	// Reset begins a new sequence with the weights as they are now.
	Reset()
}

// Decoding is an [Engine] that has decoders. ErrShape is returned for a model that looks ahead.
type Decoding interface {
	Engine
	Decoder() (Decoder, error)
}

// Scores tells how well a model foresaw each target of one batch.
type Scores struct {
	Losses []float64 // nats, in the order of Batch.Targets; 0 where the target is [Ignore]
	Hits   []bool    // the target's logit is the largest, and the first of equal ones; nil when the loss is no cross-entropy
}

// Scoring is an [Engine] that tells the loss of each target instead of their mean.
type Scoring interface {
	Engine
	// Score evaluates a batch without changing the state. Its slices are valid until the next call of any method. The
	// losses do not depend on the other rows of the batch, and their mean is what Evaluate returns.
	Score(ctx context.Context, batch Batch) (Scores, error)
}

// Gradient is the gradient of a loss that is summed over targets.
type Gradient struct {
	Sum     []float32 // layout of State.Weights; valid until the next call of any method of its engine
	Targets int64     // that the loss is summed over
	Loss    float64   // mean, in nats per target token
}

// Differentiating is an [Engine] that gives gradients away instead of stepping. [State.Update] steps with them.
type Differentiating interface {
	Engine
	// Gradient returns the gradient over the micro-batches at the weights as they are now. The state does not change.
	Gradient(ctx context.Context, batches []Batch) (Gradient, error)
}

// State is all that training changes, flat float32 views in canonical order, and beside it what it leaves alone.
type State struct {
	Params  []Param   // that are trained, sorted by Name; Param.Offset points into the slices below
	Weights []float32 // of Params
	M, V    []float32 // first and second AdamW moments, same layout as Weights
	Steps   uint64    // optimiser steps taken, the t of AdamW's bias correction

	Frozen []Param   // the others, sorted by Name; Param.Offset points into Fixed
	Fixed  []float32 // of Frozen. An executor may keep copies: they are written before any other method is called, or not at all
}

// Param is one tensor of a model.
type Param struct {
	Name   string // Hugging Face tensor name
	Shape  []int  // row-major, Hugging Face orientation: a linear layer is [out, in]
	Offset int    // of the first element in the flat views
	Init   Init
	Decay  bool // weight decay applies
	Frozen bool // training leaves it as it is: no gradient, no moments
}

// Size returns the number of elements.
func (p Param) Size() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Init says how a parameter starts.
type Init struct {
	Std  float64 // normal distribution with mean 0 and this deviation; 0 means constant
	Fill float32 // the constant, when Std is 0
}
