package detect

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/fake"
)

func none() ([]gpu.Device, error) { return nil, fmt.Errorf("no library: %w", gpu.ErrUnsupported) }

// two is a machine with two cards; closed counts how many of them were closed.
type two struct{ cards []*fake.Device }

func (m *two) open() ([]gpu.Device, error) {
	var devices []gpu.Device
	for i := range 2 {
		info := fake.Card("NVIDIA GeForce RTX 4090", i)
		info.Kind = gpu.KindCUDA
		d := fake.New(fake.Script{Info: info})
		m.cards = append(m.cards, d)
		devices = append(devices, d)
	}
	return devices, nil
}

func (m *two) closed() (n int) {
	for _, d := range m.cards {
		if _, err := d.Telemetry(context.Background()); errors.Is(err, gpu.ErrClosed) {
			n++
		}
	}
	return n
}

func TestAutoWithoutCardsOffersTheProcessors(t *testing.T) {
	devices, finding, err := openWith(context.Background(), "auto", none)
	if err != nil {
		t.Fatal(err)
	}
	if len(devices) != 1 || devices[0].Info().Kind != gpu.KindCPU {
		t.Fatalf("devices %v", devices)
	}
	if !finding.OK || finding.Next == "" || !strings.Contains(finding.Found, "no library") || !strings.Contains(finding.Found, devices[0].Info().Name) {
		t.Errorf("finding %+v", finding)
	}
}

func TestAutoOnThisMachine(t *testing.T) {
	devices, finding, err := Open(context.Background(), "auto")
	if err != nil || len(devices) == 0 || !finding.OK {
		t.Fatalf("%v, %+v, %v", devices, finding, err)
	}
	if err := closeAll(devices); err != nil {
		t.Error(err)
	}
}

func TestSelectors(t *testing.T) {
	for _, c := range []struct {
		selector string
		devices  int
		index    int
		closed   int
		want     error
	}{
		{"auto", 2, 0, 0, nil},
		{"cuda", 2, 0, 0, nil},
		{"cuda:0", 1, 0, 1, nil},
		{"cuda:1", 1, 1, 1, nil},
		{"cuda:2", 0, 0, 2, gpu.ErrNoDevice},
		{"cpu", 1, 0, 0, nil},
		{"fake:RTX 9999", 1, 0, 0, nil},
		{"fake:", 0, 0, 0, ErrSelector},
		{"cuda:", 0, 0, 0, ErrSelector},
		{"cuda:-1", 0, 0, 0, ErrSelector},
		{"cuda:99999", 0, 0, 0, ErrSelector},
		{"", 0, 0, 0, ErrSelector},
		{"tpu:0", 0, 0, 0, ErrSelector},
	} {
		m := &two{}
		devices, finding, err := openWith(context.Background(), c.selector, m.open)
		if !errors.Is(err, c.want) || len(devices) != c.devices || m.closed() != c.closed {
			t.Errorf("%q: %d devices, %d closed, %v", c.selector, len(devices), m.closed(), err)
			continue
		}
		if err == nil && (!finding.OK || devices[0].Info().Index != c.index) {
			t.Errorf("%q: %+v, %+v", c.selector, finding, devices[0].Info())
		}
	}
}

func TestCardWithoutDriverSaysWhatToDo(t *testing.T) {
	_, finding, err := openWith(context.Background(), "cuda:0", none)
	if !errors.Is(err, gpu.ErrNoDevice) || !errors.Is(err, gpu.ErrUnsupported) {
		t.Fatal(err)
	}
	if finding.OK || finding.Next == "" || !strings.Contains(err.Error(), finding.Next) {
		t.Errorf("finding %+v, error %v", finding, err)
	}
}
