package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"golang.org/x/sys/unix"

	"github.com/capacloud/capanode/gpu/detect"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// Verdict is the outcome of one check.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	Warn Verdict = "warn"
	Fail Verdict = "fail"
)

// Check is one line of the doctor's report.
type Check struct {
	Check   string  `json:"check"`
	Finding string  `json:"finding"`
	Verdict Verdict `json:"verdict"`
	Next    string  `json:"next,omitempty"` // what to do
}

// Doctor examines this machine and its place on the network. It changes nothing but an empty home.
func Doctor(ctx context.Context, u Use, device string) []Check {
	checks := []Check{checkHome(u), checkDisk(u), checkDevice(ctx, device), checkEngine(ctx)}
	checks = append(checks, checkPlugin(ctx, u.Config)...)
	return append(checks, checkNetwork(ctx, u), checkClock())
}

func checkHome(u Use) Check {
	c := Check{Check: "home", Verdict: OK, Finding: u.Home}
	h, err := OpenHome(u.Home)
	if errors.Is(err, ErrLocked) {
		c.Finding += ", a node is running on it"
		return c
	}
	if err != nil {
		return Check{"home", err.Error(), Fail, "pass --home DIR with a folder that you can write"}
	}
	defer h.Close()
	if _, err := p2p.LoadOrCreateIdentity(h.Path("identity")); err != nil {
		return Check{"home", err.Error(), Fail, "mend the key file's permissions; it is never overwritten"}
	}
	return c
}

func checkDisk(u Use) Check {
	var fs unix.Statfs_t
	if err := unix.Statfs(u.Home, &fs); err != nil {
		return Check{"disk", err.Error(), Warn, "create the home folder first"}
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	c := Check{Check: "disk", Verdict: OK, Finding: fmt.Sprintf("%.1f GiB free, quota %.1f GiB", float64(free)/(1<<30), float64(u.Config.Quota)/(1<<30))}
	if free < u.Config.Quota {
		c.Verdict, c.Next = Warn, "lower --quota or free some space: the store may hold up to its quota"
	}
	start := time.Now()
	path := filepath.Join(u.Home, ".doctor")
	if err := writeFile(path, make([]byte, 4096), 0o600); err != nil {
		return Check{"disk", err.Error(), Fail, "the home must be writable"}
	}
	os.Remove(path) // best effort: an empty probe
	c.Finding += fmt.Sprintf(", a synced write takes %s", time.Since(start).Round(100*time.Microsecond))
	return c
}

func checkDevice(ctx context.Context, selector string) Check {
	devices, f, err := detect.Open(ctx, selector)
	if err != nil {
		return Check{"device", err.Error(), Fail, f.Next}
	}
	for _, d := range devices {
		err = errors.Join(err, d.Close())
	}
	c := Check{Check: "device", Finding: f.Found, Verdict: OK, Next: f.Next}
	if err != nil {
		c.Verdict, c.Next = Warn, err.Error()
	}
	return c
}

// checkEngine trains a few steps.
func checkEngine(ctx context.Context) Check {
	w, err := newTrainingWork(gomlx.Device{}, 0, 0)
	if err != nil {
		return Check{"engine", err.Error(), Fail, "report this with the output of `capanode version`"}
	}
	defer w.engine.Close()
	if _, err := w.Step(ctx); err != nil {
		return Check{"engine", err.Error(), Fail, "report this with the output of `capanode version`"}
	}
	const steps = 3
	start := time.Now()
	for range steps {
		if _, err := w.Step(ctx); err != nil {
			return Check{"engine", err.Error(), Fail, "report this with the output of `capanode version`"}
		}
	}
	rate := float64(steps*len(w.batch.Inputs)) / time.Since(start).Seconds()
	c := Check{Check: "engine", Verdict: OK, Finding: fmt.Sprintf("%s, kernels %s, %d cores: %.0f tokens/s training a model of 1 M parameters", native.Numerics(), kernel.Best(), runtime.NumCPU(), rate)}
	if kernel.Best() == kernel.Portable {
		c.Verdict, c.Next = Warn, "this processor has no AVX2: training works, slowly; results are the same"
	}
	return c
}

// checkPlugin says for each card whether the engine computes on it; nothing on a machine without cards or plugin.
func checkPlugin(ctx context.Context, c Config) []Check {
	var checks []Check
	views, err := Engines(ctx, c)
	if err != nil {
		return []Check{{"cuda", err.Error(), Warn, "nvidia-smi says more about a card that does not answer"}}
	}
	for _, v := range views {
		switch {
		case v.Device == "cpu":
		case v.Usable:
			checks = append(checks, Check{"cuda", fmt.Sprintf("%s trains as %s; %s", v.Name, v.Numerics, v.Engine), OK, ""})
		case c.Plugin == "":
			checks = append(checks, Check{"cuda", v.Name + ": no plugin to compute with", Warn, pluginHint})
		default:
			checks = append(checks, Check{"cuda", v.Name + ": " + v.Engine, Fail, "check the plugin's libraries with ldd, and that its CUDA version suits driver " + v.Driver})
		}
	}
	if len(checks) == 0 && c.Plugin != "" {
		checks = append(checks, Check{"cuda", "a plugin is configured and there is no card", Warn, "install the NVIDIA driver (nvidia-smi must list the card)"})
	}
	return checks
}

// checkNetwork listens and joins the network for a moment, with a throw-away identity.
func checkNetwork(ctx context.Context, u Use) Check {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return Check{"network", err.Error(), Fail, ""}
	}
	host, err := p2p.NewHost(ctx, p2p.Config{Identity: key, Network: u.Config.Network, Role: p2p.Researcher, Listen: u.Config.Listen,
		Bootstrap: u.Config.Bootstrap, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return Check{"network", err.Error(), Fail, "choose another --listen address, or stop what uses the port"}
	}
	defer host.Close()
	if len(u.Config.Bootstrap) == 0 {
		return Check{"network", fmt.Sprintf("listens on %d addresses, no bootstrap node configured", len(host.Addrs())), Warn,
			"pass --bootstrap ADDR, or rely on --mdns inside one local network"}
	}
	reach, err := host.Bootstrap(ctx)
	if err != nil {
		return Check{"network", err.Error(), Fail, "check the addresses, the firewall, and that a bootstrap node runs"}
	}
	return Check{"network", fmt.Sprintf("%d of %d bootstrap nodes answer", reach.Reachable, reach.Total), OK, ""}
}

// checkClock looks for a clock that cannot be right; offers and leases carry times.
func checkClock() Check {
	now := time.Now()
	c := Check{"clock", now.UTC().Format(time.RFC3339), OK, ""}
	if now.Year() < 2026 || now.Year() > 2100 {
		c.Verdict, c.Next = Fail, "set the clock (NTP): peers refuse offers from the future and from the past"
	}
	return c
}
