//go:build cgo && linux

package gomlx

/*
#cgo LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
*/
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"unsafe"

	"github.com/gomlx/compute"
	"github.com/gomlx/go-xla/compute/xla"
	"github.com/gomlx/go-xla/pjrt"
	"github.com/gomlx/go-xla/stablehlo"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// memoryShare is how much of a device's memory XLA's allocator may grow to. The rest is for the driver and libraries.
const memoryShare = 0.92

// openXLA loads the plugin and starts its client on the device. Nothing is downloaded: the plugin is a file that is there.
func openXLA(o Options) (driver, error) {
	d := o.Device
	if err := checkPlugin(d.Plugin); err != nil {
		return driver{}, fmt.Errorf("gomlx: plugin %s: %w: %w", d.Plugin, engine.ErrPlugin, err)
	}
	prepare(d.Plugin)
	options := pjrt.NamedValuesMap{}
	if platform(d.Plugin) == "cuda" {
		options["preallocate"] = false
		options["memory_fraction"] = float32(memoryShare)
		options["visible_devices"] = []int64{int64(d.Index)}
	}
	// The short mantissa of TF32 is not what fp32 promises. For products of bf16 on CUDA the binding asks for the highest
	// precision unless TF32 is allowed, which then means nothing.
	half := d.Precision == BF16
	config := fmt.Sprintf("%s,tf32=%t", d.Plugin, half && platform(d.Plugin) == "cuda")
	b, err := xla.NewWithOptions(config, options)
	if err != nil {
		return driver{}, fmt.Errorf("gomlx: plugin %s: %w: %w", d.Plugin, engine.ErrPlugin, err)
	}
	if b.NumDevices() == 0 {
		b.Finalize()
		return driver{}, fmt.Errorf("gomlx: plugin %s: %w: it finds no device %d", d.Plugin, engine.ErrPlugin, d.Index)
	}
	return driver{
		Backend: b, alias: aliasInXLA, footprint: footprintInXLA,
		style: style{plain: true, half: half, flash: half && b.IsCUDA()},
	}, nil
}

// Probe loads the plugin, starts its client and says what it found.
func Probe(d Device) (string, error) {
	var found string
	err := guard("probe "+d.Plugin, func() error {
		driver, err := openXLA(Options{Device: d})
		if err != nil {
			return err
		}
		defer driver.Finalize()
		found = driver.Description() + "; device 0: " + driver.DeviceDescription(0)
		if p, err := pjrt.GetPlugin(d.Plugin); err == nil {
			found += fmt.Sprintf("; attributes %v", p.Attributes())
		}
		return nil
	})
	return found, err
}

// checkPlugin wants an absolute path of a file. The library would search and install for anything else.
func checkPlugin(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, ',') {
		return fmt.Errorf("write an absolute path without commas")
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is no file")
	}
	return nil
}

// prepare sets what XLA reads from the environment when it is loaded, leaving alone what the owner has set, and loads the
// CUDA libraries that lie beside a plugin in the layout of NVIDIA's Python packages.
func prepare(plugin string) {
	xla.EnableAutoInstall(false)
	set := func(name, value string) {
		if os.Getenv(name) == "" {
			_ = os.Setenv(name, value) // cannot fail: neither name nor value holds a zero byte
		}
	}
	set(xla.NoAutoInstallEnv, "1")
	set("GOPJRT_CUDA_CHECKS", "0")         // would warn about a layout that it does not know
	set("CUDA_DEVICE_ORDER", "PCI_BUS_ID") // the order in which the driver's own library counts
	set("TF_CPP_MIN_LOG_LEVEL", "2")       // errors
	if platform(plugin) != "cuda" {
		return
	}
	packages := filepath.Join(filepath.Dir(plugin), "..", "..", "nvidia")
	if data, err := filepath.Glob(filepath.Join(packages, "*", "nvvm", "libdevice", "libdevice.10.bc")); err == nil && len(data) > 0 {
		set("XLA_FLAGS", "--xla_gpu_cuda_data_dir="+filepath.Clean(filepath.Join(data[0], "..", "..", "..")))
	}
	for _, name := range cudaLibraries {
		if found, err := filepath.Glob(filepath.Join(packages, "*", "lib", name)); err == nil && len(found) > 0 {
			preload(filepath.Clean(found[0]))
		}
	}
}

// cudaLibraries are what XLA opens by name once it needs them, in an order in which each finds those before it.
var cudaLibraries = []string{
	"libcudart.so.*", "libnvJitLink.so.*", "libnvrtc.so.*", "libcublasLt.so.*", "libcublas.so.*", "libnccl.so.*", "libcupti.so.*",
	"libcusparse.so.*", "libcusolver.so.*", "libcufft.so.*", "libnvshmem_host.so.*", "libcudnn.so.*",
}

// preload keeps a shared library loaded, so that later opens by its name find it. One that does not load is left to XLA,
// which says what it misses.
func preload(path string) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	C.dlopen(name, C.RTLD_NOW|C.RTLD_LOCAL)
}

// aliasInXLA says that an output may take over the memory of a donated input. Without that XLA would need both. The
// binding has no call for it; the attribute is a public field of a value behind a private one.
func aliasInXLA(input *ml.Node, output int) {
	values := ml.InternalBackendOutputs(input)
	if len(values) != 1 {
		return
	}
	field := reflect.Indirect(reflect.ValueOf(values[0])).FieldByName("value")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*stablehlo.Value]() {
		return
	}
	value := (*stablehlo.Value)(field.UnsafePointer())
	if value.Attributes == nil {
		value.Attributes = map[string]any{}
	}
	value.Attributes["tf.aliasing_output"] = int32(output)
}

// footprintInXLA is the compiler's count of an execution's memory.
func footprintInXLA(exec compute.Executable) int64 {
	field := reflect.Indirect(reflect.ValueOf(exec)).FieldByName("exec")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*pjrt.LoadedExecutable]() {
		return 0
	}
	s := (*pjrt.LoadedExecutable)(field.UnsafePointer()).OnDeviceMemoryUsageStats
	return int64(s.Inputs + s.Outputs - s.Aliases + s.Temporary + s.GeneratedCode)
}
