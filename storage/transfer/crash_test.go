package transfer_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
)

// victim names the environment variable that turns the test program into a process that fetches: store folder, CID, address of
// the source, bytes per second.
const victim = "CAPANODE_CRASH_VICTIM"

// fetchAndExit is the process that is killed.
func fetchAndExit(order string) int {
	if err := fetchAs(strings.Split(order, " ")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func fetchAs(order []string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c, err := cid.Decode(order[1])
	if err != nil {
		return err
	}
	from, err := peer.AddrInfoFromString(order[2])
	if err != nil {
		return err
	}
	rate, err := strconv.ParseInt(order[3], 10, 64)
	if err != nil {
		return err
	}
	store, err := storage.Open(ctx, order[0], storage.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	host, err := loopback(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	if err := host.Connect(ctx, *from); err != nil {
		return err
	}
	f := transfer.NewFetcher(host, nil, store, transfer.Options{Rate: rate})
	return f.Fetch(ctx, c, []peer.ID{from.ID})
}

func loopback(ctx context.Context) (*p2p.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	return p2p.NewHost(ctx, p2p.Config{Identity: key, Network: "crash", Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
}

// A process that fetches is killed at random points and started again until the file is there. What is fetched twice for each
// death is at most the larger of 64 MiB and five seconds of traffic, and every byte is right. The long form,
// CAPANODE_CRASH_LONG=1, does it two hundred times, in lanes side by side (go test -parallel 8), with a file that is large enough
// for that bound to count.
func TestKilledWhileFetching(t *testing.T) {
	// Five seconds at the long form's rate are 64 MiB.
	lanes, rounds, size, rate := 1, 3, 16*mib, int64(16*mib)
	if os.Getenv("CAPANODE_CRASH_LONG") != "" {
		lanes, rounds, size, rate = 8, 25, 160*mib, 64*mib/5
	}
	if testing.Short() {
		rounds = 1
	}
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	for lane := range lanes {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			t.Parallel()
			killWhileFetching(t, seed, uint64(lane), rounds, size, rate)
		})
	}
}

func killWhileFetching(t *testing.T, seed, lane uint64, rounds, size int, rate int64) {
	random := mathrand.New(mathrand.NewPCG(seed, lane))
	ctx := t.Context()
	from, err := storage.Open(ctx, filepath.Join(t.TempDir(), "from"), storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	host, err := loopback(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	server := transfer.Serve(host, from, transfer.ServeOptions{})
	data := storetest.Bytes(seed+lane, size)
	c, err := from.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	whole := time.Duration(float64(size) / float64(rate) * float64(time.Second))
	deaths, worst, again := 0, 0.0, 0.0
	for round := range rounds {
		dir := filepath.Join(t.TempDir(), "to")
		before := server.Stats().Bytes
		kills := 0
		for done := false; !done; {
			// Each process gets a random part of the time that the whole file takes; the third death is the last.
			life := time.Duration(random.Float64() * float64(whole+time.Second))
			if kills == 3 {
				life = math.MaxInt64
			}
			if done = runVictim(t, fmt.Sprint(dir, " ", c, " ", host.Addrs()[0], " ", rate), life); !done {
				kills++
			}
		}
		checkStore(t, dir, c, data)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		twice := float64(server.Stats().Bytes-before) - float64(size)
		bound := float64(kills) * max(64*mib, 5*float64(rate))
		// A death costs what was on its way, too, and each start the interior nodes.
		if bound += float64(kills)*5*mib + float64(kills+1)*(64<<10); twice > bound {
			t.Errorf("round %d: %.0f bytes of %d fetched again after %d deaths, want at most %.0f", round, twice, size, kills, bound)
		}
		deaths += kills
		if again += twice; kills > 0 {
			worst = max(worst, twice/float64(kills))
		}
	}
	t.Logf("%d rounds, %d deaths: %.1f MiB fetched again for a death in the mean, %.1f MiB in the worst round",
		rounds, deaths, again/float64(max(1, deaths))/mib, worst/mib)
}

// runVictim runs the process for at most a time and tells whether it came to its end.
func runVictim(t *testing.T, order string, life time.Duration) bool {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victim+"="+order)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(life, func() { _ = cmd.Process.Kill() })
	err := cmd.Wait()
	if !kill.Stop() {
		return err == nil
	}
	if err != nil {
		t.Fatalf("the fetching process failed: %v", err)
	}
	return true
}

func checkStore(t *testing.T, dir string, c cid.Cid, want []byte) {
	t.Helper()
	store, err := storage.Open(t.Context(), dir, storage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	got, err := store.ReadAll(t.Context(), c, int64(len(want)))
	if err != nil || string(got) != string(want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if u := store.Usage(); u.Reserved != 0 {
		t.Errorf("usage %+v", u)
	}
}
