package transfer

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
)

// NoProvidersError is [ErrNoProviders] with everybody who was asked. It is [storage.ErrCorrupt] as well if a source was dropped for
// bad bytes.
type NoProvidersError struct {
	CID     cid.Cid
	Asked   []AskedSource // in the order in which they were found
	Router  error         // what the router answered, when that was an error
	Took    time.Duration // since the first source was asked
	Corrupt bool          // a source sent bad bytes
}

// AskedSource is a source that did not deliver.
type AskedSource struct {
	Source string        // peer ID or URL
	Why    error         // of its last failure; nil when it said that it does not have the object
	Took   time.Duration // from the first attempt to the last word on it
}

// Error names everybody in one line.
func (e *NoProvidersError) Error() string {
	var asked []string
	for _, a := range e.Asked {
		why := "does not have it"
		if a.Why != nil {
			why = a.Why.Error()
		}
		asked = append(asked, fmt.Sprintf("%s (%s, %v)", a.Source, why, round(a.Took)))
	}
	if len(asked) == 0 {
		asked = []string{"nobody: no source was given and nobody announced it"}
	}
	if e.Router != nil {
		asked = append(asked, fmt.Sprintf("the router (%v)", e.Router))
	}
	text := fmt.Sprintf("transfer: fetch %s: asked %s: %v after %v", e.CID, strings.Join(asked, ", "), ErrNoProviders, round(e.Took))
	if e.Corrupt {
		text += ": " + storage.ErrCorrupt.Error()
	}
	return text
}

// Unwrap lists what the error is.
func (e *NoProvidersError) Unwrap() []error {
	if e.Corrupt {
		return []error{ErrNoProviders, storage.ErrCorrupt}
	}
	return []error{ErrNoProviders}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// failure says who was asked for an object and why nobody delivered it.
func (s *session) failure(c cid.Cid) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &NoProvidersError{CID: c, Router: s.asked, Took: time.Since(s.at)}
	for _, name := range s.order {
		src := s.sources[name]
		a := AskedSource{Source: name}
		last := src.ended
		if src.lane == nil {
			a.Why = src.why
		} else {
			last = src.lane.state().lastHeard()
		}
		a.Took = max(0, last.Sub(src.asked))
		e.Corrupt = e.Corrupt || errors.Is(src.why, storage.ErrCorrupt)
		e.Asked = append(e.Asked, a)
	}
	return e
}
