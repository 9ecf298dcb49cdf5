package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/evaluate"
	"github.com/capacloud/capanode/trainer/hf"
)

// ErrTokenizer reports text and a model whose tokens are not the same.
var ErrTokenizer = errors.New("tokenizer does not fit")

// EvalOptions says which model is measured, and on what.
type EvalOptions struct {
	Use
	Model   string        // folder, CID, run or job name
	Data    []string      // files, folders, patterns, or CIDs of datasets; empty is the held-out part of what the model was trained on
	Split   dataset.Split // of datasets
	Corpus  corpus.Options
	Context int    // tokens of a window; 0 is the model's
	Stride  int    // tokens from one window to the next; 0 is the context
	Most    uint64 // tokens that are scored of each; 0 is no limit
	Threads int
}

// Evaluation is what a model got.
type Evaluation struct {
	Model      string      `json:"model"` // as it was named
	Name       string      `json:"name,omitempty"`
	Parameters int         `json:"parameters"`
	Tokenizer  string      `json:"tokenizer"`
	Context    int         `json:"context"`
	Stride     int         `json:"stride"`
	Data       []Evaluated `json:"data"`
}

// Evaluated is what a model got on one text or dataset.
type Evaluated struct {
	Data  string         `json:"data"`            // as it was named
	Name  string         `json:"name,omitempty"`  // of the dataset
	Split string         `json:"split,omitempty"` // of the dataset
	Read  *corpus.Counts `json:"read,omitempty"`  // of the text, when it was read to its end
	evaluate.Figures
}

// EvalProgressEvent says how far an evaluation is. One comes four times a second, and one at the end of each text.
type EvalProgressEvent struct {
	Type            string  `json:"type"` // eval-progress
	Data            string  `json:"data"`
	Tokens          uint64  `json:"tokens"` // scored
	Total           uint64  `json:"total"`  // 0 while it is not known
	TokensPerSecond float64 `json:"tokens_per_second"`
	Ended           bool    `json:"ended"`
}

// Eval measures a model on texts and datasets. Equal models and texts give equal figures on every machine. Where files could
// not be read as a whole the figures are those of the rest, and the error is [ErrPartly].
func Eval(ctx context.Context, o EvalOptions) (out Evaluation, err error) {
	m, err := loadModel(ctx, o.Use, o.Model)
	if err != nil {
		return out, err
	}
	if len(o.Data) == 0 {
		if m.Provenance.Dataset == "" {
			return out, fmt.Errorf("%w: model %s does not say what it was trained on: name files or a dataset with --data", ErrUsage, o.Model)
		}
		o.Data = []string{m.Provenance.Dataset}
	}
	if o.Context == 0 {
		o.Context = m.Spec.Context
	}
	if o.Stride == 0 {
		o.Stride = o.Context
	}
	if o.Context < 1 || o.Context > m.Spec.Context || o.Stride < 1 || o.Stride > o.Context {
		return out, fmt.Errorf("%w: --context %d, --stride %d: model %s takes 1 to %d tokens, and a stride is 1 to the context", ErrUsage, o.Context, o.Stride, o.Model, m.Spec.Context)
	}
	eng, err := modelEngine(m, o.Threads)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	model, ok := eng.(engine.Scoring)
	if !ok {
		return out, fmt.Errorf("model %s: %w: its engine does not score tokens", o.Model, hf.ErrUnsupported)
	}
	out = Evaluation{Model: o.Model, Name: m.Provenance.Name, Parameters: len(m.Weights), Tokenizer: m.Tokenizer.Name(), Context: o.Context, Stride: o.Stride, Data: []Evaluated{}}
	var partly error
	for _, what := range o.Data {
		e := &evaluation{EvalOptions: o, model: m, what: what, began: time.Now()}
		if e.Scorer, err = evaluate.New(model, evaluate.Options{Context: o.Context, Stride: o.Stride, Vocab: m.Spec.Vocab, Most: o.Most, Sizes: evaluate.Sizes(m.Tokenizer)}); err != nil {
			return out, err
		}
		row, err := e.on(ctx)
		if err != nil && !errors.Is(err, ErrPartly) {
			return out, fmt.Errorf("evaluate %s: %w", what, err)
		}
		partly = errors.Join(partly, err)
		out.Data = append(out.Data, row)
	}
	return out, partly
}

// evaluation is one text or dataset on its way through a model.
type evaluation struct {
	EvalOptions
	*evaluate.Scorer
	model hf.Model
	what  string
	total uint64 // tokens to score; 0 while it is not known

	began, shown time.Time
}

// errEnough ends a reading whose tokens are all that is asked for.
var errEnough = errors.New("enough")

// on measures the model on what is named: a dataset when it is a CID and no file.
func (e *evaluation) on(ctx context.Context) (row Evaluated, err error) {
	row.Data = e.what
	var partly error
	if c, isSet := datasetCID([]string{e.what}); isSet {
		row.Split = string(e.Split)
		row.Name, err = e.dataset(ctx, c)
	} else {
		row.Read = &corpus.Counts{}
		*row.Read, err = e.text(ctx)
		if n := row.Read.Broken(); err == nil && n > 0 {
			partly = fmt.Errorf("%w: %d of %d files of %s could not be read as a whole: %s; the figures are those of the rest", ErrPartly, n, row.Read.Files, e.what, row.Read.FirstProblem())
		}
	}
	if err == nil && e.Full() {
		row.Read = nil // how far the reading was ahead is chance
	}
	if err == nil {
		row.Figures, err = e.Figures(ctx)
	}
	e.progress(true)
	return row, errors.Join(err, partly)
}

// text scores files as one sequence: an end of text, and each document with the end of text that closes it, so that every byte
// is foreseen from something.
func (e *evaluation) text(ctx context.Context) (corpus.Counts, error) {
	o := data.Options{Corpus: e.Corpus, Tokenizer: e.model.Tokenizer}
	o.Corpus.Paths = []string{e.what}
	end := []int32{e.model.Tokenizer.EndOfText()}
	if err := e.Write(ctx, end); err != nil {
		return corpus.Counts{}, err
	}
	counts, err := data.Tokens(ctx, o, func(ids []int32, last bool) error {
		err := e.Write(ctx, ids)
		if err == nil && last {
			err = e.Write(ctx, end)
		}
		if err == nil && e.Full() {
			err = errEnough
		}
		e.progress(false)
		return err
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return counts, err
}

// dataset scores one side of a dataset, each shard as a sequence of its own. Shards are read one after the other.
func (e *evaluation) dataset(ctx context.Context, c cid.Cid) (name string, err error) {
	err = e.with(ctx, func(n *Node) error {
		read := func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) {
			if err := n.need(ctx, c); err != nil {
				return nil, err
			}
			return n.store.ReadAll(ctx, c, limit)
		}
		record, err := read(ctx, c, wire.MaxRecord)
		if err != nil {
			return err
		}
		m, err := dataset.Decode(record)
		if err != nil {
			return fmt.Errorf("%w: %s is no dataset: %w", ErrUsage, c, err)
		}
		name = m.Name
		if have := e.model.Tokenizer.Name(); m.Tokenizer.Kind != have {
			return fmt.Errorf("%w: the dataset is made of tokens of %s, the model reads %s: evaluate on the text itself, or on a dataset made with the model's tokenizer",
				ErrTokenizer, m.Tokenizer.Kind, have)
		}
		for _, s := range m.Shards {
			if s.Split == e.Split && s.Tokens > 0 {
				e.total += s.Tokens - 1
			}
		}
		if e.Most > 0 {
			e.total = min(e.total, e.Most)
		}
		if e.total == 0 {
			return fmt.Errorf("%w in its %s split: choose the other with --split", data.ErrNoValidation, e.Split)
		}
		for i, s := range m.Shards {
			if s.Split != e.Split || e.Full() {
				continue
			}
			tokens, err := m.ReadShard(ctx, read, i)
			if err != nil {
				return err
			}
			if err := e.shard(ctx, tokens); err != nil {
				return err
			}
		}
		return nil
	})
	return name, err
}

// shardPiece is how many tokens of a shard are decoded at a time.
const shardPiece = 16 << 10

func (e *evaluation) shard(ctx context.Context, tokens dataset.Tokens) error {
	ids := make([]int32, min(shardPiece, tokens.Len()))
	for at := 0; at < tokens.Len() && !e.Full(); {
		n := tokens.Copy(ids, at)
		if err := e.Write(ctx, ids[:n]); err != nil {
			return err
		}
		at += n
		e.progress(false)
	}
	return e.End(ctx)
}

// progress tells now and then how far this is.
func (e *evaluation) progress(ended bool) {
	now := time.Now()
	if e.Emit == nil || !ended && now.Sub(e.shown) < 250*time.Millisecond {
		return
	}
	e.shown = now
	e.Emit(EvalProgressEvent{Type: "eval-progress", Data: filepath.Base(e.what), Tokens: e.Tokens(), Total: e.total, Ended: ended,
		TokensPerSecond: float64(e.Tokens()) / max(now.Sub(e.began).Seconds(), 1e-3)})
}
