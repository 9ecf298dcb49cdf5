package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/p2p/wire"
)

var update = flag.Bool("update", false, "rewrite the golden vectors in testdata")

// sample has one field of each kind that a record may hold.
type sample struct {
	Name   string            `cbor:"name"`
	Count  uint64            `cbor:"count"`
	Delta  int64             `cbor:"delta"`
	Rate   float64           `cbor:"rate"`
	On     bool              `cbor:"on"`
	Raw    []byte            `cbor:"raw"`
	Link   wire.Link         `cbor:"link"`
	None   wire.Link         `cbor:"none"`
	List   []uint32          `cbor:"list"`
	Labels map[string]string `cbor:"labels"`
	Extra  string            `cbor:"extra,omitempty"`
}

func filled() sample {
	return sample{
		Name: "größe", Count: math.MaxUint64, Delta: -500, Rate: 1.5, On: true, Raw: []byte{0, 1, 2},
		Link: wire.Link{Cid: wire.RecordCID([]byte{0xa0})}, List: []uint32{0, 23, 24, 255, 256, 65535, 65536},
		Labels: map[string]string{"bb": "2", "a": "1", "c": "3"},
	}
}

// golden compares with the vectors in a file of lines "name hex", or rewrites it.
func golden(t *testing.T, path string, got map[string][]byte, order []string) {
	t.Helper()
	var text strings.Builder
	for _, name := range order {
		fmt.Fprintf(&text, "%s %x\n", name, got[name])
	}
	if *update {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("the encoding changed; a new format needs a new version.\ngot:\n%swant:\n%s", text.String(), want)
	}
}

func TestGoldenRecords(t *testing.T) {
	records := map[string]any{
		"zero":   sample{},
		"filled": filled(),
		"link":   wire.Link{Cid: wire.RecordCID([]byte{0xa0})},
		"null":   wire.Link{},
	}
	order := []string{"zero", "filled", "link", "null", "frame"}
	got := make(map[string][]byte)
	for name, r := range records {
		b, err := wire.Marshal(r)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got[name] = b
	}
	var frame bytes.Buffer
	if err := wire.WriteRecord(&frame, struct {
		N int `cbor:"n"`
	}{7}); err != nil {
		t.Fatal(err)
	}
	got["frame"] = frame.Bytes()
	golden(t, "testdata/records.golden", got, order)
	var back sample
	if err := wire.Unmarshal(got["filled"], &back); err != nil || !reflect.DeepEqual(back, filled()) {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestRecordCID(t *testing.T) {
	const want = "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua" // the empty map, as every IPFS node names it
	if got := wire.RecordCID([]byte{0xa0}); got.String() != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestRoundTrip draws records: what is encoded decodes to the same value and encodes to the same bytes.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := sample{
			Name:  rapid.String().Draw(t, "name"),
			Count: rapid.Uint64().Draw(t, "count"),
			Delta: rapid.Int64().Draw(t, "delta"),
			Rate:  rapid.Float64().Draw(t, "rate"),
			On:    rapid.Bool().Draw(t, "on"),
			Raw:   rapid.SliceOf(rapid.Byte()).Draw(t, "raw"),
			List:  rapid.SliceOfN(rapid.Uint32(), 0, 300).Draw(t, "list"),
			Labels: rapid.MapOfN(rapid.StringN(0, 300, 400), rapid.String(), 0, 30).Draw(t,
				"labels"),
		}
		b, err := wire.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var out sample
		if err := wire.Unmarshal(b, &out); err != nil || !reflect.DeepEqual(in, out) {
			t.Fatalf("%+v became %+v, %v", in, out, err)
		}
		again, err := wire.Marshal(out)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

// TestMalformed lists encodings that other CBOR readers take and that would give a value a second CID.
func TestMalformed(t *testing.T) {
	for _, c := range []struct{ why, hex string }{
		{"empty", ""},
		{"one byte in two", "1801"},
		{"small in 1+1 bytes", "1817"},
		{"one byte in 1+2", "1900ff"},
		{"two bytes in 1+4", "1a0000ffff"},
		{"four bytes in 1+8", "1b00000000ffffffff"},
		{"cut number", "19ff"},
		{"reserved width", "1c"},
		{"indefinite bytes", "5f41004100ff"},
		{"indefinite array", "9f01ff"},
		{"indefinite map", "bf616101ff"},
		{"cut text", "6261"},
		{"invalid UTF-8", "62c328"},
		{"long text length", "780161"},
		{"huge length", "5bffffffffffffffff"},
		{"huge array", "9bffffffffffffffff"},
		{"too many elements", "9a00010001"},
		{"too many fields", "b91001"},
		{"number as key", "a10101"},
		{"bytes as key", "a1416101"},
		{"repeated key", "a2616101616102"},
		{"keys not by length", "a262616101616202"},
		{"keys not by bytes", "a2616201616102"},
		{"invalid key", "a162c32801"},
		{"cut map", "a16161"},
		{"date tag", "c100"},
		{"big number tag", "c24101"},
		{"link to an array", "d82a8100"},
		{"link without zero", "d82a420155"},
		{"empty link", "d82a40"},
		{"half float", "f93c00"},
		{"float32", "fa3f800000"},
		{"NaN", "fb7ff8000000000000"},
		{"infinity", "fb7ff0000000000000"},
		{"cut float", "fb7ff000"},
		{"undefined", "f7"},
		{"simple value", "f820"},
		{"break", "ff"},
		{"trailing byte", "0000"},
		{"too deep", strings.Repeat("81", 33) + "00"},
	} {
		b, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := wire.Unmarshal(b, &v); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v", c.why, err)
		}
	}
	deep, err := hex.DecodeString(strings.Repeat("81", 32) + "00")
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := wire.Unmarshal(deep, &v); err != nil {
		t.Errorf("the deepest allowed nesting: %v", err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	for why, v := range map[string]any{
		"NaN": math.NaN(), "infinity": math.Inf(-1), "float32": float32(1), "text that is not UTF-8": "\xff",
		"number as key": map[int]int{1: 1}, "long list": make([]bool, 1<<16+1),
	} {
		if b, err := wire.Marshal(v); err == nil {
			t.Errorf("%s: %x", why, b)
		}
	}
	if _, err := wire.Marshal(make([]byte, wire.MaxRecord)); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("large record: %v", err)
	}
	var v any
	if err := wire.Unmarshal(make([]byte, wire.MaxRecord+1), &v); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("large record: %v", err)
	}
}

func TestFieldNamesAreExact(t *testing.T) {
	b, err := wire.Marshal(map[string]uint64{"Count": 1, "unknown": 2})
	if err != nil {
		t.Fatal(err)
	}
	var r sample
	if err := wire.Unmarshal(b, &r); err != nil || r.Count != 0 {
		t.Errorf("%+v, %v: Count is not count, unknown keys are ignored", r, err)
	}
}

func TestLinks(t *testing.T) {
	v0, err := cid.Decode("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []cid.Cid{cid.Undef, v0, wire.RecordCID(nil)} {
		b, err := wire.Marshal(wire.Link{Cid: c})
		if err != nil {
			t.Fatal(err)
		}
		var back wire.Link
		if err := wire.Unmarshal(b, &back); err != nil || !back.Equals(c) {
			t.Errorf("%s became %s, %v", c, back, err)
		}
	}
	for why, text := range map[string]string{"no CID": "d82a43000102", "CID and more": "d82a4800015500010000" + "00", "number": "01"} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		var l wire.Link
		if err := wire.Unmarshal(b, &l); err == nil {
			t.Errorf("%s: %s", why, l)
		}
	}
}

func TestFrames(t *testing.T) {
	var pipe bytes.Buffer
	frames := [][]byte{{}, {1}, bytes.Repeat([]byte{2}, 1000)}
	for _, f := range frames {
		if err := wire.WriteFrame(&pipe, f); err != nil {
			t.Fatal(err)
		}
	}
	all := bytes.Clone(pipe.Bytes())
	for _, want := range frames {
		if got, err := wire.ReadFrame(&pipe, 1000); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%x, %v", got, err)
		}
	}
	if _, err := wire.ReadFrame(&pipe, 1000); err != io.EOF {
		t.Errorf("after the last frame: %v", err)
	}
	for cut := 1; cut < 4+1; cut++ { // inside the head, after it
		if _, err := wire.ReadFrame(bytes.NewReader(all[4:4+cut]), 1000); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", cut, err)
		}
	}
	for _, limit := range []int{-1, 0, 999} {
		if _, err := wire.ReadFrame(bytes.NewReader(all[9:]), limit); !errors.Is(err, wire.ErrTooLarge) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := wire.ReadFrame(strings.NewReader("\xff\xff\xff\xff"), 1<<20); !errors.Is(err, wire.ErrTooLarge) {
		t.Errorf("frame above the limit: %v", err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("a frame above the limit costs %d bytes", n)
	}
	var v sample
	if err := wire.ReadRecord(strings.NewReader("\x00\x00\x00\x02\xa1\x61"), 100, &v); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("frame with half a record: %v", err)
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, seed := range []string{"", "\x00", "\x00\x00\x00\x00", "\x00\x00\x00\x01a", "\x00\x00\x00\x02a", "\xff\xff\xff\xff"} {
		f.Add([]byte(seed), 64)
	}
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		got, err := wire.ReadFrame(bytes.NewReader(in), min(limit, 1<<16))
		if err != nil {
			return
		}
		if len(got) > limit {
			t.Fatalf("%d bytes above the limit %d", len(got), limit)
		}
		var back bytes.Buffer
		if err := wire.WriteFrame(&back, got); err != nil || !bytes.HasPrefix(in, back.Bytes()) {
			t.Fatalf("%x reads as %x", in, got)
		}
	})
}

// FuzzUnmarshal checks that what is accepted is the one encoding of its value.
func FuzzUnmarshal(f *testing.F) {
	for _, v := range []any{sample{}, filled(), []any{nil, true, -1, "x", 0.5}, wire.Link{}} {
		b, err := wire.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var v any
		if wire.Unmarshal(in, &v) == nil {
			out, err := wire.Marshal(v)
			if err != nil || !bytes.Equal(in, out) {
				t.Fatalf("%x is accepted and encodes as %x, %v", in, out, err)
			}
		}
		var r sample
		if wire.Unmarshal(in, &r) == nil {
			b, err := wire.Marshal(r)
			if err != nil {
				t.Fatalf("%x is accepted as %+v, which cannot be encoded: %v", in, r, err)
			}
			var again sample
			if err := wire.Unmarshal(b, &again); err != nil {
				t.Fatalf("%x: %v", b, err)
			}
		}
	})
}

func FuzzLink(f *testing.F) {
	for _, text := range []string{"f6", "d82a40", "d82a43000102", "d82a450001550000"} {
		b, err := hex.DecodeString(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var l wire.Link
		if wire.Unmarshal(in, &l) != nil {
			return
		}
		if out, err := wire.Marshal(l); err != nil || !bytes.Equal(in, out) {
			t.Fatalf("%x is accepted as %s and encodes as %x, %v", in, l, out, err)
		}
	})
}
