package native

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// counters makes phases of which each checks that those before it have ended.
func counters(t *testing.T, phases, tasks int) ([]*phase, *[]atomic.Int64) {
	done := make([]atomic.Int64, phases)
	var all []*phase
	for i := range phases {
		p := &phase{}
		for range 2 { // two groups
			p.add(tasks, func(_ *worker, task int) {
				if i > 0 && done[i-1].Load() != int64(2*tasks) {
					t.Errorf("phase %d began after %d tasks of the one before", i, done[i-1].Load())
				}
				done[i].Add(1)
			})
		}
		all = append(all, p)
	}
	return all, &done
}

// A thousand steps of many short phases, for the race detector's eyes.
func TestPhasesRunInOrder(t *testing.T) {
	for _, workers := range []int{1, 2, 4} {
		phases, done := counters(t, 7, 3)
		c := newCrew(kernel.Set{}, workers, time.Minute)
		for range 1000 {
			for i := range *done {
				(*done)[i].Store(0)
			}
			if err := c.run(t.Context(), phases); err != nil {
				t.Fatal(err)
			}
			if got := (*done)[6].Load(); got != 6 {
				t.Fatalf("%d workers did %d tasks of the last phase, want 6", workers, got)
			}
		}
	}
}

func TestPanicIsAnError(t *testing.T) {
	phases, _ := counters(t, 3, 5)
	bad := &phase{}
	bad.add(8, func(_ *worker, task int) {
		if task == 5 {
			panic("out of range")
		}
	})
	c := newCrew(kernel.Set{}, 3, time.Minute)
	if err := c.run(t.Context(), append([]*phase{bad}, phases...)); err == nil || !strings.Contains(err.Error(), "out of range") {
		t.Errorf("error %v, want the panic's", err)
	}
}

func TestHungTaskIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p := &phase{}
		p.add(2, func(_ *worker, task int) {
			if task == 1 {
				<-release
			}
		})
		c := newCrew(kernel.Set{}, 2, time.Minute)
		start := time.Now()
		err := c.run(t.Context(), []*phase{p})
		if !errors.Is(err, engine.ErrHung) {
			t.Errorf("error %v, want ErrHung", err)
		}
		if took := time.Since(start); took > 2*time.Minute {
			t.Errorf("gave up after %v", took)
		}
		close(release)
		synctest.Wait()
	})
}

func TestCancelStopsBetweenTasks(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var done atomic.Int64
	p := &phase{}
	p.add(1<<40, func(*worker, int) {
		if done.Add(1) == 10 {
			cancel()
		}
	})
	if err := newCrew(kernel.Set{}, 2, time.Minute).run(ctx, []*phase{p}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}
