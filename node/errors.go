package node

import "errors"

// What can go wrong, as kinds that map to one exit code each. Rooms below have their own; these are the node's.
var (
	// ErrUsage reports a request that makes no sense.
	ErrUsage = errors.New("usage")
	// ErrJob reports a job that cannot run as written.
	ErrJob = errors.New("job cannot run")
	// ErrNotFound reports that no such object, run or lease is known.
	ErrNotFound = errors.New("not found")
	// ErrNotAllowed reports a missing permission.
	ErrNotAllowed = errors.New("not allowed")
	// ErrNoOffers reports that too few offers match.
	ErrNoOffers = errors.New("not enough offers match")
	// ErrBudget reports that the budget is spent.
	ErrBudget = errors.New("budget exhausted")
	// ErrPartly reports work that ended with a part of it done.
	ErrPartly = errors.New("only partly done")
	// ErrTryLater reports a passing condition.
	ErrTryLater = errors.New("try again later")
	// ErrInterrupted reports a stop that was asked for; everything is settled.
	ErrInterrupted = errors.New("interrupted after settling; the same command continues the run")
)
