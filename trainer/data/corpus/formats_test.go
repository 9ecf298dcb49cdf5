package corpus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/capacloud/capanode/trainer/tokenizer"
)

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o600) }

func TestJSONL(t *testing.T) {
	long := strings.Repeat("long ", 20_000)
	for name, x := range map[string]struct {
		lines, field string
		want         []string
		counts       Counts
	}{
		"plain":           {`{"text":"one"}` + "\n" + `{"id":2,"text":"two"}`, "", []string{"one", "two"}, Counts{Records: 2}},
		"escapes":         {`{"text":"a\nb\t\"c\" \u00e9 \ud83d\ude00 \/"}`, "", []string{"a\nb\t\"c\" é 😀 /"}, Counts{Records: 1}},
		"lone surrogates": {`{"text":"a\ud800b\udc00\ud800\u0041"}`, "", []string{"a\ufffdb\ufffd\ufffdA"}, Counts{Records: 1, Surrogates: 3}},
		"nested":          {`{"a":{"b":[1,{"text":"no"}],"text":"yes"}}`, "a.text", []string{"yes"}, Counts{Records: 1}},
		"escaped key":     {`{"te\u0078t":"yes"}`, "", []string{"yes"}, Counts{Records: 1}},
		"key in a string": {`{"x":"\"text\":\"no\"","text":"yes"}`, "", []string{"yes"}, Counts{Records: 1}},
		"CRLF, blank":     {"{\"text\":\"one\"}\r\n\r\n{\"text\":\"t\\r\\nw\\u0000o\"}\r\n", "", []string{"one", "t\nwo"}, Counts{Records: 2, BlankLines: 1, CRLF: 1, NUL: 1}},
		"bad lines":       {`{"text":"one"}` + "\nrubbish\n{\"text\":\"tw\n[1]\n", "", []string{"one"}, Counts{Records: 4, BadRecords: 3}},
		"no string":       {`{"text":"one"}` + "\n{\"text\":null}\n{\"text\":5}\n{\"text\":\"  \"}\n{}", "", []string{"one"}, Counts{Records: 5, NoText: 3, NoField: 1}},
		"mark":            {"\xef\xbb\xbf" + `{"text":"one"}`, "", []string{"one"}, Counts{Records: 1, ByteOrderMarks: 1}},
		"longer than one": {`{"text":"` + long + `"}`, "", []string{long}, Counts{Records: 1}},
		"latin":           {"{\"text\":\"caf\xe9\"}", "", []string{"café"}, Counts{Records: 1, Windows1252: 1}},
	} {
		docs, c := read(t, map[string]string{"a.jsonl": x.lines}, func(o *Options) { o.Field = x.field })
		if !slices.Equal(docs, x.want) {
			t.Errorf("%s: read %.80q, want %.80q", name, docs, x.want)
		}
		x.counts.Files, x.counts.Documents, x.counts.Bytes = 1, c.Documents, c.Bytes
		same(t, name, c, x.counts)
	}
}

// A line beyond the limit costs the limit's memory, and the lines after it are read.
func TestLinesBeyondTheLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine and much arithmetic; the long form runs without -short")
	}
	path := filepath.Join(t.TempDir(), "a.jsonl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	fmt.Fprint(w, `{"text":"`)
	for range MaxRecord/1024 + 100 {
		w.Write(bytes.Repeat([]byte("x"), 1024))
	}
	fmt.Fprint(w, "\"}\n{\"text\":\"after\"}\n")
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		t.Fatal(err)
	}
	docs, _, c, err := collect(t, Options{Paths: []string{path}})
	if err != nil || !slices.Equal(docs, []string{"after"}) || c.TooLong != 1 {
		t.Fatalf("%d documents, %+v, %v", len(docs), c, err)
	}
}

func TestWrongFieldIsExplained(t *testing.T) {
	for name, content := range map[string]string{
		"a.jsonl": `{"id":1,"content":"x"}` + "\n" + `{"id":2}`, "b.csv": "id,content\n1,x\n", "c.tsv": "id\tcontent\n1\tx\n",
		"d.jsonl": strings.Repeat(`{"meta":{"content":"x"}}`+"\n", 3000),
	} {
		_, _, _, err := collect(t, Options{Paths: []string{write(t, map[string]string{name: content})}})
		if !errors.Is(err, ErrField) || !strings.Contains(err.Error(), "did you mean") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, _, err := collect(t, Options{Paths: []string{"testdata/snappy-v1.parquet"}, Field: "meta"})
	if !errors.Is(err, ErrField) || !strings.Contains(err.Error(), `"meta.body"`) {
		t.Error(err)
	}
	if _, _, _, err = collect(t, Options{Paths: []string{"testdata/snappy-v1.parquet"}, Field: "id"}); !errors.Is(err, ErrField) {
		t.Error(err)
	}
}

func TestCSV(t *testing.T) {
	for name, x := range map[string]struct {
		table  string
		want   []string
		counts Counts
	}{
		"plain":        {"id,text\n1,one\n2,two\n", []string{"one", "two"}, Counts{Records: 2}},
		"quotes":       {"text,id\n\"a, \"\"b\"\"\nc\",1\n", []string{"a, \"b\"\nc"}, Counts{Records: 1}},
		"CRLF":         {"text\r\none\r\n\r\ntwo", []string{"one", "two"}, Counts{Records: 2, BlankLines: 1}},
		"semicolons":   {"id;text\n1;a,b\n", []string{"a,b"}, Counts{Records: 1}},
		"ragged":       {"id,text\n1\n2,two,more\n3,three\n", []string{"two", "three"}, Counts{Records: 3, Ragged: 2, NoField: 1}},
		"stray quote":  {"text\n5\" pipe\n", []string{"5\" pipe"}, Counts{Records: 1}},
		"open quote":   {"id,text\n1,one\n2,\"never closed\n3,x\n", []string{"one"}, Counts{Records: 2, BadRecords: 1}},
		"empty fields": {"id,text\n1,\n2,two\n", []string{"two"}, Counts{Records: 2, NoText: 1}},
	} {
		docs, c := read(t, map[string]string{"a.csv": x.table}, nil)
		if !slices.Equal(docs, x.want) {
			t.Errorf("%s: read %q, want %q", name, docs, x.want)
		}
		x.counts.Files, x.counts.Documents, x.counts.Bytes = 1, c.Documents, c.Bytes
		same(t, name, c, x.counts)
	}
}

// The files were written by pyarrow 17.0.0, with each codec, both page forms and each encoding of texts.
func TestParquet(t *testing.T) {
	var want, bodies []string
	for i := range 300 {
		bodies = append(bodies, fmt.Sprintf("body %d", i))
		switch {
		case i%17 == 0:
		case i%7 == 0:
			want = append(want, "the same text again and again")
		default:
			want = append(want, fmt.Sprintf("document %d: %s\n", i, strings.Repeat("grüße aus dem Norden ", i%5)))
		}
	}
	files, err := filepath.Glob("testdata/*.parquet")
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		docs, _, c, err := collect(t, Options{Paths: []string{path}})
		if err != nil || !slices.Equal(docs, want) || c.Records != 300 || c.NoText != 18 || c.Broken() != 0 {
			t.Errorf("%s: %d documents, %+v, %v", path, len(docs), c, err)
		}
		docs, _, c, err = collect(t, Options{Paths: []string{path}, Field: "meta.body"})
		if err != nil || !slices.Equal(docs, bodies) {
			t.Errorf("%s: %d bodies, %+v, %v", path, len(docs), c, err)
		}
	}
}

func TestDamagedParquet(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine and much arithmetic; the long form runs without -short")
	}
	whole, err := os.ReadFile("testdata/zstd-v2.parquet")
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{8, 12, 100, len(whole) / 2, len(whole) - 1} {
		docs, c := read(t, map[string]string{"a.parquet": string(whole[:cut])}, nil)
		if len(docs) != 0 || c.Damaged != 1 {
			t.Errorf("cut to %d: %d documents, %+v", cut, len(docs), c)
		}
	}
	for at := 4; at < len(whole); at += 37 { // anything may come out but a crash
		broken := slices.Clone(whole)
		broken[at] ^= 0x55
		o := Options{Paths: []string{write(t, map[string]string{"a.parquet": string(broken)})}}
		if _, _, c, err := collect(t, o); err != nil && !errors.Is(err, ErrField) {
			t.Errorf("byte %d: %+v, %v", at, c, err)
		}
	}
}

func TestTokenFiles(t *testing.T) {
	bare := []byte{1, 0, 2, 0, 255, 255}
	header := make([]byte, tokenHeader)
	binary.LittleEndian.PutUint32(header, 20240801)
	binary.LittleEndian.PutUint32(header[4:], 7)
	binary.LittleEndian.PutUint32(header[8:], 2)
	llama := append(slices.Clone(header), 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff)
	binary.LittleEndian.PutUint32(header, 20240520)
	gpt := append(slices.Clone(header), 7, 0, 8, 0)
	for name, x := range map[string]struct {
		file    string
		content []byte
		want    []int32
		damaged int64
	}{
		"nanoGPT":            {"a.bin", bare, []int32{1, 2, 65535}, 0},
		"odd byte":           {"a.bin", bare[:5], []int32{1, 2}, 1},
		"llm.c GPT-2":        {"a.dat", gpt, []int32{7, 8}, 0},
		"llm.c Llama":        {"a.bin", llama, []int32{1, -1}, 0},
		"fewer than it says": {"a.bin", gpt[:len(gpt)-2], []int32{7}, 1},
		"more than it says":  {"a.bin", append(slices.Clone(gpt), 9, 0), []int32{7, 8}, 1},
	} {
		_, tokens, c, err := collect(t, Options{Paths: []string{write(t, map[string]string{x.file: string(x.content)})}})
		if err != nil || !slices.Equal(tokens, x.want) || c.Damaged != x.damaged || c.Documents != 1 {
			t.Errorf("%s: %v, %+v, %v", name, tokens, c, err)
		}
	}
	many := make([]byte, 2*pieceTokens*5+2)
	_, tokens, c, err := collect(t, Options{Paths: []string{write(t, map[string]string{"a.bin": string(many)})}})
	if err != nil || len(tokens) != 5*pieceTokens+1 || c.Documents != 1 {
		t.Errorf("%d tokens, %+v, %v", len(tokens), c, err)
	}
}

func TestWebDataset(t *testing.T) {
	docs, c := read(t, map[string]string{"a.tar": tarOf(t, "1.png", "\x89PNG\x00", "1.txt", "a red fox\r\n", "2.json", `{"text":"a hen","width":7}`,
		"3.json", `{"width":7}`, "4.txt", "\x00\x00\x00\x00", "5.txt", "last")}, nil)
	if want := []string{"a red fox\n", "a hen", "last"}; !slices.Equal(docs, want) {
		t.Errorf("%q", docs)
	}
	same(t, "tar", c, Counts{Files: 1, Records: 5, OtherMembers: 1, NoField: 1, BadRecords: 1, CRLF: 1, Documents: 3, Bytes: c.Bytes})
}

func FuzzJSONText(f *testing.F) {
	for _, s := range []string{`{"text":"a"}`, `{"text":"\ud83d\ude00\u0000\\"}`, `{"a":[1,{"b":"}"}],"text":{"x":1}}`, `{"text":1.5e3}`, `{"text":"a","text":null}`, `{"":{}}`, "{\"text\":\"\xff\"}"} {
		f.Add([]byte(s), "text")
	}
	f.Add([]byte(`{"a":{"b":"c"}}`), "a.b")
	f.Fuzz(func(t *testing.T, line []byte, field string) {
		jsonKeys(line, 10)
		text, what, _ := jsonText(line, []string{field}, nil)
		var record map[string]any
		if !utf8.Valid(line) || !utf8.ValidString(field) || json.Unmarshal(line, &record) != nil {
			return // what encoding/json refuses may be read or not
		}
		if record == nil { // null
			if what != badJSON {
				t.Fatalf("%q: %d", line, what)
			}
			return
		}
		v, has := record[field]
		s, is := v.(string)
		switch {
		case !has && what != noField, has && !is && what != notText, is && (what != gotText || string(text) != s):
			t.Fatalf("%q: got %d %q, encoding/json has %v %v", line, what, text, has, v)
		}
	})
}

func FuzzCSV(f *testing.F) {
	for _, s := range []string{"a,b\n1,2\n", "\"x\"\"y\"\n", "a\r\nb", "\"open", "\n\n,\n", "\"\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, table []byte) {
		rows := rowReader{in: bufio.NewReader(bytes.NewReader(table)), comma: ','}
		var got [][]string
		for {
			row, kind, err := rows.next()
			if err != nil {
				break
			}
			if kind == blankRow {
				continue
			}
			var fields []string
			for _, field := range row {
				fields = append(fields, string(field))
			}
			got = append(got, fields)
		}
		std := csv.NewReader(bytes.NewReader(table))
		std.FieldsPerRecord = -1
		want, err := std.ReadAll()
		if err != nil || bytes.Contains(table, []byte("\r")) { // lone carriage returns are treated in more than one way
			return
		}
		// A row of one empty field in quotes has no text: it counts as blank here.
		want = slices.DeleteFunc(want, func(row []string) bool { return len(row) == 1 && row[0] == "" })
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%q: rows %q, encoding/csv has %q", table, got, want)
		}
	})
}

func FuzzParquet(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.parquet")
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := silent(t)
		_ = r.parquet(bytes.NewReader(b), int64(len(b)))
	})
}

// FuzzStream reads any bytes in each format: nothing crashes, text comes in pieces within their bounds.
func FuzzStream(f *testing.F) {
	f.Add(uint8(0), []byte("text\r\n\x00\xff"))
	f.Add(uint8(1), []byte(`{"text":"a"}`))
	f.Add(uint8(2), []byte("text\n\"a\"\n"))
	f.Add(uint8(3), []byte(tarOf(f, "a.txt", "b", "c.json", `{"text":"d"}`)))
	f.Add(uint8(4), []byte{1, 2, 3})
	f.Add(uint8(0), []byte("\xff\xfea\x00\x00\xd8"))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		r := silent(t)
		formats := []Format{Text, JSONL, CSV, WebDataset, Tokens}
		in := bufio.NewReaderSize(bytes.NewReader(b), headBytes)
		head, _ := in.Peek(headBytes)
		_ = r.stream(formats[int(kind)%len(formats)], in, head, int64(len(b)))
	})
}

// FuzzSections holds the cutter to losing nothing, keeping the limit, and cutting no valid character.
func FuzzSections(f *testing.F) {
	f.Add([]byte("short\n"), 1)
	f.Add([]byte("line\r\n"), 40000)
	f.Add([]byte("日本語"), 20000)
	f.Add([]byte{0xff, 0xf0, 0x80}, 30000)
	f.Add([]byte("two words\n\n"), 20001)
	cuts := []func([]byte) int{nil, tokenizer.TrainedCut, func(text []byte) int { return len(text) }, func([]byte) int { return -1 }}
	f.Fuzz(func(t *testing.T, piece []byte, times int) {
		text := bytes.Repeat(piece, max(0, min(times, 300_000/max(1, len(piece)))))
		var joined []byte
		err := eachSection(context.Background(), bytes.NewReader(text), cuts[len(text)%len(cuts)], func(part []byte) error {
			if len(part) == 0 || len(part) > PieceBytes {
				t.Fatalf("section of %d bytes", len(part))
			}
			if utf8.Valid(text) && !utf8.Valid(part) {
				t.Fatal("a character was cut in two")
			}
			joined = append(joined, part...)
			return nil
		})
		if err != nil || !bytes.Equal(joined, text) {
			t.Fatalf("%d of %d bytes, %v", len(joined), len(text), err)
		}
	})
}

// silent is a reading whose batches are checked and dropped.
func silent(t *testing.T) *reading {
	o, err := Options{}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r := &reading{ctx: context.Background(), o: o, out: make(chan *Batch, 1<<12)}
	t.Cleanup(func() {
		close(r.out)
		for b := range r.out {
			for _, p := range b.Pieces {
				if len(p.Text) > 3*PieceBytes || len(p.Tokens) > pieceTokens {
					t.Errorf("a piece of %d bytes", len(p.Text))
				}
			}
		}
	})
	return r
}

func TestInvalidBytesAndBinary(t *testing.T) {
	for text, want := range map[string]int64{"plain": 0, "caf\xe9": 1, "\xff\xfe": 2, "日本": 0, "\xe6\x97": 2} {
		if got := invalidBytes([]byte(text)); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	for text, want := range map[string]bool{
		"plain":                               false,
		"\x7fELF\x02\x01\x01\x00\x00\x00":     true,
		strings.Repeat("x", 1000) + "\x00":    false,
		strings.Repeat("caf\xe9 ", 10):        false,
		strings.Repeat("\xff\xd8\xff\xe0", 9): true,
	} {
		if got := binaryText([]byte(text), invalidBytes([]byte(text))); got != want {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}

func TestUTF16InSmallReads(t *testing.T) {
	text := "aé日😀" + strings.Repeat("x", 50)
	raw := wide(text, binary.LittleEndian, false)
	for _, size := range []int{1, 3, 7, 8, 100} {
		u := &utf16Reader{in: bufio.NewReader(strings.NewReader(raw)), order: binary.LittleEndian, counts: &Counts{}}
		var got []byte
		for buf := make([]byte, size); ; {
			n, err := u.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if string(got) != text {
			t.Errorf("reads of %d: %q", size, got)
		}
	}
}
