//go:build !(cgo && linux)

package nvml

import (
	"fmt"

	"github.com/capacloud/capanode/gpu"
)

// Open says that this build cannot reach NVIDIA cards: the error is [gpu.ErrUnsupported].
func Open() ([]gpu.Device, error) {
	return nil, fmt.Errorf("nvml: this program was built without cgo or not for Linux: %w: use the full build", gpu.ErrUnsupported)
}
