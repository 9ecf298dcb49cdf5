package node

import "context"

func benchAveraging(ctx context.Context, r *BenchReport) error { return ErrTryLater }
func benchStorage(ctx context.Context, r *BenchReport) error   { return ErrTryLater }
func benchMarket(ctx context.Context, r *BenchReport) error    { return ErrTryLater }
