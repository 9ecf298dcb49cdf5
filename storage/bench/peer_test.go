package bench

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kuboScript stands for kubo, selfScript for this program: they know the commands that a match uses, and copy files.
const kuboScript = `#!/bin/sh
set -e
case "$1" in
init) mkdir "$IPFS_PATH" ;;
config) test "$2" = --json ;;
add) for f; do :; done; cp "$f" "@dir@/blob"; case "$*" in *max-file-links*) echo same ;; *) echo other ;; esac ;;
daemon) echo Initializing; echo Daemon is ready; exec sleep 60 ;;
id) echo '{"Addresses":["/ip4/127.0.0.1/udp/1/quic-v1/p2p/k","/ip4/127.0.0.1/tcp/1/p2p/k"]}' ;;
swarm) for a; do :; done; test "$a" = /ip4/127.0.0.1/tcp/1/p2p/k ;;
get) test "$2" = -o; cp "@dir@/blob" "$3" ;;
*) exit 1 ;;
esac
`

const selfScript = `#!/bin/sh
set -e
while [ $# -gt 0 ]; do
  case "$1" in
  add) cp "$2" "@dir@/mine"; echo "same $2"; exit ;;
  get) cp "@dir@/mine" "$3"; @spoil@ exit ;;
  bootstrap) echo /ip4/127.0.0.1/tcp/2/p2p/c; exec sleep 60 ;;
  esac
  shift
done
exit 1
`

func script(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "@dir@", dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPeer lets two scripts play: a match runs every contestant, removes what it made, and notices a file that differs.
func TestPeer(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no shell here")
	}
	dir, work := t.TempDir(), t.TempDir()
	o := PeerOptions{
		Peer: script(t, dir, "ipfs", kuboScript), Self: script(t, dir, "self", strings.ReplaceAll(selfScript, "@spoil@", "")),
		Size: 2 << 20, Rounds: 2, Dir: work,
	}
	f, err := Peer(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []float64{f.OverGet, f.OverTuned, f.OverAdd, f.Fetch.Rate, f.Import.Rate, f.Get.Rate, f.Tuned.Rate, f.Add.Rate} {
		if v <= 0 {
			t.Errorf("%+v", f)
		}
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("%d left, %v", len(left), err)
	}
	o.Self = script(t, dir, "liar", strings.ReplaceAll(selfScript, "@spoil@", `echo >>"$3";`))
	if _, err := Peer(t.Context(), o); err == nil || !strings.Contains(err.Error(), "differs") {
		t.Errorf("a wrong file: %v", err)
	}
	o.Peer = filepath.Join(dir, "nothing")
	if _, err := Peer(t.Context(), o); err == nil {
		t.Error("no peer, and it was measured")
	}
}

func TestDaemonThatEnds(t *testing.T) {
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("no shell here")
	}
	if _, _, err := startDaemon(t.Context(), nil, "ready", "/bin/sh", "-c", "echo no"); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := startDaemon(ctx, nil, "ready", "/bin/sh", "-c", "sleep 60"); err == nil {
		t.Error("started after the end")
	}
}

func TestParseStat(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 150 25 0 0 20 0": 1750 * time.Millisecond,
		"7 (x) S 1 7": -1, "": -1, "7 (x": -1, "7 (x) S 1 7 7 0 -1 4194560 1 0 0 0 a 25 0 0": -1,
	} {
		if got, ok := parseStat([]byte(text)); ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %v, %v", text, got, ok)
		}
	}
}
