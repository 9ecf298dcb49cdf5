package transfer

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden pins the bytes on the wire of one request and the header of one answer.
func TestGolden(t *testing.T) {
	var request bytes.Buffer
	req := Request{CID: wire.Link{Cid: unixfs.NodeCID([]byte("example"))}, Ranges: rangesOf([]int{0, 1, 2, 9})}
	if err := wire.WriteRecord(&request, req); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, headerSize)
	header{statusBlock, 9, 1 << 20}.put(answer)
	payload := have{epoch: 7, count: 4, blocks: bits{1<<0 | 1<<1 | 1<<2 | 1<<9}}.encode()
	hears := make([]byte, headerSize)
	header{statusHave, 0, uint32(len(payload))}.put(hears)
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
	if h, err := parseHeader(answer, 9, false); err != nil || h != (header{statusBlock, 9, 1 << 20}) {
		t.Fatalf("%+v, %v", h, err)
	}
}
