package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/round"
)

// keepCheckpoints is how many checkpoints of a run a provider keeps.
const keepCheckpoints = 2

// checkpointPin names the pin of a run's checkpoint.
func checkpointPin(run string, round uint64) string {
	return fmt.Sprintf("checkpoint/%s/%d", run, round)
}

// publishModel writes the state's model as a Hugging Face folder into the store, pins it and returns its CID. The folder
// holds nothing that differs between members.
func publishModel(ctx context.Context, t *task, s *round.State) (cid.Cid, error) {
	n, r, run := t.p.Node, t.rec, t.run
	parent, err := n.home.sub("runs", run.String())
	if err != nil {
		return cid.Undef, err
	}
	dir := filepath.Join(parent, publishDirs+strconv.FormatUint(s.Round, 10))
	if err := os.RemoveAll(dir); err != nil { // of an earlier process
		return cid.Undef, err
	}
	defer os.RemoveAll(dir) // the store holds the copy that counts
	proof := s.Proof()
	provenance := hf.Provenance{
		Name: r.Name, Run: run.String(), Dataset: r.Dataset.String(), Round: s.Round, Step: s.Steps, Tokens: s.Tokens, State: proof.State(s.Weights).String(),
		Head: proof.Head.String(), Momentum: proof.Momentum.String(),
	}
	if r.Init != nil {
		provenance.Init = r.Init.String()
	}
	if err := t.writeModel(dir, s.Weights, provenance); err != nil {
		return cid.Undef, err
	}
	c, err := n.store.AddPath(ctx, dir, storage.PutOptions{
		Pin: checkpointPin(run.String(), s.Round), Class: storage.Cached, Cut: safetensors.Cut,
	})
	if err != nil {
		return cid.Undef, err
	}
	n.announce(c)
	return c, n.dropOldCheckpoints(ctx, run.String(), keepCheckpoints)
}

// announceTime bounds one announcement.
const announceTime = time.Minute

// announce tells the network, in the background, that this node holds an object. A failure costs others a longer search.
func (n *Node) announce(c cid.Cid) {
	n.background.Go(func() {
		ctx, cancel := context.WithTimeout(n.life, announceTime)
		defer cancel()
		if err := n.net.Provide(ctx, c); err != nil && ctx.Err() == nil {
			n.log.Info("announce", "cid", c, "err", err)
		}
	})
}

// releaseCheckpoints lets the store evict a run's models: the run is over for this node.
func (n *Node) releaseCheckpoints(ctx context.Context, run string) error {
	all, err := n.checkpoints(ctx)
	for _, c := range all {
		if c.Run == run {
			err = errors.Join(err, n.store.Unpin(ctx, checkpointPin(run, c.Round)))
		}
	}
	return err
}

// Checkpoint is a pinned model of a run.
type Checkpoint struct {
	Run   string `json:"run"`
	Round uint64 `json:"round"`
	CID   string `json:"checkpoint"`

	// Bytes of all files, and how many of them are in blocks that the checkpoint before of the same run has as well; 0 when
	// the checkpoint is not here as a whole.
	Size   int64 `json:"size"`
	Shared int64 `json:"shared"`
}

// checkpoints lists the pinned models of all runs, the newest round of each run first.
func (n *Node) checkpoints(ctx context.Context) ([]Checkpoint, error) {
	pins, err := n.store.Pins(ctx)
	if err != nil {
		return nil, err
	}
	var all []Checkpoint
	for _, p := range pins {
		part := strings.Split(p.Name, "/")
		if len(part) != 3 || part[0] != "checkpoint" {
			continue
		}
		round, err := strconv.ParseUint(part[2], 10, 64)
		if err != nil {
			continue
		}
		all = append(all, Checkpoint{Run: part[1], Round: round, CID: p.CID.String()})
	}
	slices.SortFunc(all, func(a, b Checkpoint) int {
		if a.Run != b.Run {
			return strings.Compare(a.Run, b.Run)
		}
		return int(int64(b.Round) - int64(a.Round))
	})
	return all, nil
}

// dropOldCheckpoints removes all but the newest checkpoints of a run.
func (n *Node) dropOldCheckpoints(ctx context.Context, run string, keep int) error {
	all, err := n.checkpoints(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if c.Run != run {
			continue
		}
		if keep > 0 {
			keep--
			continue
		}
		if err := n.store.Unpin(ctx, checkpointPin(run, c.Round)); err != nil {
			return err
		}
		root, err := cid.Decode(c.CID)
		if err != nil {
			return err
		}
		if err := n.store.Delete(ctx, root); err != nil {
			n.log.Debug("old checkpoint", "cid", c.CID, "err", err) // another pin holds it
		}
	}
	return nil
}

// weighed lists the pinned models like checkpoints, with their sizes and what each shares with the one before it.
func (n *Node) weighed(ctx context.Context) ([]Checkpoint, error) {
	all, err := n.checkpoints(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		c := &all[i]
		root, err := cid.Decode(c.CID)
		if err != nil {
			return nil, err
		}
		before := cid.Undef
		if i+1 < len(all) && all[i+1].Run == c.Run {
			if before, err = cid.Decode(all[i+1].CID); err != nil {
				return nil, err
			}
		}
		c.Size, c.Shared, err = n.store.Compare(ctx, root, before)
		if err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
			return nil, err
		}
	}
	return all, nil
}
