package storage_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// killedEnv names the folder in which a child of TestKill works until it is killed.
const killedEnv = "CAPANODE_STORE_KILLED"

// killedQuota makes room scarce for the child, so that it evicts, too.
const killedQuota = 32 << 20

// killed works on a store without end and says on stdout what it may rely on: "pin NAME CID SEED SIZE" and "unpin NAME", each
// once it is acknowledged, and "try" before.
func killed(dir string) error {
	ctx := context.Background()
	donor, err := storage.OpenMem()
	if err != nil {
		return err
	}
	s, err := storage.Open(ctx, filepath.Join(dir, "store"), storage.Options{Quota: killedQuota})
	if err != nil {
		return err
	}
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv(killedEnv+"_SEED"), &seed); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 7))
	for {
		if err := killedStep(ctx, s, donor, dir, rng); err != nil {
			return err
		}
	}
}

func killedStep(ctx context.Context, s, donor *storage.Store, dir string, rng *rand.Rand) error {
	seed := uint64(rng.IntN(1 << 16))
	size := []int{10, 3000, storage.InlineLimit + 9, 300 << 10, unixfs.BlockSize + 7, 2*unixfs.BlockSize + 1}[rng.IntN(6)]
	data := storetest.Bytes(seed, size)
	name := fmt.Sprint("p", rng.IntN(6))
	fmt.Println("try", name)
	var c cid.Cid
	var err error
	switch rng.IntN(8) {
	case 0, 1:
		c, err = s.PutBytes(ctx, data, storage.PutOptions{Pin: name, Class: storage.Cached})
	case 2:
		if c, err = donor.PutBytes(ctx, data, storage.PutOptions{}); err == nil {
			err = killedFetch(ctx, s, donor, c)
		}
		if err == nil {
			err = s.Pin(ctx, name, c)
		}
		if err == nil {
			err = donor.Delete(ctx, c)
		}
	case 3: // a file in place under a name of its own, as nobody must change it
		path := filepath.Join(dir, fmt.Sprint("user-", seed, "-", size))
		if err = os.WriteFile(path, data, 0o600); err == nil {
			var info storage.Info
			info, err = s.AddInPlace(ctx, path, storage.PutOptions{Pin: name, Class: storage.Cached})
			c = info.CID
		}
	case 4:
		if err := s.Unpin(ctx, name); err == nil {
			fmt.Println("unpin", name)
		}
		return nil
	case 5:
		_, err = s.GC(ctx)
		return err
	case 6:
		_, err = s.PutBytes(ctx, data, storage.PutOptions{Class: storage.Cached}) // fills the quota
		return err
	case 7:
		c, err = s.PutBytes(ctx, data, storage.PutOptions{Class: storage.Cached})
		if err == nil {
			err = s.Lease(ctx, fmt.Sprint("lease-", name), c, time.Now().Add(time.Hour))
		}
		name = "lease-" + name
	}
	if err == nil {
		fmt.Println("pin", name, c, seed, size)
	}
	return err
}

func killedFetch(ctx context.Context, s, donor *storage.Store, c cid.Cid) error {
	if has, err := s.Has(ctx, c); has || err != nil {
		return err
	}
	if c.Type() == cid.Raw {
		b, err := donor.GetBlock(ctx, c, nil)
		if err == nil {
			_, err = s.PutBlock(ctx, c, b, storage.PutOptions{Class: storage.Cached})
		}
		return err
	}
	defer s.Hold(c)()
	p, err := s.Begin(ctx, c, storetest.Nodes(ctx, donor))
	if err != nil {
		return err
	}
	for _, i := range p.Missing() {
		b, err := donor.GetBlock(ctx, p.Layout().Leaves[i].CID(cid.Raw), nil)
		if err == nil {
			err = p.Write(i, b)
		}
		if err != nil {
			return err
		}
	}
	_, err = p.Commit(ctx)
	return err
}

// promise is a pin that was acknowledged.
type promise struct {
	cid  string
	seed uint64
	size int
}

// TestKill kills a process that works on a store, at random points, again and again: every pin that was acknowledged is there,
// complete and correct, and nothing is left over.
func TestKill(t *testing.T) {
	rounds := 3
	switch {
	case long():
		rounds = 200
	case testing.Short():
		rounds = 1
	}
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(5, 6))
	promises := map[string]promise{}
	for round := range rounds {
		loose := killOnce(t, dir, round, rng, promises)
		checkKilled(t, dir, round, promises, loose)
	}
	t.Logf("%d rounds, %d promises at the end", rounds, len(promises))
}

// killOnce runs a child for a random time, takes down what it promises, and returns the name that it was busy with at its end.
func killOnce(t *testing.T, dir string, round int, rng *rand.Rand, promises map[string]promise) string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedEnv+"="+dir, fmt.Sprintf("%s_SEED=%d", killedEnv, round))
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	loose := ""
	died := make(chan struct{})
	kill := time.AfterFunc(time.Minute, func() {}) // replaced at the first line: the start of a process takes its time
	for first := true; ; first = false {
		line, err := lines.ReadString('\n')
		if err != nil { // the rest of a line is no promise
			break
		}
		if first {
			kill = time.AfterFunc(time.Duration(rng.Int64N(int64(400*time.Millisecond))), func() {
				_ = cmd.Process.Kill()
				close(died)
			})
		}
		f := strings.Fields(line)
		switch {
		case f[0] == "try":
			loose = f[1]
		case f[0] == "unpin":
			delete(promises, f[1])
			loose = ""
		case f[0] == "pin":
			var p promise
			if _, err := fmt.Sscan(strings.Join(f[2:], " "), &p.cid, &p.seed, &p.size); err != nil {
				t.Fatal(err)
			}
			promises[f[1]] = p
			loose = ""
		}
	}
	_, _ = io.Copy(io.Discard, out)
	err = cmd.Wait()
	if kill.Stop() || complaints.Len() > 0 {
		t.Fatalf("round %d: the child ended by itself: %v: %s", round, err, complaints.String())
	}
	<-died
	return loose
}

func checkKilled(t *testing.T, dir string, round int, promises map[string]promise, loose string) {
	t.Helper()
	ctx := context.Background()
	s, err := storage.Open(ctx, filepath.Join(dir, "store"), storage.Options{Quota: killedQuota})
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	defer s.Close()
	rep, err := s.Verify(ctx)
	if err != nil || len(rep.Faults) != 0 {
		t.Fatalf("round %d: %+v, %v", round, rep, err)
	}
	if err := checkLeftovers(s, vfs.Default, filepath.Join(dir, "store")); err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	pins, err := s.Pins(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, p := range pins {
		found[p.Name] = p.CID.String()
		got, err := s.ReadAll(ctx, p.CID, 1<<30)
		if err != nil || !unixfsEqual(p.CID, got) {
			t.Fatalf("round %d: pin %s: %v", round, p.Name, err)
		}
	}
	for name, want := range promises {
		if name == loose || name == "lease-"+loose {
			delete(promises, name) // it was about to change: either is right
			continue
		}
		if found[name] != want.cid {
			t.Fatalf("round %d: pin %s is %s, promised %s", round, name, found[name], want.cid)
		}
		c, err := cid.Decode(want.cid)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.ReadAll(ctx, c, 1<<30)
		if err != nil || !bytes.Equal(got, storetest.Bytes(want.seed, want.size)) {
			t.Fatalf("round %d: pin %s: other bytes: %v", round, name, err)
		}
	}
	if u := s.Usage(); u.Used > killedQuota || u.Reserved != 0 {
		t.Fatalf("round %d: usage %+v", round, u)
	}
}

// unixfsEqual tells whether bytes have a CID.
func unixfsEqual(c cid.Cid, b []byte) bool {
	if c.Type() == cid.Raw {
		return unixfs.RawCID(b) == c
	}
	var leaves []unixfs.Digest
	for i := 0; i < len(b); i += unixfs.BlockSize {
		leaves = append(leaves, unixfs.Sum(b[i:min(i+unixfs.BlockSize, len(b))]))
	}
	l, err := unixfs.Build(leaves, int64(len(b)))
	return err == nil && l.Root == c
}
