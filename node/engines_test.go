package node

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/fake"
	"github.com/capacloud/capanode/trainer/engine"
)

func TestPluginIsFoundWhereItIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"libother.so", "xla_cuda_plugin.so"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	plugin := filepath.Join(dir, "xla_cuda_plugin.so")
	for name, c := range map[string]struct {
		configured, search, want string
	}{
		"nowhere":               {"", "", ""},
		"configured":            {plugin, "/nowhere", plugin},
		"configured, not there": {"/nowhere/plugin.so", dir, ""},
		"in a folder":           {"", "/nowhere:" + dir, plugin},
		"as a file":             {"", plugin, plugin},
		"no plugin in there":    {"", t.TempDir(), ""},
	} {
		t.Setenv(pluginPathVariable, c.search)
		got, err := Config{Plugin: c.configured}.plugin()
		if got != c.want || (err != nil) != (c.want == "") || err != nil && !errors.Is(err, engine.ErrPlugin) {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

func TestOnlyCardsNeedAPlugin(t *testing.T) {
	t.Setenv(pluginPathVariable, "")
	card := fake.Card("NVIDIA H100", 0)
	if d, err := engineFor(Config{}, card); err != nil || d.Plugin != "" {
		t.Errorf("a made-up card: %+v, %v", d, err)
	}
	card.Kind, card.Capability = gpu.KindCUDA, "9.0"
	if _, err := engineFor(Config{}, card); !errors.Is(err, engine.ErrPlugin) {
		t.Errorf("a card without a plugin: %v, want ErrPlugin", err)
	}
	file := filepath.Join(t.TempDir(), "cuda.so")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := engineFor(Config{Plugin: file, Precision: "bf16"}, card)
	if err != nil || d.Plugin != file || numerics(d) != "xla-cuda/sm90/bf16" && numerics(d) != "xla-cpu/sm90/bf16" {
		t.Errorf("a card with a plugin: %+v computes %s, %v", d, numerics(d), err)
	}
}

func TestLocalProvidersTakeOneCardEach(t *testing.T) {
	if got := (LocalOptions{Device: "cuda"}).device(2); got != "cuda:1" {
		t.Errorf("the second provider takes %s, want cuda:1", got)
	}
	if got := (LocalOptions{}).device(2); got != "cpu" {
		t.Errorf("the second provider takes %s, want cpu", got)
	}
}
