package peertest

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestNamesDecideKeys(t *testing.T) {
	if !Key(t, "a").Equals(Key(t, "a")) || Key(t, "a").Equals(Key(t, "b")) || NewKey(t).Equals(NewKey(t)) {
		t.Error("a name has two keys, or two names have one, or a new key is not new")
	}
	const want = "002408011220eae1c8793b5597c4b3f490e76ac31172c439690f8ee14142bb851a61f9a49f0e"
	if got := fmt.Sprintf("%x", string(ID(t, "a"))); got != want {
		t.Errorf("the ID of a is %s, not %s: golden files hold signatures of such keys", got, want)
	}
}

func TestAddresses(t *testing.T) {
	dial := func(address string) (net.Conn, error) {
		p := strings.Split(address, "/")
		if len(p) != 7 || p[5] != "p2p" {
			t.Fatalf("address %q", address)
		}
		return net.DialTimeout("tcp", p[2]+":"+p[4], time.Minute)
	}
	if c, err := dial(DeadAddr(t)); err == nil {
		c.Close()
		t.Error("something listens at a dead address")
	}
	c, err := dial(Answer(t, func(c net.Conn) { io.WriteString(c, "no node") }))
	if err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(c); string(said) != "no node" || err != nil {
		t.Errorf("%q, %v", said, err)
	}
	c.Close()
	if c, err = dial(Silent(t)); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "hello")
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == io.EOF {
		t.Errorf("a silent address: %d bytes, %v", n, err)
	}
	c.Close()
}
