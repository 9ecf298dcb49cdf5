package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) offersCommand() *cobra.Command {
	o := node.OffersOptions{}
	var watch bool
	c := &cobra.Command{Use: "offers [QUERY]", Short: "Show the book of offers", Args: args(0, -1),
		Long: "Offers shows who sells what. A query such as 'vram>=24GB price<0.4 class in [4090, 3090]' filters; docs/query.md has the\ngrammar. --explain also lists what does not match, each with its reason.",
		RunE: func(cmd *cobra.Command, given []string) error {
			u, err := a.use()
			if err != nil {
				return err
			}
			o.Home, o.Config, o.Log, o.Query = u.Home, u.Config, u.Log, strings.Join(given, " ")
			for {
				b, err := node.Offers(cmd.Context(), o)
				if err != nil {
					return err
				}
				if err := a.print(b, bookTable(b, o.Explain)); err != nil {
					return err
				}
				a.say("%d offers, %d match%s", b.Known, b.Matched, rejections(b.Rejected))
				if b.Clock != "" {
					a.say("warning %s", b.Clock)
				}
				if !watch {
					return nil
				}
				select {
				case <-a.stop:
					return nil
				case <-cmd.Context().Done():
					return nil
				case <-time.After(2 * time.Second):
				}
			}
		}}
	f := c.Flags()
	f.StringVar(&o.Sort, "sort", "", "fields to order by, such as price or perf-")
	f.IntVar(&o.Limit, "limit", 0, "show so many (default all)")
	f.BoolVar(&o.Explain, "explain", false, "list rejected offers with the reason")
	f.BoolVar(&watch, "watch", false, "look again every two seconds")
	f.IntVar(&o.Wait, "wait", 0, "wait for so many matches")
	f.DurationVar(&o.Timeout, "timeout", 0, "how long to wait (default 30s with --wait, else 3s)")
	c.PreRun = func(*cobra.Command, []string) {
		if o.Timeout == 0 {
			o.Timeout = 3 * time.Second
			if o.Wait > 0 {
				o.Timeout = 30 * time.Second
			}
		}
	}
	return c
}

func bookTable(b node.Book, explain bool) table {
	t := table{head: []string{"PEER", "CLASS", "FREE", "MEMORY", "GFLOP/S", "CREDITS/H", "PER TFLOP/S·H", "PER M UNITS", "AGE"}}
	if explain {
		t.head = append(t.head, "REJECTED")
	}
	for _, o := range b.Offers {
		speed := fmt.Sprintf("%.1f", float64(o.MFLOPS)/1e3)
		if !o.Measured {
			speed += " claimed"
		}
		row := []string{short(o.Peer), o.Class, fmt.Sprintf("%d/%d", o.Slots, o.Total), size(int64(o.VRAMMiB) << 20), speed,
			fmt.Sprintf("%.4f", o.Price), fmt.Sprintf("%.4f", o.PerTFLOP), fmt.Sprintf("%.4f", o.Rate), fmt.Sprintf("%.0fs", o.Age)}
		if explain {
			row = append(row, o.Rejected)
		}
		t.rows = append(t.rows, row)
	}
	return t
}
