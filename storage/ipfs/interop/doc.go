//go:build tools

// Package interop owns the test that Capanode and an unmodified kubo understand each other. It is a module of its own, so that
// kubo's dependencies stay out of the program's; nothing in it is imported by the program.
package interop

// kubo asks for a fork of go-libp2p by a replace directive, which counts in its own module only: this module asks for the release
// that the program uses.
import _ "github.com/ipfs/kubo/cmd/ipfs"
