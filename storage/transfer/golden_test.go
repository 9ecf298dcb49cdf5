package transfer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden pins the bytes on the wire of one request and the header of one answer.
func TestGolden(t *testing.T) {
	var request bytes.Buffer
	req := Request{CID: wire.Link{Cid: unixfs.NodeCID([]byte("example"))}, Ranges: rangesOf([]int{0, 1, 2, 9}), Encodings: encode.All}
	if err := wire.WriteRecord(&request, req); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, headerSize)
	h9 := header{statusBlock, 9, encode.Planes2, 700_000, 1 << 20}
	h9.put(answer)
	payload := have{epoch: 7, count: 4, blocks: bits{1<<0 | 1<<1 | 1<<2 | 1<<9}}.encode()
	hears := make([]byte, headerSize)
	plain(statusHave, 0, len(payload)).put(hears)
	hears = append(hears, payload...)
	for name, got := range map[string][]byte{"request.hex": request.Bytes(), "answer.hex": answer, "have.hex": hears} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got) != strings.TrimSpace(string(want)) {
			t.Errorf("%s: %x", name, got)
		}
	}
	back, err := readRequest(&request)
	if err != nil || len(back.Ranges) != 2 || back.Ranges[1] != (Range{9, 1}) || back.CID != req.CID {
		t.Fatalf("%+v, %v", back, err)
	}
	if h, err := parseHeader(answer, 9, false, encode.All); err != nil || h != h9 {
		t.Fatalf("%+v, %v", h, err)
	}
}

func TestHeaderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		h    header
		have bool
		from encode.Set
	}{
		"another block":           {plain(statusBlock, 4, 5), false, encode.All},
		"an unknown status":       {plain(9, 3, 5), false, encode.All},
		"a large block":           {plain(statusBlock, 3, unixfs.MaxBlock+1), false, encode.All},
		"a refusal with bytes":    {plain(statusNotFound, 3, 5), false, encode.All},
		"what was not asked for":  {header{statusBlock, 3, encode.Planes2, 5, 9}, false, 1 << encode.Zstd},
		"an unknown encoding":     {header{statusBlock, 3, 9, 5, 9}, false, 0xff},
		"raw of another size":     {header{statusBlock, 3, encode.Raw, 5, 9}, false, encode.All},
		"an encoding that grew":   {header{statusBlock, 3, encode.Zstd, 9, 9}, false, encode.All},
		"a large decoded block":   {header{statusBlock, 3, encode.Zstd, 9, unixfs.MaxBlock + 1}, false, encode.All},
		"an encoded list of have": {header{statusHave, 3, encode.Zstd, 5, 9}, true, 0},
	} {
		b := make([]byte, headerSize)
		c.h.put(b)
		if h, err := parseHeader(b, 3, c.have, c.from); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}
