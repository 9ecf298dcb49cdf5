package cosine

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/engine"
)

var update = flag.Bool("update", false, "rewrite golden files")

func normal(seed uint64, n int) []float32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

// slow is the definition in float64: the orthonormal DCT-II of one tile.
func slow(t Tile, x []float32) []float64 {
	scale := func(k, n int) float64 {
		if k == 0 {
			return math.Sqrt(1 / float64(n))
		}
		return math.Sqrt(2 / float64(n))
	}
	out := make([]float64, t.Rows*t.Columns)
	for k := range t.Rows {
		for l := range t.Columns {
			sum := 0.0
			for r := range t.Rows {
				for c := range t.Columns {
					sum += float64(x[t.Offset+r*t.Stride+c]) *
						math.Cos(math.Pi*float64((2*r+1)*k)/float64(2*t.Rows)) * math.Cos(math.Pi*float64((2*c+1)*l)/float64(2*t.Columns))
				}
			}
			out[k*t.Columns+l] = sum * scale(k, t.Rows) * scale(l, t.Columns)
		}
	}
	return out
}

// The fast transform agrees with the definition and is undone, for tiles of any size within a wider matrix, and touches nothing
// beside its tile.
func TestTransformIsTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{3, 12, 24}).Draw(t, "most")
		rows, columns := rapid.IntRange(1, most).Draw(t, "rows"), rapid.IntRange(1, most).Draw(t, "columns")
		tile := Tile{Offset: rapid.IntRange(0, 5).Draw(t, "offset"), Stride: columns + rapid.IntRange(0, 3).Draw(t, "gap"), Rows: rows, Columns: columns}
		given := normal(rapid.Uint64().Draw(t, "seed"), tile.Offset+rows*tile.Stride+4)
		agrees(t, tile, given)
	})
	for _, size := range [][2]int{{64, 64}, {63, 20}, {1, 64}, {48, 1}, {32, 40}} {
		agrees(t, Tile{Stride: size[1], Rows: size[0], Columns: size[1]}, normal(9, size[0]*size[1]))
	}
}

func agrees(t interface{ Fatalf(string, ...any) }, tile Tile, given []float32) {
	want, x := slow(tile, given), slices.Clone(given)
	tile.Forward(x)
	for r := range tile.Rows {
		for c := range tile.Columns {
			if got, want := float64(x[tile.Offset+r*tile.Stride+c]), want[r*tile.Columns+c]; math.Abs(got-want) > 5e-5 {
				t.Fatalf("%+v: component %d, %d is %g, want %g", tile, r, c, got, want)
			}
		}
	}
	tile.Inverse(x)
	for i := range x {
		r, c := (i-tile.Offset)/tile.Stride, (i-tile.Offset)%tile.Stride
		inside := i >= tile.Offset && r < tile.Rows && c < tile.Columns
		if !inside && x[i] != given[i] || math.Abs(float64(x[i]-given[i])) > 5e-5 {
			t.Fatalf("%+v: element %d comes back as %g, was %g", tile, i, x[i], given[i])
		}
	}
}

func layout(t testing.TB, shapes ...[]int) ([]engine.Param, int) {
	t.Helper()
	var params []engine.Param
	for i, s := range shapes {
		params = append(params, engine.Param{Name: string(rune('a' + i)), Shape: s})
	}
	params, n, err := engine.Layout(params)
	if err != nil {
		t.Fatal(err)
	}
	return params, n
}

func TestTilesCoverEachElementOnce(t *testing.T) {
	params, n := layout(t, []int{257, 96}, []int{100}, []int{3, 5, 70}, []int{1}, []int{64, 64})
	seen := make([]int, n)
	for _, tile := range Of(params) {
		if tile.Rows > Side || tile.Columns > Side {
			t.Errorf("tile %+v", tile)
		}
		for r := range tile.Rows {
			for c := range tile.Columns {
				seen[tile.Offset+r*tile.Stride+c]++
			}
		}
	}
	for i, times := range seen {
		if times != 1 {
			t.Fatalf("element %d is in %d tiles", i, times)
		}
	}
}

// The constants are the nearest floats, the transform has recorded bits, and the number of cores does not matter.
func TestGoldenBits(t *testing.T) {
	for q := 1; q <= 2*Side; q++ {
		for p := range 4 * q {
			if got, want := cosinePi(p, q), math.Cos(math.Pi*float64(p)/float64(q)); math.Abs(got-want) > 1e-14*float64(1+p/q) {
				t.Fatalf("cos(π·%d/%d) is %v, want %v", p, q, got, want)
			}
		}
	}
	params, n := layout(t, []int{130, 96}, []int{100}, []int{48, 35})
	tiles, path := Of(params), filepath.Join("testdata", "golden.txt")
	for _, cores := range []int{1, 3} {
		old := runtime.GOMAXPROCS(cores)
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(i*i%1009)/512 - 1
		}
		h := sha256.New()
		tiles.Forward(x)
		_ = binary.Write(h, binary.LittleEndian, x) // a hash takes every write
		tiles.Inverse(x)
		_ = binary.Write(h, binary.LittleEndian, x)
		runtime.GOMAXPROCS(old)
		got := hex.EncodeToString(h.Sum(nil)) + "\n"
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%d cores: components and elements have the hash %s, recorded is %s", cores, strings.TrimSpace(got), want)
		}
	}
}

func BenchmarkForward(b *testing.B) {
	params, n := layout(b, []int{1024, 1024})
	tiles, x := Of(params), normal(1, n)
	b.SetBytes(int64(4 * n))
	b.ReportAllocs()
	for b.Loop() {
		tiles.Forward(x)
	}
}
