package gomlx

import (
	"os"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
)

// goDriver stands in for a device: the plain style on the Go backend.
func goDriver(Options) (driver, error) {
	b, err := newBackend()
	return driver{Backend: b, style: style{plain: true}}, err
}

func buildOn(open func(Options) (driver, error), d Device) enginetest.Build {
	return func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
		t.Helper()
		opts, err := Options{Seed: seed, Parallelism: parallelism, Device: d}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		e, err := newAccelerator(p, opts, open)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
		return e
	}
}

func TestAcceleratorSuite(t *testing.T) { enginetest.Suite(t, buildOn(goDriver, Device{})) }

func TestAcceleratorOperations(t *testing.T) {
	enginetest.OperationSuite(t, buildOn(goDriver, Device{}))
}

// TestPluginSuite runs where CAPANODE_TEST_PLUGIN names a PJRT plugin.
func TestPluginSuite(t *testing.T) {
	plugin := os.Getenv("CAPANODE_TEST_PLUGIN")
	if plugin == "" {
		t.Skip("CAPANODE_TEST_PLUGIN names no PJRT plugin")
	}
	enginetest.Suite(t, buildOn(openXLA, Device{Plugin: plugin}))
}
