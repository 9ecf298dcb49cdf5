// Package golden owns the comparison of bytes on the wire with vectors kept in testdata, for tests only. It refuses to be
// used by the program.
package golden

import (
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden vectors in testdata instead of comparing with them")

// Check compares bytes with testdata/<name>.hex.
func Check(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(wrap(hex.EncodeToString(got))), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if wrap(hex.EncodeToString(got)) != string(want) {
		t.Errorf("%s changed; this breaks every peer that runs an older version. got\n%s", path, wrap(hex.EncodeToString(got)))
	}
}

func wrap(s string) string {
	var b strings.Builder
	for len(s) > 80 {
		b.WriteString(s[:80] + "\n")
		s = s[80:]
	}
	return b.String() + s + "\n"
}
