package node

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

func TestFetchEvent(t *testing.T) {
	c := unixfs.RawCID([]byte("x"))
	p := transfer.Progress{CID: c, Done: 3, Total: 9, Rate: 2, ETA: 3 * time.Second, Sources: []transfer.SourceProgress{
		{Source: "peer", State: "active", Bytes: 3, Rate: 2}, {Source: "https://example.org/x", State: "dropped", Why: "404"},
	}}
	want := `{"type":"fetch","cid":"` + c.String() + `","done_bytes":3,"total_bytes":9,"bytes_per_second":2,"eta_seconds":3,"ended":false,` +
		`"sources":[{"source":"peer","state":"active","bytes":3,"bytes_per_second":2},` +
		`{"source":"https://example.org/x","state":"dropped","bytes":0,"bytes_per_second":0,"why":"404"}],"active_sources":1}`
	if got, err := json.Marshal(fetchEvent(p)); err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	p.ETA, p.Sources = -1, nil
	want = `{"type":"fetch","cid":"` + c.String() + `","done_bytes":3,"total_bytes":9,"bytes_per_second":2,"eta_seconds":null,"ended":false,"sources":[],"active_sources":0}`
	if got, err := json.Marshal(fetchEvent(p)); err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
}
