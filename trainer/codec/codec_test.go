package codec_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/codec"
)

var update = flag.Bool("update", false, "rewrite golden files")

var codecs = []codec.Codec{
	codec.FP32{}, codec.Int8{}, codec.Int4{}, codec.Top{K: 1}, codec.Top{K: 64}, codec.Top{K: 512}, codec.Top{K: 2048},
}

func normal(seed uint64, n int, std float64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * std)
	}
	return x
}

func encode(t testing.TB, c codec.Codec, x []float32) []byte {
	t.Helper()
	b := make([]byte, c.Bound(len(x)))
	size, err := c.Encode(b, x)
	if err != nil {
		t.Fatal(err)
	}
	return b[:size]
}

func decode(t testing.TB, c codec.Codec, b []byte, n int) []float32 {
	t.Helper()
	src, err := c.Open(b, n)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, n)
	codec.Decode(x, src)
	return x
}

// Bucket means make the codec unbiased: the sum of a group is the same before and after.
func TestInt8KeepsSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3*codec.Block).Draw(t, "n")
		x := normal(rapid.Uint64().Draw(t, "seed"), n, math.Exp(rapid.Float64Range(-20, 20).Draw(t, "log std")))
		shift := float32(rapid.Float64Range(-1, 1).Draw(t, "shift")) * x[0]
		var before, after, size float64
		for i := range x {
			x[i] += shift
			before += float64(x[i])
			size += math.Abs(float64(x[i]))
		}
		b := make([]byte, codec.Int8{}.Bound(n))
		if _, err := (codec.Int8{}).Encode(b, x); err != nil {
			t.Fatal(err)
		}
		src, err := codec.Int8{}.Open(b, n)
		if err != nil {
			t.Fatal(err)
		}
		y := make([]float32, n)
		codec.Decode(y, src)
		for _, v := range y {
			after += float64(v)
		}
		if math.Abs(after-before) > 1e-6*size {
			t.Errorf("sum was %g, is %g", before, after)
		}
	})
}

func TestInt8Error(t *testing.T) {
	x := normal(3, 100_000, 0.02)
	// Uniform buckets of 6σ/256 alone give 1/(256/6·√12) = 0.0068; the tails beyond 3σ share one bucket on each side.
	if rel := relative(x, decode(t, codec.Int8{}, encode(t, codec.Int8{}, x), len(x))); rel > 0.03 {
		t.Errorf("relative error %g", rel)
	}
}

func TestRoundTripFP32(t *testing.T) {
	x := normal(4, 5000, 3)
	for i, v := range decode(t, codec.FP32{}, encode(t, codec.FP32{}, x), len(x)) {
		if v != x[i] {
			t.Fatalf("element %d: got %g, want %g", i, v, x[i])
		}
	}
}

func TestSpecialVectors(t *testing.T) {
	for _, c := range codecs {
		for name, x := range map[string][]float32{
			"empty": {}, "zeros": make([]float32, 9000), "tiny": {1e-40, -1e-40}, "huge": {1e30, -1e30, 1},
		} {
			for i, v := range decode(t, c, encode(t, c, x), len(x)) {
				if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) || x[i] == 0 && v != 0 {
					t.Errorf("%s, %s: element %d of %g decodes to %g", c.ID(), name, i, x[i], v)
				}
			}
		}
		for _, v := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
			x := make([]float32, 5000)
			x[4999] = v
			if _, err := c.Encode(make([]byte, c.Bound(5000)), x); !errors.Is(err, codec.ErrNotFinite) {
				t.Errorf("%s: encoding %g: %v, want ErrNotFinite", c.ID(), v, err)
			}
		}
		if _, err := c.Encode(make([]byte, 3), make([]float32, 5)); err == nil {
			t.Errorf("%s: a buffer of the wrong size was accepted", c.ID())
		}
	}
}

// Add gives the same bits as decoding first, and leaves alone what a blob does not hold.
func TestAddIsBlock(t *testing.T) {
	for _, c := range codecs {
		x := normal(7, 9000, 1)
		clear(x[4096:6000])
		src, err := c.Open(encode(t, c, x), len(x))
		if err != nil {
			t.Fatal(err)
		}
		buf, start := make([]float32, codec.Block), normal(8, len(x), 1)
		for i := range codec.Blocks(len(x)) {
			n := src.Block(buf, i)
			acc := append([]float32{}, start[i*codec.Block:][:n]...)
			src.Add(acc, i, 0.3)
			for j, v := range buf[:n] {
				if want := start[i*codec.Block+j] + float32(0.3*v); acc[j] != want {
					t.Fatalf("%s: block %d, element %d: got %g, want %g", c.ID(), i, j, acc[j], want)
				}
			}
		}
	}
}

// The bytes must not depend on the number of cores.
func TestThreadsDoNotMatter(t *testing.T) {
	x := normal(5, 600_000, 1)
	for _, c := range codecs {
		blobs := map[string]bool{}
		for _, procs := range []int{1, 2, 5} {
			old := runtime.GOMAXPROCS(procs)
			b := encode(t, c, x)
			blobs[string(b)] = true
			runtime.GOMAXPROCS(old)
		}
		if len(blobs) != 1 {
			t.Errorf("%s: %d different blobs", c.ID(), len(blobs))
		}
	}
}

func TestGolden(t *testing.T) {
	x := make([]float32, 20)
	for i := range x {
		x[i] = float32(i-7) / 64
	}
	for _, c := range codecs {
		path := filepath.Join("testdata", strings.ReplaceAll(c.ID(), "/", "-")+".hex")
		got := hex.EncodeToString(encode(t, c, x))
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != strings.TrimSpace(string(want)) {
			t.Errorf("%s: bytes changed: %s", c.ID(), got)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range codecs {
		good := encode(t, c, normal(6, 5000, 1))
		mutate := func(f func(b []byte)) []byte {
			b := append([]byte{}, good...)
			f(b)
			return b
		}
		for name, b := range map[string][]byte{
			"empty": {}, "short": good[:len(good)-1], "long": append(good[:len(good):len(good)], 0),
			"magic": mutate(func(b []byte) { b[0]++ }), "version": mutate(func(b []byte) { b[4]++ }),
			"codec": mutate(func(b []byte) { b[5] ^= 1 }), "count": mutate(func(b []byte) { b[8]++ }),
			"infinite": mutate(func(b []byte) { binary.LittleEndian.PutUint32(b[16:], 0x7f800000) }),
			"nan":      mutate(func(b []byte) { binary.LittleEndian.PutUint32(b[20:], 0xffc00000) }),
		} {
			if _, err := c.Open(b, 5000); !errors.Is(err, codec.ErrBlob) {
				t.Errorf("%s: %s: %v, want ErrBlob", c.ID(), name, err)
			}
		}
		if _, err := c.Open(good, -1); !errors.Is(err, codec.ErrBlob) {
			t.Errorf("%s: negative count: %v", c.ID(), err)
		}
	}
	// Finite parts whose product is not.
	b := encode(t, codec.Int8{}, []float32{1})
	binary.LittleEndian.PutUint32(b[16:], math.Float32bits(1e30))
	binary.LittleEndian.PutUint32(b[20:], math.Float32bits(1e30))
	if _, err := (codec.Int8{}).Open(b, 1); !errors.Is(err, codec.ErrBlob) {
		t.Errorf("overflowing product: %v, want ErrBlob", err)
	}
}

// Blobs with some bits changed are refused, or decode to finite numbers; the fuzzer goes on from here.
func TestDamagedBlobs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range codecs {
		for _, n := range []int{1, 100, 4096, 9000} {
			good := encode(t, c, normal(uint64(n), n, 1))
			for range 300 {
				bad := slices.Clone(good)
				for range 1 + rng.IntN(3) {
					bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
				}
				if rng.IntN(4) == 0 {
					bad = bad[:rng.IntN(len(bad))]
				}
				if src, err := c.Open(bad, n); err == nil {
					checkSource(t, c, src)
				}
			}
		}
	}
}

// checkSource checks that a source is finite and that Add adds what Block decodes.
func checkSource(t *testing.T, c codec.Codec, src codec.Source) {
	n := src.Len()
	x := make([]float32, n)
	codec.Decode(x, src)
	for i := range codec.Blocks(n) {
		block := x[i*codec.Block : min((i+1)*codec.Block, n)]
		if slices.ContainsFunc(block, func(v float32) bool { return math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) }) {
			t.Fatalf("%s: block %d is not finite", c.ID(), i)
		}
		if src.Add(block, i, -1); slices.ContainsFunc(block, func(v float32) bool { return v != 0 }) {
			t.Fatalf("%s: block %d: what is added is not what is decoded", c.ID(), i)
		}
	}
}

func TestParse(t *testing.T) {
	for _, c := range codecs {
		if got, err := codec.Parse(c.ID()); err != nil || got != c {
			t.Errorf("Parse(%q) = %v, %v", c.ID(), got, err)
		}
		if got, err := codec.Parse(strings.TrimSuffix(c.ID(), "/1")); err != nil || got != c {
			t.Errorf("Parse of the name of %q = %v, %v", c.ID(), got, err)
		}
	}
	for _, id := range []string{"", "/1", "int8/2", "int8/1/1", "top", "top0", "top064", "top+64", "top-1", "top2049", "top64/2", "top99999999999999999999"} {
		if c, err := codec.Parse(id); !errors.Is(err, codec.ErrUnknown) {
			t.Errorf("Parse(%q) = %v, %v, want ErrUnknown", id, c, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	for _, n := range []int{0, 1, 20, 4097} {
		for i, c := range codecs {
			f.Add(i, n, encode(f, c, normal(9, n, 1)))
		}
	}
	f.Fuzz(func(t *testing.T, which, n int, blob []byte) {
		if n > 1<<20 {
			return
		}
		c := codecs[uint(which)%uint(len(codecs))]
		src, err := c.Open(blob, n)
		if err != nil {
			return
		}
		checkSource(t, c, src)
	})
}

func BenchmarkEncode(b *testing.B) {
	x := normal(1, 1<<22, 0.01)
	for _, c := range codecs {
		b.Run(c.ID(), func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			blob := make([]byte, c.Bound(len(x)))
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				if _, err := c.Encode(blob, x); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	x := normal(1, 1<<22, 0.01)
	for _, c := range codecs {
		b.Run(c.ID(), func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			src, err := c.Open(encode(b, c, x), len(x))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(4 * len(x)))
			for b.Loop() {
				codec.Decode(x, src)
			}
		})
	}
}

func ExampleInt8_Bound() {
	fmt.Println(codec.Int8{}.Bound(1_000_000))
	// Output: 1005092
}
