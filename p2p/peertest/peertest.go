// Package peertest owns the peers that tests make up: keys that a name decides, keys that nobody else has, and addresses where
// no node is. It refuses to be used by the program, and to know package p2p, whose own tests use it.
package peertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"strconv"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Key returns the key that belongs to a name, always the same: golden files hold its signatures.
func Key(t testing.TB, name string) crypto.PrivKey {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	return key(t, bytes.NewReader(seed[:]))
}

// ID returns the ID of the [Key] that belongs to a name.
func ID(t testing.TB, name string) peer.ID {
	t.Helper()
	return id(t, Key(t, name))
}

// NewKey returns a key that nobody had before.
func NewKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	return key(t, rand.Reader)
}

func key(t testing.TB, seed io.Reader) crypto.PrivKey {
	t.Helper()
	k, _, err := crypto.GenerateEd25519Key(seed)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func id(t testing.TB, k crypto.PrivKey) peer.ID {
	t.Helper()
	p, err := peer.IDFromPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Nobody returns the end of the address of a peer that does not exist: /p2p/ID.
func Nobody(t testing.TB) string {
	t.Helper()
	return "/p2p/" + id(t, NewKey(t)).String()
}

// DeadAddr returns the address of a peer that does not exist, at a port of this machine where nothing listens.
func DeadAddr(t testing.TB) string {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return address(t, l)
}

// Answer listens on a free port of this machine, treats every connection by say, and closes it then or at the end of the test. It
// returns the address as that of a peer that does not exist.
func Answer(t testing.TB, say func(net.Conn)) string {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				defer context.AfterFunc(t.Context(), func() { c.Close() })()
				say(c)
			}()
		}
	}()
	return address(t, l)
}

// Silent returns an address like that of [Answer], where connections are taken and nothing is ever said.
func Silent(t testing.TB) string {
	t.Helper()
	return Answer(t, func(c net.Conn) { io.Copy(io.Discard, c) })
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func address(t testing.TB, l net.Listener) string {
	t.Helper()
	return "/ip4/127.0.0.1/tcp/" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port) + Nobody(t)
}
