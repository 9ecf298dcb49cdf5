package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/node"
)

func (a *app) provideCommand() *cobra.Command {
	o := node.ProvideOptions{}
	var price, floor, rate, schedule string
	var withParent bool
	c := &cobra.Command{Use: "provide", Short: "Sell slots of this machine", Args: args(0, 0),
		Long: "Provide measures the device, announces its slots and works for whoever leases them.\n\n" +
			"The first Ctrl-C ends the round under way, settles and closes the leases; the second stops at once. A provider that\nwas killed resumes its leases and its training from the last snapshot when it is started again.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.settings()
			if err != nil {
				return err
			}
			if o.Price, err = amount("--price", price); err != nil {
				return err
			}
			if o.Floor, err = amount("--floor", floor); err != nil {
				return err
			}
			if o.WorkRate, err = amount("--work-rate", rate); err != nil {
				return err
			}
			if o.Schedule, err = gpu.ParseSchedule(schedule); err != nil {
				return fmt.Errorf("%w: --schedule: %w", errUsage, err)
			}
			o.Home, o.Config, o.Log, o.Stop, o.Emit = a.home, c, a.logger(c), a.stop, a.showProvider
			ctx := cmd.Context()
			if withParent {
				ctx = untilEnd(ctx, os.Stdin)
			}
			err = node.Provide(ctx, o)
			if ctx.Err() != nil && cmd.Context().Err() == nil {
				return nil // the parent has settled, or it comes back to the leases as they are
			}
			return err
		}}
	f := c.Flags()
	f.StringVar(&o.Device, "device", "auto", "auto, cpu or cuda:0")
	f.IntVar(&o.Slots, "slots", 1, "slots to sell")
	f.IntVar(&o.Threads, "threads", 0, "processors for one slot (default: all, divided by the slots)")
	f.StringVar(&price, "price", "0.05", "credits per slot and hour")
	f.StringVar(&floor, "floor", "", "lowest price for interruptible use")
	f.StringVar(&rate, "work-rate", "1", "credits per million work units (a work unit is 10⁹ floating-point operations)")
	f.DurationVar(&o.MaxLease, "max-lease", 24*time.Hour, "longest lease")
	f.StringVar(&o.Region, "region", "", "coarse place to show in the offer")
	f.Float64Var(&o.MaxTemp, "max-temp", 0, "°C from which the slots rest (default 83)")
	f.StringVar(&schedule, "schedule", "", `hours of sale, such as "mon-fri 18:00-08:00, sat-sun 00:00-24:00"`)
	f.BoolVar(&withParent, "exit-with-parent", false, "stop at once when standard input ends")
	_ = f.MarkHidden("exit-with-parent") // cannot fail: the flag is defined above
	return c
}

// untilEnd returns a context that ends with the reader.
func untilEnd(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, r) // any end will do
		cancel()
	}()
	return ctx
}

func (a *app) showProvider(event any) {
	e, ok := event.(node.ProviderEvent)
	if a.format != "table" || !ok {
		_ = json.NewEncoder(a.out).Encode(event) // a closed pipe must not stop the provider
		return
	}
	switch e.State {
	case "ready":
		a.say("%s  %s  %d slots, %d free  %.1f GFLOP/s each  %.4f credits/h", e.Peer, e.Device, e.Slots, e.Free, float64(e.MFLOPS)/1e3, e.Price)
		a.say("listens on %s", e.Address)
	case "round":
		a.say("round %d  loss %.4f  %s tokens  earned %.6f", e.Round, e.Loss, count(int64(e.Tokens)), e.Earned)
	case "stopped":
		a.say("stopped  earned %.6f credits in all", e.Earned)
	default:
		a.say("%-8s lease %s  run %s  %s", e.State, e.Lease, short(e.Run), e.Detail)
	}
}
