package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/capacloud/capanode/node"
)

const fetchHelp = "Get writes a file or folder to DEST, from the store if it is there, else from peers.\n\n" +
	"A terminal shows how far the fetch is; with -o jsonl each step is one JSON object with the type fetch: bytes, rate,\n" +
	"expected seconds, and each source with what it delivered or why it was dropped. A fetch that is interrupted goes on where\n" +
	"it was when the same command is given again.\n\n" +
	"--seed names a web server that has the content: the URL of a single file on a server that answers range requests, whose\n" +
	"hashes then come from peers, or a URL with {cid} for single blocks, as IPFS gateways have them:\n" +
	"https://example.org/ipfs/{cid}?format=raw. What it sends is hashed like everything else."

// fetching is use for a command that may fetch: it shows the progress.
func (a *app) fetching(seeds []string) (node.Use, error) {
	u, err := a.use()
	u.Seeds = seeds
	switch file, _ := a.err.(*os.File); {
	case a.format == "jsonl":
		u.Emit = func(event any) { _ = json.NewEncoder(a.out).Encode(event) } // a closed pipe must not stop the fetch
	case a.format == "table" && file != nil && term.IsTerminal(int(file.Fd())):
		u.Emit = func(event any) {
			if e, ok := event.(node.FetchEvent); ok {
				fetchLine(a.err, e)
			}
		}
	}
	return u, err
}

// fetchLine writes one line over the last one. The end of the fetch leaves an empty one.
func fetchLine(w io.Writer, e node.FetchEvent) {
	const clear = "\r\x1b[K"
	if e.Ended {
		fmt.Fprint(w, clear)
		return
	}
	share := 0.0
	if e.Total > 0 {
		share = 100 * float64(e.Done) / float64(e.Total)
	}
	fmt.Fprintf(w, clear+"%s  %s of %s  %.0f %%  %s/s", short(e.CID), size(e.Done), size(e.Total), share, size(int64(e.Rate)))
	if e.ETA != nil && e.Done < e.Total {
		fmt.Fprintf(w, "  %s left", time.Duration(*e.ETA*float64(time.Second)).Round(time.Second))
	}
	fmt.Fprintf(w, "  from %d of %d sources", e.SourcesNow, len(e.Sources))
}
