package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/capacloud/capanode/node"
)

// The exit codes, documented in docs/exit-codes.md.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitNoSuchThing = 10
	exitLocked      = 11
	exitNotAllowed  = 12
	exitNoOffers    = 13
	exitBudget      = 14
	exitPeerTooOld  = 15
	exitTryLater    = 75
	exitInterrupted = 130
)

// errUsage reports a command line that does not parse.
var errUsage = errors.New("usage")

// exitCodes maps errors to exit codes; the first match wins.
var exitCodes = []struct {
	err  error
	code int
}{
	{errUsage, exitUsage},
	{node.ErrUsage, exitUsage},
	{node.ErrConfig, exitUsage},
	{node.ErrJob, exitUsage},
	{node.ErrInterrupted, exitInterrupted},
	{context.Canceled, exitInterrupted},
	{node.ErrPartly, exitPartly},
	{node.ErrLocked, exitLocked},
	{node.ErrNotAllowed, exitNotAllowed},
	{fs.ErrPermission, exitNotAllowed},
	{node.ErrNoOffers, exitNoOffers},
	{node.ErrBudget, exitBudget},
	{node.ErrPeerTooOld, exitPeerTooOld},
	{node.ErrTryLater, exitTryLater},
	{node.ErrNotFound, exitNoSuchThing},
	{fs.ErrNotExist, exitNoSuchThing},
}

// exitCode returns the documented code of an error.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	for _, e := range exitCodes {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return exitFailed
}
