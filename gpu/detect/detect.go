// Package detect owns the choice of devices: it turns what an owner asks for into open devices, and says in words what
// it found. It refuses to know what the devices are used for.
package detect

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/cpu"
	"github.com/capacloud/capanode/gpu/fake"
	"github.com/capacloud/capanode/gpu/nvml"
)

// ErrSelector reports a device selector that cannot be read.
var ErrSelector = errors.New("cannot read device selector")

// Finding says in words what a machine has, for people.
type Finding struct {
	Found string // what was found, one line
	OK    bool   // a device is open
	Next  string // what to do to get more out of the machine; empty when there is nothing
}

// Open opens the devices that a selector names:
//
//	auto       every NVIDIA card, or the processors where there is none; never fails for want of a card
//	cpu        the processors
//	cuda       every NVIDIA card
//	cuda:N     the NVIDIA card with index N
//	fake:NAME  a made-up card that computes nothing, for rehearsals
//
// The finding is useful with an error too. Close every device.
func Open(ctx context.Context, selector string) ([]gpu.Device, Finding, error) {
	return openWith(ctx, selector, nvml.Open)
}

func openWith(ctx context.Context, selector string, cards func() ([]gpu.Device, error)) ([]gpu.Device, Finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, Finding{}, fmt.Errorf("gpu: open %q: %w", selector, err)
	}
	kind, rest, colon := strings.Cut(selector, ":")
	switch {
	case selector == "auto":
		return auto(cards)
	case selector == "cpu":
		return processors("")
	case selector == "cuda":
		return cuda(-1, cards)
	case kind == "cuda" && colon:
		index, err := strconv.ParseUint(rest, 10, 10)
		if err != nil {
			return nil, Finding{}, fmt.Errorf("gpu: %w: %q: %q is no card number", ErrSelector, selector, rest)
		}
		return cuda(int(index), cards)
	case kind == "fake" && colon:
		return rehearsal(rest)
	}
	return nil, Finding{}, fmt.Errorf("gpu: %w: %q: write auto, cpu, cuda, cuda:0 or fake:NAME", ErrSelector, selector)
}

func auto(cards func() ([]gpu.Device, error)) ([]gpu.Device, Finding, error) {
	devices, err := cards()
	if err == nil && len(devices) > 0 {
		return devices, found(devices), nil
	}
	why := "no NVIDIA card"
	if err != nil {
		why = "no usable NVIDIA card (" + err.Error() + ")"
	}
	return processors(why)
}

// processors opens the CPU; why says what is missing, if anything is.
func processors(why string) ([]gpu.Device, Finding, error) {
	d, err := cpu.Open(cpu.Options{})
	if err != nil {
		return nil, Finding{Found: "the processors cannot be described"}, err
	}
	finding := found([]gpu.Device{d})
	if why != "" {
		finding.Found = why + "; offering the processors: " + finding.Found
		finding.Next = "to offer a card, install the NVIDIA driver and use the full build; the processors work meanwhile"
	}
	return []gpu.Device{d}, finding, nil
}

// cuda opens one card, or all where index is negative.
func cuda(index int, cards func() ([]gpu.Device, error)) ([]gpu.Device, Finding, error) {
	const next = "install the NVIDIA driver (nvidia-smi must list the card), or select cpu"
	devices, err := cards()
	if err != nil {
		return nil, Finding{Found: err.Error(), Next: next}, fmt.Errorf("gpu: open NVIDIA cards: %w: %w: %s", gpu.ErrNoDevice, err, next)
	}
	if index < 0 && len(devices) > 0 {
		return devices, found(devices), nil
	}
	if index >= 0 && index < len(devices) {
		chosen := devices[index]
		if err := closeAll(append(devices[:index:index], devices[index+1:]...)); err != nil {
			return nil, Finding{Found: err.Error()}, errors.Join(err, chosen.Close())
		}
		return []gpu.Device{chosen}, found([]gpu.Device{chosen}), nil
	}
	have := fmt.Sprintf("%d NVIDIA cards", len(devices))
	err = fmt.Errorf("gpu: card %d: this machine has %s: %w: %s", max(index, 0), have, gpu.ErrNoDevice, next)
	return nil, Finding{Found: have, Next: next}, errors.Join(err, closeAll(devices))
}

func rehearsal(name string) ([]gpu.Device, Finding, error) {
	info := fake.Card(name, 0)
	if err := info.Check(); err != nil {
		return nil, Finding{}, fmt.Errorf("gpu: %w: fake:%s: %w", ErrSelector, name, err)
	}
	d := fake.New(fake.Script{Info: info, Frames: []fake.Frame{{Telemetry: gpu.Telemetry{
		Temperature: gpu.Known(55), Power: gpu.Known(200), Utilization: gpu.Known(0), MemoryUsed: gpu.Known(0),
	}}}})
	return []gpu.Device{d}, Finding{
		Found: "a made-up " + name + " that computes nothing", OK: true, Next: "select auto to use this machine's hardware",
	}, nil
}

func found(devices []gpu.Device) Finding {
	var lines []string
	for _, d := range devices {
		i := d.Info()
		line := fmt.Sprintf("%s, %.1f GiB", i.Name, float64(i.MemoryBytes)/(1<<30))
		if i.Kind == gpu.KindCPU {
			line = fmt.Sprintf("%s, %d cores", line, i.Cores)
		}
		lines = append(lines, line)
	}
	return Finding{Found: strings.Join(lines, "; "), OK: true}
}

func closeAll(devices []gpu.Device) error {
	var errs []error
	for _, d := range devices {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
