package node

import (
	"time"

	"github.com/capacloud/capanode/storage/transfer"
)

// FetchEvent says how far the fetch of an object is. One comes four times a second, and one at the end of each fetch.
type FetchEvent struct {
	Type       string        `json:"type"` // fetch
	CID        string        `json:"cid"`
	Done       int64         `json:"done_bytes"`
	Total      int64         `json:"total_bytes"` // grows while a folder is explored
	Rate       float64       `json:"bytes_per_second"`
	ETA        *float64      `json:"eta_seconds"` // null while it cannot be told
	Ended      bool          `json:"ended"`
	Sources    []FetchSource `json:"sources"`
	SourcesNow int           `json:"active_sources"`
}

// FetchSource is one source of a fetch.
type FetchSource struct {
	Source string  `json:"source"` // peer ID or URL
	State  string  `json:"state"`  // dialling, active, waiting, dropped or done
	Bytes  int64   `json:"bytes"`
	Rate   float64 `json:"bytes_per_second"`
	Why    string  `json:"why,omitempty"` // it is not active
}

// fetchEvent turns what the transfer reports into an event.
func fetchEvent(p transfer.Progress) FetchEvent {
	e := FetchEvent{Type: "fetch", CID: p.CID.String(), Done: p.Done, Total: p.Total, Rate: p.Rate, Ended: p.Ended, Sources: []FetchSource{}}
	if p.ETA >= 0 {
		s := p.ETA.Round(time.Millisecond).Seconds()
		e.ETA = &s
	}
	for _, s := range p.Sources {
		e.Sources = append(e.Sources, FetchSource(s))
		if s.State == "active" {
			e.SourcesNow++
		}
	}
	return e
}

// asking says how the tools of a use fetch.
func (u Use) asking() transfer.Ask {
	ask := transfer.Ask{Seeds: u.Seeds}
	if u.Emit != nil {
		ask.Progress = func(p transfer.Progress) { u.Emit(fetchEvent(p)) }
	}
	return ask
}
