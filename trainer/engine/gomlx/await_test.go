package gomlx

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
)

func TestAwaitTurnsSilenceIntoErrHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		results, beats := make(chan error, 2), make(chan struct{}, 3)
		go func() {
			for range 3 { // progress postpones the verdict
				<-time.After(40 * time.Second)
				beats <- struct{}{}
			}
			results <- nil // one of two workers ends, the other never does
		}()
		start := time.Now()
		err := await(results, beats, 2, time.Minute, func() {})
		if !errors.Is(err, engine.ErrHung) {
			t.Errorf("error %v, want ErrHung", err)
		}
		if got, want := time.Since(start), 3*40*time.Second+time.Minute; got != want {
			t.Errorf("gave up after %v, want %v", got, want)
		}
	})
}

func TestAwaitStopsAtTheFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		results, stopped := make(chan error, 2), make(chan struct{})
		boom := errors.New("boom")
		results <- boom
		go func() {
			<-stopped
			results <- errors.New("cancelled")
		}()
		if err := await(results, nil, 2, time.Minute, func() { close(stopped) }); err != boom {
			t.Errorf("error %v, want the first", err)
		}
	})
}

func TestGuardTurnsPanicsIntoErrors(t *testing.T) {
	inner := errors.New("inner")
	if err := guard("test", func() error { panic(inner) }); !errors.Is(err, inner) {
		t.Errorf("error %v, want the panic's", err)
	}
	if err := guard("test", func() error { panic("text") }); err == nil {
		t.Error("a panic with a text gave no error")
	}
}

func TestChunksDependOnShapeOnly(t *testing.T) {
	for _, c := range []struct{ rows, context, lanes, want int }{
		{12, 64, 8, 6}, {8, 128, 8, 2}, {8, 256, 4, 2}, {1, 4096, 8, 1}, {5, 256, 8, 2}, {3, 1024, 8, 2}, {64, 64, 2, 32},
	} {
		if got := chunkRows(c.rows, c.context, c.lanes); got != c.want {
			t.Errorf("%d rows × %d tokens on %d lanes: chunks of %d rows, want %d", c.rows, c.context, c.lanes, got, c.want)
		}
	}
}
