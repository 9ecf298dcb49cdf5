package native

import (
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
)

// build makes an executor that is closed with the test.
func build(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
	t.Helper()
	e, err := New(p, Options{Seed: seed, Parallelism: parallelism})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestOperations(t *testing.T) { enginetest.OperationSuite(t, build) }

func TestSuite(t *testing.T) { enginetest.Suite(t, build) }
