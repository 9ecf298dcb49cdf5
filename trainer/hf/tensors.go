package hf

import (
	"cmp"
	"io"
	"slices"
	"strings"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
)

// stored is one tensor of the files and the parameters that it holds, side by side.
type stored struct {
	name   string
	shape  []int          // in the file
	parts  []engine.Param // each of the same shape
	turned bool           // the file has [in, out], the parameters [out, in]
	extra  bool           // repeats another tensor for readers that look here; written, not read
}

// storedAs lists the tensors of a model's files in the order of their names.
func storedAs(s model.Spec, params []engine.Param) []stored {
	var all []stored
	for _, p := range params {
		switch {
		case s.Family == model.FamilyGPT2 && strings.Contains(p.Name, ".c_"):
			all = appendConv1D(all, p)
		case s.Family == model.FamilyBERT && !s.TieEmbeddings && p.Name == bertBias:
			all = append(all, stored{name: bertDecoder + "bias", shape: p.Shape, parts: []engine.Param{p}},
				stored{name: p.Name, shape: p.Shape, parts: []engine.Param{p}, extra: true})
		default:
			all = append(all, stored{name: p.Name, shape: p.Shape, parts: []engine.Param{p}})
		}
	}
	slices.SortFunc(all, func(a, b stored) int { return cmp.Compare(a.name, b.name) })
	return all
}

// attention is the order in which GPT-2's c_attn holds its parts.
var attention = []string{".c_attn.q.", ".c_attn.k.", ".c_attn.v."}

// appendConv1D adds a parameter of one of GPT-2's linear layers, whose weights are turned and whose c_attn is one tensor.
func appendConv1D(all []stored, p engine.Param) []stored {
	t := stored{name: p.Name, parts: []engine.Param{p}, turned: len(p.Shape) == 2}
	order := slices.IndexFunc(attention, func(part string) bool { return strings.Contains(p.Name, part) })
	if order >= 0 {
		t.name = strings.Replace(p.Name, attention[order], ".c_attn.", 1)
	}
	if at := slices.IndexFunc(all, func(s stored) bool { return s.name == t.name }); at >= 0 {
		rank := func(p engine.Param) int {
			return slices.IndexFunc(attention, func(part string) bool { return strings.Contains(p.Name, part) })
		}
		parts := append(all[at].parts, p)
		slices.SortFunc(parts, func(a, b engine.Param) int { return rank(a) - rank(b) })
		all[at].parts = parts
		all[at].shape[len(all[at].shape)-1] += p.Shape[0]
		return all
	}
	t.shape = []int{p.Shape[0]}
	if t.turned {
		t.shape = []int{p.Shape[1], p.Shape[0]}
	}
	return append(all, t)
}

// size returns the number of elements.
func (t stored) size() int {
	n := 0
	for _, p := range t.parts {
		n += p.Size()
	}
	return n
}

// turnedFloats is how many elements of a turned tensor are held at once, at least one line.
const turnedFloats = 1 << 16

// lines calls f for the lines of a turned tensor, some at a time: for the first of them, and room for them as the file has them.
func (t stored) lines(f func(first, count int, room []float32) error) error {
	in, out := t.shape[0], t.shape[1]
	each := max(1, min(in, turnedFloats/out))
	room := make([]float32, each*out)
	for first := 0; first < in; first += each {
		count := min(each, in-first)
		if err := f(first, count, room[:count*out]); err != nil {
			return err
		}
	}
	return nil
}

// swap moves elements between the parameters' weights and some lines of the file's matrix.
func (t stored) swap(weights []float32, first, count int, room []float32, toFile bool) {
	in, out, column := t.shape[0], t.shape[1], 0
	for _, p := range t.parts {
		for row := range p.Shape[0] {
			line := weights[p.Offset+row*in+first:]
			for i := range count {
				if toFile {
					room[i*out+column] = line[i]
				} else {
					line[i] = room[i*out+column]
				}
			}
			column++
		}
	}
}

// write writes the tensor's elements.
func (t stored) write(w io.Writer, weights []float32, as Type) error {
	if t.turned {
		return t.lines(func(first, count int, room []float32) error {
			t.swap(weights, first, count, room, true)
			return writeFloats(w, room, as)
		})
	}
	for _, p := range t.parts {
		if err := writeFloats(w, weights[p.Offset:p.Offset+p.Size()], as); err != nil {
			return err
		}
	}
	return nil
}

// read reads the tensor's elements.
func (t stored) read(r io.Reader, weights []float32, as Type) error {
	if t.turned {
		return t.lines(func(first, count int, room []float32) error {
			if err := readFloats(r, room, as); err != nil {
				return err
			}
			t.swap(weights, first, count, room, false)
			return nil
		})
	}
	for _, p := range t.parts {
		if err := readFloats(r, weights[p.Offset:p.Offset+p.Size()], as); err != nil {
			return err
		}
	}
	return nil
}
