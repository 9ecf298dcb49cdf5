//go:build !(cgo && linux)

package gomlx

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// openXLA says that this build cannot load plugins.
func openXLA(o Options) (driver, error) {
	return driver{}, fmt.Errorf("gomlx: plugin %s: %w: this program was built without cgo or not for Linux: use the full build", o.Device.Plugin, engine.ErrPlugin)
}

// Probe says that this build cannot load plugins.
func Probe(d Device) (string, error) {
	_, err := openXLA(Options{Device: d})
	return "", err
}
