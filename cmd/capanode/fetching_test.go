package main

import (
	"strings"
	"testing"

	"github.com/capacloud/capanode/node"
)

func TestFetchLine(t *testing.T) {
	eta := 61.2
	var out strings.Builder
	e := node.FetchEvent{
		CID: "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", Done: 3 << 20, Total: 12 << 20, Rate: 1 << 20, ETA: &eta,
		Sources: make([]node.FetchSource, 5), SourcesNow: 3,
	}
	fetchLine(&out, e)
	e.Total, e.Done, e.ETA = 0, 0, nil
	fetchLine(&out, e)
	e.Ended = true
	fetchLine(&out, e)
	want := "\r\x1b[Kbafk…uvyku  3.0 MiB of 12.0 MiB  25 %  1.0 MiB/s  1m1s left  from 3 of 5 sources" +
		"\r\x1b[Kbafk…uvyku  0 B of 0 B  0 %  1.0 MiB/s  from 3 of 5 sources\r\x1b[K"
	if out.String() != want {
		t.Errorf("%q\nwant %q", out.String(), want)
	}
}
