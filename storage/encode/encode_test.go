package encode

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var encodings = []Encoding{Raw, Zstd, Planes2, Planes4}

// slowPlanes is the definition of the planes, one byte at a time.
func slowPlanes(src []byte, width int) []byte {
	n := len(src) / width
	out := make([]byte, n*width)
	for i := range n {
		var v uint64
		for b := range width {
			v |= uint64(src[i*width+b]) << (8 * b)
		}
		v = v<<1 | v>>(8*width-1)
		for b := range width {
			out[b*n+i] = byte(v >> (8 * b))
		}
	}
	return out
}

func TestPlanesMatchTheSlowPath(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 70 {
		for _, width := range []int{2, 4} {
			src := make([]byte, n*width)
			for i := range src {
				src[i] = byte(rng.Uint32())
			}
			got, back := make([]byte, len(src)), make([]byte, len(src))
			if width == 2 {
				split2(got, src)
				join2(back, got)
			} else {
				split4(got, src)
				join4(back, got)
			}
			if !bytes.Equal(got, slowPlanes(src, width)) {
				t.Fatalf("%d floats of %d bytes: other planes", n, width)
			}
			if !bytes.Equal(back, src) {
				t.Fatalf("%d floats of %d bytes: other bytes come back", n, width)
			}
		}
	}
}

// weights are floats as training leaves them, in 4 bytes or in 2.
func weights(n, width int) []byte {
	rng := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := 0; i+width <= n; i += width {
		v := math.Float32bits(float32(rng.NormFloat64() * 0.02))
		if width == 2 {
			binary.LittleEndian.PutUint16(b[i:], uint16(v>>16))
		} else {
			binary.LittleEndian.PutUint32(b[i:], v)
		}
	}
	return b
}

func roundTrip(t interface{ Fatalf(string, ...any) }, e *Encoder, d *Decoder, how Encoding, block []byte) int {
	used, packed := e.Encode(how, block)
	if used != how && used != Raw || len(packed) > len(block) {
		t.Fatalf("%d bytes as %s: %d bytes of %s", len(block), how, len(packed), used)
	}
	back := bytes.Repeat([]byte{0xaa}, len(block)+8)
	if err := d.Decode(used, packed, back[:len(block)]); err != nil {
		t.Fatalf("%d bytes as %s: %v", len(block), used, err)
	}
	if !bytes.Equal(back[:len(block)], block) {
		t.Fatalf("%d bytes as %s: other bytes come back", len(block), used)
	}
	if !bytes.Equal(back[len(block):], bytes.Repeat([]byte{0xaa}, 8)) {
		t.Fatalf("%d bytes as %s: bytes behind the block were written", len(block), used)
	}
	return len(packed)
}

// TestRoundTrip draws blocks with and without order: all encodings give back the same bytes and never more than came in.
func TestRoundTrip(t *testing.T) {
	e, d := NewEncoder(), NewDecoder()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{0, 1, 2, 3, 4, 5, 63, 1000, 4097, 131_072, 131_075, 300_001}).Draw(t, "size")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		span := rapid.SampledFrom([]uint32{1, 2, 3, 17, 256}).Draw(t, "values")
		keep := rapid.SampledFrom([]int{1, 2, 4, 5}).Draw(t, "period")
		block := make([]byte, size)
		for i := range block {
			if i%keep == 0 {
				block[i] = byte(rng.Uint32N(span))
			}
		}
		roundTrip(t, e, d, rapid.SampledFrom(encodings).Draw(t, "encoding"), block)
	})
}

func TestChooseSuitsTheBlock(t *testing.T) {
	noise := make([]byte, MaxBlock)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	text := []byte(strings.Repeat("The quick brown fox jumps over the lazy dog, and one more time with feeling. ", 4000))
	e, d := NewEncoder(), NewDecoder()
	for name, c := range map[string]struct {
		block []byte
		want  Encoding
		most  float64 // share of the bytes that may be left
	}{
		"noise":            {noise, Raw, 1},
		"bfloat16":         {weights(MaxBlock, 2), Planes2, 0.68},
		"float32":          {weights(MaxBlock, 4), Planes4, 0.84},
		"text":             {text, Zstd, 0.1},
		"zeros":            {make([]byte, MaxBlock), Zstd, 0.01},
		"a small tensor":   {weights(4096, 2), Planes2, 0.8},
		"one byte":         {[]byte{1}, Raw, 1},
		"an odd bfloat16":  {weights(100_001, 2), Planes2, 0.7},
		"nothing":          {nil, Raw, 1},
		"rounded float32s": {rounded(MaxBlock), Planes4, 0.4},
	} {
		how, left := e.Choose(c.block, All)
		if how != c.want && name != "zeros" {
			t.Errorf("%s: %s, want %s", name, how, c.want)
		}
		n := roundTrip(t, e, d, how, c.block)
		if share := float64(n) / float64(max(1, len(c.block))); share > c.most || math.Abs(share-left) > 0.1 && len(c.block) > 10 {
			t.Errorf("%s as %s: %.3f of the bytes are left, expected %.3f, may be %.3f", name, how, share, left, c.most)
		}
		if how, _ := e.Choose(c.block, 0); how != Raw {
			t.Errorf("%s: %s for a peer that takes none", name, how)
		}
	}
}

// rounded are 32-bit floats that hold bfloat16 values.
func rounded(n int) []byte {
	b := weights(n, 4)
	for i := 0; i < n; i += 4 {
		b[i], b[i+1] = 0, 0
	}
	return b
}

// TestChoiceFollowsTheFile sends tensors of several kinds one after the other: each gets what suits it from its first block on.
func TestChoiceFollowsTheFile(t *testing.T) {
	noise := make([]byte, MaxBlock)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	e, d := NewEncoder(), NewDecoder()
	var c Choice
	half, full := weights(MaxBlock, 2), weights(MaxBlock, 4)
	for i, step := range []struct {
		block []byte
		want  Encoding
	}{
		{half, Planes2}, {half, Planes2}, {half[:5000], Planes2}, {full, Planes4}, {full[:4000], Planes4},
		{noise[:100_000], Raw}, {half, Planes2}, {noise, Raw}, {full, Planes4},
	} {
		used, packed := c.Next(e, step.block, All)
		if used != step.want {
			t.Errorf("block %d: %s, want %s", i, used, step.want)
		}
		back := make([]byte, len(step.block))
		if err := d.Decode(used, packed, back); err != nil || !bytes.Equal(back, step.block) {
			t.Fatalf("block %d as %s: %v", i, used, err)
		}
	}
	if used, _ := c.Next(e, half, 1<<Zstd); used == Planes2 {
		t.Error("an encoding that the peer does not take")
	}
}

// TestGolden pins the bytes of every encoding of one small block.
func TestGolden(t *testing.T) {
	e, d := NewEncoder(), NewDecoder()
	block := weights(200, 2)
	text := bytes.Repeat([]byte("capanode "), 20)
	for _, c := range []struct {
		name  string
		how   Encoding
		block []byte
	}{{"zstd", Zstd, text}, {"planes2", Planes2, append(block, 7)}, {"planes4", Planes4, append(rounded(200), 1, 2, 3)}} {
		used, got := e.Encode(c.how, c.block)
		path := filepath.Join("testdata", c.name+".hex")
		if *update {
			both := hex.EncodeToString(c.block) + "\n" + hex.EncodeToString(got) + "\n"
			if err := os.WriteFile(path, []byte(both), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(raw))
		if len(lines) != 2 || used != c.how || hex.EncodeToString(c.block) != lines[0] {
			t.Fatalf("%s: the block of the golden file is another one", c.name)
		}
		packed, err := hex.DecodeString(lines[1])
		if err != nil {
			t.Fatal(err)
		}
		// What a compressor writes may change with its version; what was written once must stay readable.
		if c.how != Zstd && !bytes.Equal(got, packed) {
			t.Errorf("%s: %x", c.name, got)
		}
		back := make([]byte, len(c.block))
		if err := d.Decode(c.how, packed, back); err != nil || !bytes.Equal(back, c.block) {
			t.Errorf("%s: the golden bytes read as others: %v", c.name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	e, d := NewEncoder(), NewDecoder()
	block := weights(1000, 2)
	_, planes := e.Encode(Planes2, block)
	planes = bytes.Clone(planes)
	_, frame := e.Encode(Zstd, bytes.Repeat([]byte("again "), 3000))
	frame = bytes.Clone(frame)
	for name, c := range map[string]struct {
		how     Encoding
		encoded []byte
		size    int
	}{
		"unknown":           {last + 1, block, 1000},
		"raw, short":        {Raw, block, 1001},
		"a larger block":    {Planes2, planes, 1002},
		"a smaller block":   {Planes2, planes, 998},
		"cut":               {Planes2, planes[:len(planes)-1], 1000},
		"a byte more":       {Planes2, append(planes[:len(planes):len(planes)], 0), 1000},
		"no header":         {Planes4, []byte{1, 2}, 4},
		"huge length":       {Planes4, []byte{0xfc, 0xff, 0xff, 0xff, 0}, 4},
		"unknown method":    {Planes2, []byte{7, 0, 0, 0, 1}, 2},
		"a run of two":      {Planes2, []byte{9, 0, 0, 0, 1, 2}, 4},
		"a frame too long":  {Zstd, frame, 17_999},
		"a frame too small": {Zstd, frame, 18_001},
		"a broken frame":    {Zstd, frame[:len(frame)-3], 18_000},
		"no frame":          {Zstd, block, 1000},
		"a huge block":      {Zstd, frame, MaxBlock + 1},
	} {
		guard := bytes.Repeat([]byte{0xaa}, c.size+16)
		if err := d.Decode(c.how, c.encoded, guard[:c.size]); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(guard[c.size:], bytes.Repeat([]byte{0xaa}, 16)) {
			t.Errorf("%s: bytes behind the block were written", name)
		}
	}
}

// FuzzDecode reads hostile encodings: an error or a block, and nothing behind it.
func FuzzDecode(f *testing.F) {
	e, d := NewEncoder(), NewDecoder()
	for _, how := range encodings {
		block := weights(3000, 2)
		used, packed := e.Encode(how, block)
		f.Add(uint8(used), bytes.Clone(packed), uint32(len(block)))
	}
	f.Add(uint8(Planes4), []byte{5, 0, 0, 0, 9, 5, 0, 0, 0, 9, 5, 0, 0, 0, 9, 5, 0, 0, 0, 9}, uint32(400_000))
	f.Fuzz(func(t *testing.T, how uint8, encoded []byte, size uint32) {
		n := int(size % (MaxBlock + 2))
		dst := make([]byte, n+1)
		dst[n] = 0x5a
		err := d.Decode(Encoding(how), encoded, dst[:n])
		if dst[n] != 0x5a {
			t.Fatal("a byte behind the block was written")
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatal(err)
		}
	})
}

// FuzzEncode holds every encoding to giving back any bytes.
func FuzzEncode(f *testing.F) {
	e, d := NewEncoder(), NewDecoder()
	f.Add(weights(300, 2))
	f.Add(weights(301, 4))
	f.Add(bytes.Repeat([]byte{1, 2}, 200))
	f.Fuzz(func(t *testing.T, block []byte) {
		for _, how := range encodings {
			roundTrip(t, e, d, how, block)
		}
	})
}
