package interop

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// profile is how kubo adds files to get the CIDs of Capanode.
var profile = []string{"--cid-version=1", "--chunker=size-1048576", "--max-file-links=1024", "--raw-leaves", "-Q"}

// noise returns n reproducible bytes that do not compress.
func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func write(t *testing.T, path string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// same compares two files or folders byte by byte.
func same(t *testing.T, got, want string) {
	t.Helper()
	read := func(root string) map[string]string {
		out := map[string]string{}
		err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(p)
			rel, _ := filepath.Rel(root, p)
			out[rel] = string(b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	g, w := read(got), read(want)
	if len(g) != len(w) || len(w) == 0 {
		t.Fatalf("%d files, want %d", len(g), len(w))
	}
	for name, b := range w {
		if g[name] != b {
			t.Fatalf("%q differs: %d bytes, want %d", name, len(g[name]), len(b))
		}
	}
}

// checkpoint makes a folder as a run publishes it.
func checkpoint(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "checkpoint")
	write(t, filepath.Join(dir, "config.json"), []byte(`{"model_type":"llama"}`))
	write(t, filepath.Join(dir, "model.safetensors"), noise(1, 9<<20+123))
	write(t, filepath.Join(dir, "tokenizer", "tokenizer.json"), noise(2, 300<<10))
	write(t, filepath.Join(dir, "tokenizer", "empty"), nil)
	return dir
}

// TestEqualCIDs adds files of sizes around every edge, and a folder, on both sides.
func TestEqualCIDs(t *testing.T) {
	k, h := newKubo(t), newHome(t)
	dir := t.TempDir()
	var paths []string
	for _, n := range []int{0, 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 7<<20 + 11} {
		paths = append(paths, write(t, filepath.Join(dir, fmt.Sprint(n)), noise(byte(n), n)))
	}
	paths = append(paths, checkpoint(t))
	if !testing.Short() { // more leaves than one node has links
		p := write(t, filepath.Join(dir, "sparse"), noise(9, 100))
		if err := os.Truncate(p, 1025<<20); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	for _, p := range paths {
		want := k.run(append([]string{"add", "-r"}, append(profile, p)...)...)
		if got := h.add(p); got != want {
			t.Errorf("%s: %s here, %s there", filepath.Base(p), got, want)
		}
	}
}

// TestKuboFetchesCheckpoint lets kubo get a folder from a running node.
func TestKuboFetchesCheckpoint(t *testing.T) {
	k, h := newKubo(t), newHome(t)
	dir := checkpoint(t)
	c := h.add(dir)
	k.start()
	k.run("swarm", "connect", h.serve())
	out := filepath.Join(t.TempDir(), "out")
	k.run("get", "-o", out, c)
	same(t, out, dir)
	// What kubo exports is what we export.
	h.stop()
	ours, theirs := filepath.Join(t.TempDir(), "x.car"), k.run("dag", "export", c)
	h.run("storage", "export-car", c, ours)
	b, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, []byte(theirs)) {
		t.Errorf("CAR of %d bytes here, %d there", len(b), len(theirs))
	}
}

// trained makes a folder as a run publishes it, with tensors whose ends are no multiples of a block, and a second one in which
// one tensor is another.
func trained(t *testing.T) (first, second string) {
	t.Helper()
	dir := t.TempDir()
	for i, name := range []string{"first", "second"} {
		var header, data []byte
		for j, size := range []int{70 << 10, 3<<20 + 4, 100, 1<<20 + 66, 200, 1 << 20} {
			seed := byte(10 + j)
			if i == 1 && j == 3 {
				seed = 99
			}
			header = fmt.Appendf(header, `,"t%d":{"dtype":"BF16","shape":[%d],"data_offsets":[%d,%d]}`, j, size/2, len(data), len(data)+size)
			data = append(data, noise(seed, size)...)
		}
		header[0] = '{'
		header = append(header, '}')
		file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
		write(t, filepath.Join(dir, name, "model.safetensors"), append(file, data...))
		write(t, filepath.Join(dir, name, "config.json"), []byte(`{"model_type":"llama"}`))
	}
	return filepath.Join(dir, "first"), filepath.Join(dir, "second")
}

// leaves returns the CIDs of raw blocks among the lines that kubo lists.
func leaves(text string) map[string]bool {
	out := map[string]bool{}
	for _, c := range strings.Fields(text) {
		if strings.HasPrefix(c, "bafkrei") {
			out[c] = true
		}
	}
	return out
}

// TestKuboFetchesUnequalLeaves lets kubo handle checkpoints that are cut at the ends of their tensors: it lists, fetches, exports and
// imports them as any other folder, and has what two of them share once. A damaged block stays where it is.
func TestKuboFetchesUnequalLeaves(t *testing.T) {
	k, h, other := newKubo(t), newHome(t), newKubo(t)
	h.run("storage", "ls") // makes the home
	dirs, cids := [2]string{}, [2]string{}
	dirs[0], dirs[1] = trained(t)
	for i, dir := range dirs {
		cids[i] = h.addCut(dir)
		if plain := k.run(append([]string{"add", "-r", "-n"}, append(profile, dir)...)...); cids[i] == plain {
			t.Fatalf("%s is cut as any file", dir)
		}
	}
	k.start()
	k.run("swarm", "connect", h.serve())
	for i, c := range cids {
		out := filepath.Join(t.TempDir(), "out")
		k.run("get", "-o", out, c)
		same(t, out, dirs[i])
	}
	var lists [2]map[string]bool
	for i, c := range cids {
		ls := k.run("ls", "--size", c)
		st, err := os.Stat(filepath.Join(dirs[i], "model.safetensors"))
		if err != nil || !strings.Contains(ls, fmt.Sprint(st.Size(), " model.safetensors")) || !strings.Contains(ls, "config.json") {
			t.Errorf("kubo lists %q, %v", ls, err)
		}
		lists[i] = leaves(k.run("refs", "-r", "--unique", c))
	}
	shared := 0
	for c := range lists[0] {
		if lists[1][c] {
			shared++
		}
	}
	// Config, five of six tensors (two small ones share a block with nobody that changed), the header: all but two blocks.
	if len(lists[0]) < 8 || shared < len(lists[0])-3 || shared == len(lists[0]) {
		t.Errorf("%d of %d leaves are in both", shared, len(lists[0]))
	}
	h.stop()
	car := filepath.Join(t.TempDir(), "x.car")
	h.run("storage", "export-car", cids[1], car)
	if text := other.run("dag", "import", car); !strings.Contains(text, cids[1]) {
		t.Errorf("kubo imported %q, not %s", text, cids[1])
	}
	out := filepath.Join(t.TempDir(), "out")
	other.run("get", "-o", out, cids[1])
	same(t, out, dirs[1])
	back := write(t, filepath.Join(t.TempDir(), "y.car"), []byte(k.run("dag", "export", cids[0])))
	fresh := newHome(t)
	if got := strings.TrimSpace(fresh.run("storage", "import-car", back)); got != cids[0] {
		t.Errorf("imported %q", got)
	}
	out = filepath.Join(t.TempDir(), "out")
	fresh.run("storage", "get", cids[0], out)
	same(t, out, dirs[0])
	// A wrong byte on our disk reaches nobody.
	model, err := os.ReadFile(filepath.Join(dirs[0], "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, h.dir, int64(len(model)), 2<<20)
	late := newKubo(t)
	late.start()
	late.run("swarm", "connect", h.serve())
	out = filepath.Join(t.TempDir(), "out")
	if text, err := late.try("get", "--timeout=10s", "-o", out, cids[0]); err == nil {
		t.Errorf("kubo got it: %s", text)
	}
	right(t, filepath.Join(out, "model.safetensors"), model)
}

// TestFetchFromKubo gets 256 MiB and a folder from kubo: as it adds files in the profile, and in chunks of 256 KiB.
func TestFetchFromKubo(t *testing.T) {
	k := newKubo(t)
	k.start()
	big := write(t, filepath.Join(t.TempDir(), "big"), noise(3, 256<<20))
	dir := checkpoint(t)
	for name, args := range map[string][]string{
		"profile": append(profile[:len(profile):len(profile)], big),
		"256 KiB": {"--cid-version=1", "--raw-leaves", "--chunker=size-262144", "--max-file-links=174", "-Q", big},
		"folder":  append([]string{"-r"}, append(profile[:len(profile):len(profile)], dir)...),
	} {
		t.Run(name, func(t *testing.T) {
			c := k.run(append([]string{"add"}, args...)...)
			h := newHome(t)
			out := filepath.Join(t.TempDir(), "out")
			h.run("storage", "get", c, out, "--from", k.addr())
			same(t, out, args[len(args)-1])
		})
	}
}

// TestArchives moves a folder as a CAR, both ways.
func TestArchives(t *testing.T) {
	k, h, other := newKubo(t), newHome(t), newHome(t)
	dir := checkpoint(t)
	c := h.add(dir)
	car := filepath.Join(t.TempDir(), "x.car")
	h.run("storage", "export-car", c, car)
	k.run("dag", "import", car)
	out := filepath.Join(t.TempDir(), "out")
	k.run("get", "-o", out, c)
	same(t, out, dir)
	back := write(t, filepath.Join(t.TempDir(), "y.car"), []byte(k.run("dag", "export", c)))
	if got := strings.TrimSpace(other.run("storage", "import-car", back)); got != c {
		t.Errorf("imported %q", got)
	}
	out = filepath.Join(t.TempDir(), "out")
	other.run("storage", "get", c, out)
	same(t, out, dir)
}

// TestDamageStaysWhereItIs flips a byte of a block on either disk: the other side gets an error and not one wrong byte.
func TestDamageStaysWhereItIs(t *testing.T) {
	data := noise(4, 8<<20)
	file := write(t, filepath.Join(t.TempDir(), "file"), data)
	t.Run("ours", func(t *testing.T) {
		k, h := newKubo(t), newHome(t)
		c := h.add(file)
		flip(t, h.dir, 8<<20, 5<<20)
		k.start()
		k.run("swarm", "connect", h.serve())
		out := filepath.Join(t.TempDir(), "out")
		if text, err := k.try("get", "--timeout=10s", "-o", out, c); err == nil {
			t.Errorf("kubo got it: %s", text)
		}
		right(t, out, data)
	})
	t.Run("theirs", func(t *testing.T) {
		k, h := newKubo(t), newHome(t)
		c := k.run(append([]string{"add"}, append(profile, file)...)...)
		flip(t, filepath.Join(k.repo, "blocks"), 1<<20, 77)
		k.start()
		out := filepath.Join(t.TempDir(), "out")
		text, err := h.try("storage", "get", c, out, "--from", k.addr())
		if err == nil {
			t.Error("we got it")
		} else if !strings.Contains(text, "stored bytes do not match their CID") {
			t.Errorf("the error does not name the damage: %s", text)
		}
		if _, err := os.Stat(out); err == nil {
			t.Error("a file was written")
		}
	})
}

// right checks that what is at a path, if anything, is the beginning of the right bytes.
func right(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err == nil && !bytes.HasPrefix(want, got) {
		t.Errorf("%d bytes, some of them wrong", len(got))
	}
}

// flip changes one byte of the first file of exactly that size below a folder.
func flip(t *testing.T, dir string, size, at int64) {
	t.Helper()
	done := false
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || done {
			return err
		}
		if st, err := d.Info(); err != nil || st.Size() != size {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil {
			b[at] ^= 1
			done = true
			if err = os.Chmod(p, 0o644); err == nil {
				err = os.WriteFile(p, b, 0o644)
			}
		}
		return err
	})
	if err != nil || !done {
		t.Fatalf("no file of %d bytes below %s: %v", size, dir, err)
	}
}
