package main

import (
	"errors"
	"io/fs"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/detect"
	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/journal"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
	"github.com/capacloud/capanode/trainer/engine"
	enginebench "github.com/capacloud/capanode/trainer/engine/bench"
	"github.com/capacloud/capanode/trainer/evaluate"
	"github.com/capacloud/capanode/trainer/generate"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/model"
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
	exitNoEngine    = 16
	exitTryLater    = 75
	exitInterrupted = 130
)

// errUsage reports a command line that does not parse.
var errUsage = node.ErrUsage

// errStopped is what a second Ctrl-C leaves.
var errStopped = errors.New("stopped at once; nothing was settled: the same command goes on from here")

// exitRule says which code a kind of error has.
type exitRule struct {
	kind  error            // stands for the kind in docs/exit-codes.md: the sentinel, or a typed error's zero value
	holds func(error) bool // tells whether an error is of that kind
	code  int
}

// is is the rule for a sentinel.
func is(kind error, code int) exitRule {
	return exitRule{kind, func(err error) bool { return errors.Is(err, kind) }, code}
}

// as is the rule for a type.
func as[E error](zero E, code int) exitRule {
	return exitRule{zero, func(err error) bool { var e E; return errors.As(err, &e) }, code}
}

// exitRules maps errors to exit codes; the first match wins, so that what a command was about comes before the causes that
// its error may list.
var exitRules = []exitRule{
	is(errStopped, exitInterrupted),
	is(node.ErrInterrupted, exitInterrupted),
	is(node.ErrPartly, exitPartly),
	is(node.ErrBudget, exitBudget),
	is(meter.ErrBudget, exitBudget),
	is(storage.ErrCorrupt, exitFailed), // even when the repair failed for want of a peer
	is(storage.ErrDamaged, exitFailed), // even when what is wrong is that a file does not exist
	is(journal.ErrDamaged, exitFailed),

	is(node.ErrUsage, exitUsage),
	is(node.ErrConfig, exitUsage),
	is(node.ErrJob, exitUsage),
	is(job.ErrSyntax, exitUsage),
	is(model.ErrSpec, exitUsage),
	is(model.ErrPreset, exitUsage),
	is(engine.ErrPlugin, exitNoEngine),
	is(engine.ErrMemory, exitUsage),
	is(enginebench.ErrPart, exitUsage),
	is(data.ErrEmpty, exitUsage),
	is(data.ErrOptions, exitUsage),
	is(data.ErrNoValidation, exitUsage),
	is(evaluate.ErrOptions, exitUsage),
	is(evaluate.ErrNothing, exitUsage),
	is(node.ErrTokenizer, exitUsage),
	is(data.ErrVocabulary, exitUsage),
	is(corpus.ErrOptions, exitUsage),
	is(corpus.ErrField, exitUsage),
	is(corpus.ErrFormat, exitUsage),
	is(quality.ErrRule, exitUsage),
	as(&data.TooSmallError{}, exitUsage),
	as(&query.SyntaxError{}, exitUsage),
	is(credit.ErrSyntax, exitUsage),
	is(detect.ErrSelector, exitUsage),
	is(gpu.ErrSchedule, exitUsage),
	is(generate.ErrOptions, exitUsage),
	is(hf.ErrOccupied, exitUsage),
	is(storage.ErrExists, exitUsage),
	is(storage.ErrWrongKind, exitUsage),
	is(p2p.ErrConfig, exitUsage),
	is(transfer.ErrSeed, exitUsage),
	is(p2p.ErrOtherNetwork, exitUsage),

	is(node.ErrLocked, exitLocked),
	is(storage.ErrLocked, exitLocked),
	is(journal.ErrLocked, exitLocked),
	is(gpu.ErrBusy, exitLocked),
	is(p2p.ErrTwin, exitLocked),
	is(node.ErrNotAllowed, exitNotAllowed),
	is(p2p.ErrIdentityMode, exitNotAllowed),
	is(storage.ErrReadOnly, exitNotAllowed),
	is(fs.ErrPermission, exitNotAllowed),
	is(node.ErrNoOffers, exitNoOffers),
	is(market.ErrGang, exitNoOffers),
	is(p2p.ErrPortInUse, exitTryLater),
	is(p2p.ErrNoBootstrap, exitTryLater),
	is(node.ErrTryLater, exitTryLater),
	is(transfer.ErrNoProviders, exitNoSuchThing),
	is(storage.ErrNotFound, exitNoSuchThing),
	is(gpu.ErrNoDevice, exitNoSuchThing),
	is(node.ErrNotFound, exitNoSuchThing),
	is(fs.ErrNotExist, exitNoSuchThing),
	is(p2p.ErrNoProtocol, exitPeerTooOld),
}

// exitCode returns the documented code of an error.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	for _, r := range exitRules {
		if r.holds(err) {
			return r.code
		}
	}
	return exitFailed
}
