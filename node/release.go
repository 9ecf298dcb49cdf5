package node

import (
	"context"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
)

// jobPin and datasetPin name the pins that a requester needs while a run goes on.
func jobPin(run string) string          { return "job/" + run }
func datasetPin(manifest string) string { return "dataset/" + manifest }

// initPin names the pin of the model that a run starts from, on every node that works for the run.
func initPin(run string) string { return "init/" + run }

// dataPin names the pin of a dataset that its owner made and keeps beyond any run.
func dataPin(manifest string) string { return "data/" + manifest }

// releasable lists the pins of runs that are not under way: they have ended, or were only planned. A dataset that another
// run still needs stays.
func releasable(all []Run) []string {
	live := map[string]bool{}
	for _, run := range all {
		if run.Role == "requester" && run.State == RunTraining {
			live[jobPin(run.ID)], live[datasetPin(run.Dataset)], live[initPin(run.ID)] = true, true, true
		}
	}
	var names []string
	for _, run := range all {
		for _, name := range []string{jobPin(run.ID), datasetPin(run.Dataset), initPin(run.ID)} {
			if run.Role == "requester" && !live[name] {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// releaseRuns lets the store evict the jobs and datasets of runs that are not under way; asked is a run that may have no
// record. What a run that ended keeps is its checkpoint. The bytes stay until their room is needed, so that the same command
// finds most of them again.
func (n *Node) releaseRuns(ctx context.Context, asked Run) error {
	all, err := n.runs.list()
	if err != nil {
		return err
	}
	return n.unpinAll(ctx, releasable(append(all, asked)))
}

// unpinAll removes pins and lets the store evict what only they were about.
func (n *Node) unpinAll(ctx context.Context, names []string) error {
	pins, err := n.store.Pins(ctx)
	if err != nil {
		return err
	}
	kept, freed := map[cid.Cid]bool{}, []cid.Cid{}
	for _, p := range pins {
		if !slices.Contains(names, p.Name) {
			for _, c := range n.datasetParts(ctx, p) {
				kept[c] = true
			}
			continue
		}
		freed = append(freed, n.datasetParts(ctx, p)...)
		if err := n.store.Unpin(ctx, p.Name); err != nil {
			return err
		}
	}
	freed = slices.DeleteFunc(freed, func(c cid.Cid) bool { return kept[c] })
	return n.store.Disown(ctx, freed...)
}

// datasetParts lists what a pin is about: the object, and the shards and the tokenizer when it is a dataset's manifest.
func (n *Node) datasetParts(ctx context.Context, p storage.Pin) []cid.Cid {
	parts := []cid.Cid{p.CID}
	if name := p.CID.String(); p.Name != datasetPin(name) && p.Name != dataPin(name) {
		return parts
	}
	raw, err := n.store.ReadAll(ctx, p.CID, wire.MaxRecord)
	if err != nil {
		return parts
	}
	m, err := dataset.Decode(raw)
	if err != nil {
		return parts
	}
	for _, s := range m.Shards {
		parts = append(parts, s.CID.Cid)
	}
	if m.Tokenizer.Link.Defined() {
		parts = append(parts, m.Tokenizer.Link.Cid)
	}
	return parts
}
