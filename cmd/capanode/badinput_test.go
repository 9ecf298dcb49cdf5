package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
)

// kept is what every home of these tests holds before anything goes wrong; it must come out of each test unharmed.
const kept = "a text that somebody wants to keep\n"

// unknown is a well-formed CID that nobody has.
const unknown = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

// stage is where one case happens: a home with two objects, a folder for files, and the CIDs.
type stage struct {
	t         *testing.T
	home, dir string
	kept, big string
	damaged   bool   // the big object was damaged on purpose
	undo      func() // mends what a case broke besides
}

// template makes a home with a small object and one of several blocks, which other stages copy.
func template(t *testing.T) stage {
	t.Helper()
	s := stage{t: t, undo: func() {}, home: filepath.Join(t.TempDir(), "home"), dir: t.TempDir()}
	block := make([]byte, 3<<20)
	rand.Read(block) // never fails
	s.kept = s.add("kept.txt", kept)
	s.big = s.add("big.bin", string(block))
	return s
}

// add stores a text and returns its CID.
func (s stage) add(name, text string) string {
	s.t.Helper()
	out, errs, code := capanode(s.t, "storage", "add", s.file(name, text), "--home", s.home)
	if code != exitDone {
		s.t.Fatalf("storage add: exit %d: %s", code, errs)
	}
	return strings.Fields(out)[0]
}

// copy is a stage of its own with the same content.
func (s stage) copy(t *testing.T) *stage {
	t.Helper()
	c := &stage{t: t, home: filepath.Join(t.TempDir(), "home"), dir: t.TempDir(), kept: s.kept, big: s.big, undo: func() {}}
	if err := os.CopyFS(c.home, os.DirFS(s.home)); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"identity": 0o700, "identity/identity.key": 0o600} { // CopyFS widens them
		if err := os.Chmod(filepath.Join(c.home, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// file writes a file and returns its path.
func (s *stage) file(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// archive exports the big object.
func (s *stage) archive() string {
	s.t.Helper()
	path := filepath.Join(s.dir, "big.car")
	if _, errs, code := capanode(s.t, "storage", "export-car", s.big, path, "--home", s.home); code != exitDone {
		s.t.Fatalf("export-car: exit %d: %s", code, errs)
	}
	return path
}

// job writes a job file on a small corpus, with more keys.
func (s *stage) job(more string) string {
	s.t.Helper()
	s.file("corpus.txt", strings.Repeat("some text to train on\n", 2000))
	return s.file("job.yaml", "version: 1\nname: bad\ntask: causal-lm\n"+more)
}

const (
	goodData  = "data: {paths: [corpus.txt]}\n"
	goodModel = "model: {preset: llama-tiny}\n"
)

// object is the file of an object of several blocks.
func (s *stage) object(cid string) string {
	s.t.Helper()
	all, err := filepath.Glob(filepath.Join(s.home, "store", "objects", "*", cid+".obj"))
	if err != nil || len(all) != 1 {
		s.t.Fatalf("object %s: %v, %v", cid, all, err)
	}
	return all[0]
}

// truncate and flip damage the object of several blocks.
func (s *stage) truncate() {
	s.damaged = true
	if err := os.Truncate(s.object(s.big), 3<<19); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) flip() {
	s.damaged = true
	f, err := os.OpenFile(s.object(s.big), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, 3<<19); err == nil {
		b[0] ^= 0x10
		_, err = f.WriteAt(b, 3<<19)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// manifest is the file below the home that says which files make up a database.
func (s *stage) manifest(database string) string {
	s.t.Helper()
	all, err := filepath.Glob(filepath.Join(s.home, database, "MANIFEST-*"))
	if err != nil || len(all) == 0 {
		s.t.Fatalf("manifest of %s: %v, %v", database, all, err)
	}
	return filepath.Join(database, filepath.Base(all[len(all)-1]))
}

// replace puts something else in the place of a path below the home, until the case is over.
func (s *stage) replace(name string, with func(path string) error) {
	s.t.Helper()
	path, aside := filepath.Join(s.home, name), filepath.Join(s.dir, "aside")
	err := os.Rename(path, aside)
	if err == nil {
		err = with(path)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.undo = func() {
		if err := errors.Join(os.RemoveAll(path), os.Rename(aside, path)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// unharmed checks that all is there that was there before, and that what was damaged on purpose is known to be.
func (s *stage) unharmed() {
	s.t.Helper()
	s.undo()
	back := filepath.Join(s.dir, "back")
	_, errs, code := capanode(s.t, "storage", "get", s.kept, back, "--home", s.home)
	if text, err := os.ReadFile(back); code != exitDone || err != nil || string(text) != kept {
		s.t.Errorf("what was kept is %q, %v: exit %d: %s", text, err, code, errs)
	}
	if !s.damaged {
		sound(s.t, s.home)
		return
	}
	if _, errs, code := capanode(s.t, "storage", "verify", "--home", s.home); code != exitFailed || !strings.Contains(errs, "1 of 2 objects") || !strings.Contains(errs, s.big) {
		s.t.Errorf("verify does not name the damaged object: exit %d: %s", code, errs)
	}
	if out, errs, code := capanode(s.t, "ledger", "verify", "--home", s.home); code != exitDone {
		s.t.Errorf("ledger verify: exit %d: %s%s", code, out, errs)
	}
}

func emptyFile(path string) error { return os.WriteFile(path, nil, 0o600) }

// badCase is one thing that can be wrong.
type badCase struct {
	name string
	// set breaks something and returns the command line, without --home.
	set  func(s *stage) []string
	code int
	says []string // what its one line must hold; HOME stands for the home
}

// badCases are commands that each must answer with one line and the documented code and leave the home as it was. Tests may run as root,
// whom no file mode stops: what must not be writable is made so by a file where a folder has to be.
var badCases = []badCase{
	{"no such file to add", func(s *stage) []string { return []string{"storage", "add", s.dir + "/none"} },
		exitNoSuchThing, []string{"/none", "no such file", "name an existing file"}},
	{"no such job file", func(s *stage) []string { return []string{"train", s.dir + "/none.yaml"} },
		exitNoSuchThing, []string{"none.yaml", "no such file", "capanode init job"}},
	{"a folder for a job file", func(s *stage) []string { return []string{"train", s.dir} },
		exitUsage, []string{"it is a folder", "name the job's YAML file"}},
	{"no such corpus", func(s *stage) []string { return []string{"train", s.job("data: {paths: [gone]}\n" + goodModel)} },
		exitNoSuchThing, []string{"/gone", "does not exist", "name an existing file"}},
	{"empty corpus", func(s *stage) []string {
		s.file("empty.txt", "")
		return []string{"train", s.job("data: {paths: [empty.txt]}\n" + goodModel)}
	}, exitUsage, []string{"the corpus has no text", "1 empty", "check data.paths"}},
	{"empty job file", func(s *stage) []string { return []string{"train", s.file("job.yaml", "")} },
		exitUsage, []string{"job.yaml", "empty", "capanode init job"}},
	{"unknown key", func(s *stage) []string {
		return []string{"train", s.job(goodData + goodModel + "trian: {rounds: 3}\n")}
	},
		exitUsage, []string{"job.yaml:6:1", `unknown key "trian"`, `did you mean "train"`}},
	{"wrong type", func(s *stage) []string {
		return []string{"train", s.job(goodData + goodModel + "train: {rounds: many}\n")}
	},
		exitUsage, []string{"job.yaml:6:17", `"many" is no whole number`, "capanode config schema"}},
	{"shape that cannot fit in memory", func(s *stage) []string {
		return []string{"train", s.job(goodData + "model: {family: llama, width: 8192, layers: 80, heads: 64, kv_heads: 8, feed_forward: 28672}\n"), "--local", "3"}
	}, exitUsage, []string{"MiB", "does not fit in memory", "lower the model's sizes"}},
	{"dataset that nobody has", func(s *stage) []string { return []string{"train", s.job("data: {cid: " + unknown + "}\n" + goodModel)} },
		exitNoSuchThing, []string{unknown, "no provider delivers", "--bootstrap"}},

	{"get of what nobody has", func(s *stage) []string { return []string{"storage", "get", unknown, s.dir + "/out"} },
		exitNoSuchThing, []string{unknown, "no provider delivers", "--bootstrap"}},
	{"archive that is cut off", func(s *stage) []string {
		path := s.archive()
		st, err := os.Stat(path)
		if err == nil {
			err = os.Truncate(path, st.Size()-100_000)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		return []string{"storage", "import-car", path}
	}, exitFailed, []string{"big.car", "truncated CAR", "copy the file again", "nothing was stored"}},
	{"archive with a wrong byte", func(s *stage) []string {
		path := s.archive()
		b, err := os.ReadFile(path)
		if err == nil {
			b[len(b)/2] ^= 1
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		return []string{"storage", "import-car", path}
	}, exitFailed, []string{"big.car", "do not match their CID", "copy the file again", "nothing was stored"}},
	{"file that is no archive", func(s *stage) []string {
		return []string{"storage", "import-car", s.file("no.car", "not an archive at all")}
	},
		exitFailed, []string{"no.car", "truncated CAR", "nothing was stored"}},
	{"get of a truncated object", func(s *stage) []string { s.truncate(); return []string{"storage", "get", s.big, s.dir + "/out"} },
		exitFailed, []string{"do not match their CID", "no peer could repair it", "--bootstrap"}},
	{"get of a flipped object", func(s *stage) []string { s.flip(); return []string{"storage", "get", s.big, s.dir + "/out"} },
		exitFailed, []string{"block 1", "do not match their CID", "no peer could repair it", "--bootstrap"}},
	{"verify of a truncated object", func(s *stage) []string { s.truncate(); return []string{"storage", "verify"} },
		exitFailed, []string{"1 of 2 objects", "do not match their CID", "the others are untouched", "capanode storage get"}},
	{"verify of a flipped object", func(s *stage) []string { s.flip(); return []string{"storage", "verify"} },
		exitFailed, []string{"1 of 2 objects", "block 1", "do not match their CID", "capanode storage get"}},
	{"export of a truncated object", func(s *stage) []string { s.truncate(); return []string{"export", s.big, s.dir + "/out"} },
		exitFailed, []string{"do not match their CID", "no peer could repair it", "--bootstrap"}},
	{"store without its index", func(s *stage) []string {
		s.replace("store/index", func(string) error { return nil })
		return []string{"storage", "ls"}
	}, exitFailed, []string{"its index is gone, and objects are here", "restore", "store/index"}},

	{"store with a damaged manifest", func(s *stage) []string {
		s.replace(s.manifest("store/index"), emptyFile)
		return []string{"storage", "ls"}
	}, exitFailed, []string{"HOME/store: index of the store is damaged", "malformed manifest", "nothing was removed", "restore HOME/store/index", "move HOME/store away"}},
	{"market database with a damaged manifest", func(s *stage) []string {
		s.replace(s.manifest("market"), func(path string) error { return os.WriteFile(path, garbage(200), 0o600) })
		return []string{"ledger", "show"}
	}, exitFailed, []string{"HOME/market: market database is damaged", "malformed manifest", "nothing was removed", "restore HOME/market", "move it away"}},
	{"market database without its manifest", func(s *stage) []string {
		s.replace(s.manifest("market"), func(string) error { return nil })
		return []string{"ledger", "show"}
	}, exitFailed, []string{"HOME/market: market database is damaged", "no such file", "nothing was removed", "restore HOME/market"}},

	{"export of what is no model", func(s *stage) []string { return []string{"export", s.kept, s.dir + "/out"} },
		exitUsage, []string{"is no model folder but a block", "capanode checkpoint list"}},
	{"export of an unknown CID", func(s *stage) []string { return []string{"export", unknown, s.dir + "/out"} },
		exitNoSuchThing, []string{unknown, "no provider delivers", "--bootstrap"}},
	{"export of no CID", func(s *stage) []string { return []string{"export", "bafyjunk", s.dir + "/out"} },
		exitNoSuchThing, []string{`"bafyjunk"`, "not found", "capanode job list"}},
	{"export over what is there", func(s *stage) []string { s.file("mine", "x"); return []string{"export", s.kept, s.dir} },
		exitUsage, []string{"is not empty", "choose another folder", "nothing is overwritten"}},
	{"sample of what is no model", func(s *stage) []string { return []string{"sample", s.kept} },
		exitUsage, []string{"is no model folder but a block", "capanode checkpoint list"}},
	{"get of a file in place that was changed", func(s *stage) []string {
		path := s.file("mine", "what was added")
		out, errs, code := capanode(s.t, "storage", "add", "--in-place", path, "--home", s.home)
		if code != exitDone {
			s.t.Fatalf("storage add: exit %d: %s", code, errs)
		}
		s.file("mine", "what came after")
		s.undo = func() { s.file("mine", "what was added") }
		return []string{"storage", "get", strings.Fields(out)[0], s.dir + "/out"}
	}, exitFailed, []string{"do not match their CID", "no peer could repair it", "--bootstrap"}},
	{"add of a folder of the store itself in place", func(s *stage) []string {
		return []string{"storage", "add", "--in-place", filepath.Join(s.home, "store", "LOCK")}
	}, exitUsage, []string{"store/LOCK", "inside the store"}},
	{"lease that is over", func(s *stage) []string { return []string{"storage", "pin", s.kept, "--for", "-1h"} },
		exitUsage, []string{"-1h0m0s is over already", "such as 24h"}},
	{"removal of a pinned object", func(s *stage) []string { return []string{"storage", "rm", s.kept} },
		exitFailed, []string{"unpin", "first", "pinned"}},
	{"store that is full", func(s *stage) []string {
		return []string{"storage", "add", s.file("huge", strings.Repeat("x", 70_000_000)), "--quota", "67108864"}
	}, exitFailed, []string{"huge", "do not fit a quota of 67108864", "raise it"}},

	{"home where nothing can be written", func(s *stage) []string {
		s.replace("market", emptyFile)
		return []string{"ledger", "show"}
	}, exitNotAllowed, []string{"market", "not a directory", "--home"}},
	{"home below a file", func(s *stage) []string {
		return []string{"storage", "ls", "--home", s.file("file", "") + "/home"}
	}, exitNotAllowed, []string{"file/home", "not a directory", "--home"}},
	{"key that is none", func(s *stage) []string {
		s.replace("identity/identity.key", emptyFile)
		return []string{"status"}
	}, exitFailed, []string{"identity.key", "not a usable private key", "restore it from a backup"}},
	{"run record that is torn", func(s *stage) []string {
		dir := filepath.Join(s.home, "runs", "x")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "run.json"), []byte("{"), 0o600)); err != nil {
			s.t.Fatal(err)
		}
		return []string{"job", "list"}
	}, exitFailed, []string{"run.json cannot be read", "move the folder away"}},

	{"no such configuration", func(s *stage) []string { return []string{"status", "--config", s.dir + "/none"} },
		exitUsage, []string{"configuration", "/none", "no such file", "--config"}},
	{"configuration that is no YAML", func(s *stage) []string { return []string{"status", "--config", s.file("c.yaml", "network: [\n")} },
		exitUsage, []string{"configuration", "c.yaml", "line 1"}},
	{"configuration of bytes", func(s *stage) []string { return []string{"status", "--config", s.file("c.yaml", "\x00\xff\xfe\x80")} },
		exitUsage, []string{"configuration", "c.yaml"}},
	{"configuration with an unknown key", func(s *stage) []string { return []string{"status", "--config", s.file("c.yaml", "netwrok: x\n")} },
		exitUsage, []string{"c.yaml", `unknown key "netwrok"`, "network"}},
	{"configuration with a wrong type", func(s *stage) []string { return []string{"status", "--config", s.file("c.yaml", "quota: many\n")} },
		exitUsage, []string{"c.yaml", "quota is many", "write a whole number"}},
	{"port in use", func(s *stage) []string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { l.Close() })
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return []string{"bootstrap", "--listen", "/ip4/127.0.0.1/tcp/" + port}
	}, exitTryLater, []string{"/ip4/127.0.0.1/tcp/", "port in use by another process", "listen on another port"}},
	{"bootstrap node that is not there", func(s *stage) []string {
		return []string{"offers", "--bootstrap", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWG2tuwKnG3V2iUyRMGTPmst3EvaYH7Pwonz5t7K8geWTb"}
	}, exitTryLater, []string{"no bootstrap node reachable", "check the addresses", "connection refused"}},
	{"second process on a home", func(s *stage) []string {
		first := start(s.t, "first", "bootstrap", "--home", s.home)
		first.await("its address", typed("bootstrap"))
		s.undo = first.terminate
		return []string{"provide"}
	}, exitLocked, []string{"HOME", "in use by another process", "stop that process or pass another --home"}},
}

func TestBadInput(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	from := template(t)
	for _, c := range badCases {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			s := from.copy(t)
			args := c.set(s)
			if !slices.Contains(args, "--home") {
				args = append(args, "--home", s.home)
			}
			_, errs, code := capanode(t, args...)
			if code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			lines := strings.Split(strings.TrimSuffix(errs, "\n"), "\n")
			if len(lines) != 1 || !strings.HasPrefix(errs, "capanode: ") {
				t.Errorf("%d lines of error, want one:\n%s", len(lines), errs)
			}
			for _, want := range c.says {
				if !strings.Contains(errs, strings.ReplaceAll(want, "HOME", s.home)) {
					t.Errorf("%q is missing in: %s", want, errs)
				}
			}
			s.unharmed()
		})
	}
}

// garbage returns random bytes.
func garbage(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

// A peer that speaks garbage, to the port and on every protocol that a provider serves, is hung up on; the provider, its
// lease and the run do not suffer.
func TestGarbagePeer(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s := newSwarm(t, 2)
	p := s.providers[0]
	info, err := peer.AddrInfoFromString(p.await("its address", func(e map[string]any) bool { return e["state"] == "ready" })["address"].(string))
	if err != nil {
		t.Fatal(err)
	}
	noise(t, info)
	babble(t, info)
	home := t.TempDir()
	run := s.train(jobFile(t, endless, 2), home, filepath.Join(t.TempDir(), "model"))
	run.await("round 2", atRound(2))
	noise(t, info)
	babble(t, info)
	round := run.await("a round", typed("round"))["round"].(float64)
	run.await("a round of both after it", func(e map[string]any) bool {
		return e["type"] == "round" && e["round"].(float64) > round+2 && e["peers"] == 2.0
	})
	run.signal(os.Interrupt)
	run.end(exitInterrupted)
	for _, p := range s.providers {
		p.terminate()
		if said := p.stderr.String(); strings.Contains(said, "panic") || strings.Count(said, "\n") > 1 {
			t.Errorf("%s complains about a stranger's garbage: %s", p.name, said)
		}
	}
	s.checkBooks(home)
	sound(t, append(s.homes, home)...)
}

// noise sends bytes to a peer's TCP port that are no handshake.
func noise(t *testing.T, to *peer.AddrInfo) {
	t.Helper()
	part := strings.Split(to.Addrs[0].String(), "/")
	for i := range 10 {
		c, err := net.Dial("tcp", net.JoinHostPort(part[2], part[4]))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		c.Write(garbage(1 + 700*i))     // it may hang up at once
		c.(*net.TCPConn).CloseWrite()   // the same
		_, err = io.Copy(io.Discard, c) // until it hangs up
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("%d bytes of noise keep a connection open", 1+700*i)
		}
		c.Close()
	}
}

// babble sends garbage on each protocol that a peer says it serves.
func babble(t *testing.T, to *peer.AddrInfo) {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Connect(ctx, *to); err != nil {
		t.Fatal(err)
	}
	own := 0
	protocols, err := h.Peerstore().GetProtocols(to.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, proto := range protocols {
		if strings.HasPrefix(string(proto), "/capanode/") {
			own++
		}
		for _, text := range []string{"", "\x00", "\xff\xff\xff\xffhuge", "\x00\x00\x00\x04\xa1\x61", "\x00\x00\x00\x01\xf6", string(garbage(5000))} {
			stream, err := h.NewStream(ctx, to.ID, proto)
			if err != nil {
				if err := h.Connect(ctx, *to); err != nil { // it may have hung up on us
					t.Fatalf("%s: %v", proto, err)
				}
				continue
			}
			stream.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(stream, text) // it may have been reset
			stream.CloseWrite()
			io.Copy(io.Discard, io.LimitReader(stream, 1<<20)) // whatever it answers
			stream.Reset()
		}
	}
	if own < 5 {
		t.Errorf("only %d of our protocols were found among %v", own, protocols)
	}
}
