package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// talk lists a command line for each command that prints data and needs no other node, in an order that works on one home.
// BIG and DIR stand for an object's CID and a folder.
var talk = []string{
	"doctor", "version", "status", "config show", "config show --origin", "config path", "config schema", "init job some",
	"offers --wait 0", "offers --wait 0 --explain", "job list", "lease list", "ledger show", "ledger verify", "ledger statement",
	"storage add DIR/file", "storage ls", "storage get BIG DIR/copy", "storage pin BIG mine", "storage pin BIG soon --for 1h", "storage add --in-place DIR/placed", "storage verify", "storage verify BIG", "storage gc",
	"checkpoint list", "data add DIR/file --context 1", "data inspect DIR/file",
}

func TestCommandsPrintJSON(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	for _, format := range []string{"json", "jsonl"} {
		s := template(t)
		s.file("file", "some text")
		s.file("placed", "another text")
		t.Chdir(s.dir) // where init writes
		for _, line := range talk {
			args := strings.Fields(strings.NewReplacer("DIR", s.dir, "BIG", s.big).Replace(line))
			out, errs, code := capanode(t, append(args, "--home", s.home, "-o", format)...)
			if code != exitDone && args[0] != "doctor" { // which may find something to complain about here
				t.Errorf("%s: exit %d: %s", line, code, errs)
			}
			d := json.NewDecoder(strings.NewReader(out))
			values := 0
			for d.More() {
				var v any
				if err := d.Decode(&v); err != nil {
					t.Errorf("%s -o %s prints no JSON: %v in %s", line, format, err, out)
					break
				}
				values++
			}
			if format == "json" && values != 1 {
				t.Errorf("%s prints %d JSON values, want one", line, values)
			}
			if format == "jsonl" && strings.Count(out, "\n") != values {
				t.Errorf("%s prints %d values on %d lines", line, values, strings.Count(out, "\n"))
			}
		}
	}
}

// Without a terminal nothing moves a cursor and nothing has a colour, whether NO_COLOR asks for that or not; tools print
// their result and no progress.
func TestPlainOutputWithoutATerminal(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	for _, env := range []string{"NO_COLOR=1", "CLICOLOR_FORCE=1"} {
		s := template(t)
		s.file("file", strings.Repeat("some text\n", 1<<20))
		s.file("placed", "another text")
		t.Chdir(s.dir) // where init writes
		for _, line := range append(talk, "--help", "train --help", "nonsense") {
			args := strings.Fields(strings.NewReplacer("DIR", s.dir, "BIG", s.big).Replace(line))
			cmd := exec.Command(binary, append(args, "--home", s.home)...)
			cmd.Env = append(os.Environ(), "CAPANODE_MDNS=false", "CAPANODE_LISTEN=/ip4/127.0.0.1/tcp/0", "CAPANODE_NETWORK=e2e", env, "TERM=xterm-256color")
			var errs strings.Builder
			cmd.Stderr = &errs
			out, _ := cmd.Output() // nonsense fails
			if all := string(out) + errs.String(); strings.ContainsAny(all, "\x1b\r\b") {
				t.Errorf("%s: %s prints control characters: %q", env, line, all)
			}
			if strings.HasPrefix(line, "storage ") && errs.Len() > 0 {
				t.Errorf("%s says %q beside its result", line, errs.String())
			}
		}
	}
}
