package hf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
)

// What is read of weights in several files at most.
const (
	maxShards = 512
	maxIndex  = 32 << 20 // bytes of the index
)

// shard is one file of weights.
type shard struct {
	name    string
	file    File
	tensors []safetensors.Tensor // in the order of the file
}

// readWeights reads safetensors files that must hold exactly the tensors of a model, all of one type. The files' sizes are
// compared with what the tensors need before the weights are allocated.
func readWeights(src Source, s model.Spec, params []engine.Param, total int) (weights []float32, as Type, err error) {
	shards, err := openShards(src)
	defer func() {
		for _, s := range shards {
			err = errors.Join(err, s.file.Close())
		}
	}()
	if err != nil {
		return nil, 0, err
	}
	f, err := formatOf(s)
	if err != nil {
		return nil, 0, err
	}
	wanted := map[string]stored{}
	for _, t := range storedAs(s, params) {
		if !t.extra {
			wanted[t.name] = t
		}
	}
	m := matching{format: f, spec: s, wanted: wanted, found: map[string]string{}}
	for _, s := range shards {
		if err := m.match(s); err != nil {
			return nil, 0, fmt.Errorf("hf: %s: %w", s.name, err)
		}
	}
	if len(m.found) != len(wanted) {
		return nil, 0, fmt.Errorf("hf: there is no tensor %s: %w", m.missing(), ErrFormat)
	}
	weights = make([]float32, total)
	for _, s := range shards {
		for _, t := range s.tensors {
			to, ok := wanted[f.rename(t.Name)]
			if !ok {
				continue
			}
			if err := to.read(io.NewSectionReader(s.file, t.Offset, t.Bytes), weights, m.as); err != nil {
				return nil, 0, fmt.Errorf("hf: %s: tensor %s: %w", s.name, t.Name, err)
			}
		}
	}
	return weights, m.as, finite(params, weights, math.MaxFloat32)
}

// matching compares the tensors of files with those of a model.
type matching struct {
	format
	spec   model.Spec
	wanted map[string]stored
	found  map[string]string // tensor to file
	as     Type
}

// match checks the tensors of one file.
func (m *matching) match(s shard) error {
	for _, t := range s.tensors {
		name := m.rename(t.Name)
		want, ok := m.wanted[name]
		switch {
		case !ok && m.unused(m.spec, name):
			continue
		case !ok:
			return fmt.Errorf("tensor %.80q is none of the model that %s describes: %w", t.Name, configFile, ErrFormat)
		case !equalShape(t.Shape, want.shape):
			return fmt.Errorf("tensor %s has shape %v, %s asks for %v: %w", t.Name, t.Shape, configFile, want.shape, ErrFormat)
		case m.found[name] != "":
			return fmt.Errorf("tensor %s is in %s as well: %w", t.Name, m.found[name], ErrFormat)
		}
		at := slices.IndexFunc(types[:], func(k typeNames) bool { return k.tensor == t.Type })
		if at < 0 || len(m.found) > 0 && m.as != Type(at) {
			return fmt.Errorf("tensor %s has elements of type %.20q; all of F32, all of BF16 or all of F16 is what this program reads: convert the model: %w",
				t.Name, t.Type, ErrUnsupported)
		}
		m.as, m.found[name] = Type(at), s.name
	}
	return nil
}

// missing names the first tensor that no file has.
func (m *matching) missing() string {
	for _, name := range slices.Sorted(maps.Keys(m.wanted)) {
		if m.found[name] == "" {
			return name
		}
	}
	return ""
}

// openShards opens the one file of weights or, where there is none, those that the index names, and reads their headers.
func openShards(src Source) (shards []shard, err error) {
	if shards, err = addShard(nil, src, weightsFile, nil); !errors.Is(err, fs.ErrNotExist) {
		return shards, err
	}
	raw, ierr := readSmall(src, indexFile, maxIndex)
	if errors.Is(ierr, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: a folder of a model holds %s and %s, or %s with the files that it names", err, configFile, weightsFile, indexFile)
	}
	if ierr != nil {
		return nil, ierr
	}
	var index struct {
		Files map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("hf: %s: %w: %w", indexFile, ErrFormat, err)
	}
	names := slices.Compact(slices.Sorted(maps.Values(index.Files)))
	if len(names) == 0 || len(names) > maxShards {
		return nil, fmt.Errorf("hf: %s names %d files, allowed are 1 to %d: %w", indexFile, len(names), maxShards, ErrFormat)
	}
	for _, name := range names {
		if !shardName(name) {
			return shards, fmt.Errorf("hf: %s names %.80q, which is no file of weights in the folder: %w", indexFile, name, ErrFormat)
		}
		if shards, err = addShard(shards, src, name, index.Files); err != nil {
			return shards, err
		}
	}
	return shards, nil
}

// shardName tells whether a name is that of a safetensors file in the folder itself.
func shardName(name string) bool {
	return strings.HasSuffix(name, ".safetensors") && !strings.ContainsAny(name, `/\:`) && !strings.HasPrefix(name, ".") && len(name) <= 255
}

// addShard opens a file and reads its header. Of a file that an index names, each tensor must be where the index says.
func addShard(shards []shard, src Source, name string, index map[string]string) ([]shard, error) {
	f, err := src.Open(name)
	if err != nil {
		return shards, fmt.Errorf("hf: %w", err)
	}
	shards = append(shards, shard{name: name, file: f})
	s := &shards[len(shards)-1]
	if s.tensors, err = safetensors.ReadHeader(f, f.Size()); err != nil {
		return shards, fmt.Errorf("hf: %s: %w: %w", name, ErrFormat, err)
	}
	for _, t := range s.tensors {
		if index != nil && index[t.Name] != name {
			return shards, fmt.Errorf("hf: %s has tensor %.80q, which %s puts into %.80q: %w", name, t.Name, indexFile, index[t.Name], ErrFormat)
		}
	}
	return shards, nil
}
