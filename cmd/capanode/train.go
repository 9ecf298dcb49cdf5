package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/trainer/job"
)

func (a *app) trainCommand() *cobra.Command {
	var o node.TrainOptions
	var yes bool
	var maxPrice, budget string
	c := &cobra.Command{Use: "train JOB.yaml", Short: "Plan a job, lease slots, train, export", Args: args(1, 1),
		Long: "Train reads a job file, leases the slots that it asks for and follows the run to its end.\n\n" +
			"With --local N it starts N providers as child processes over loopback: the same path, no network needed.\n" +
			"A run that was interrupted goes on when the same command is given again.\n\n" +
			"With -o jsonl each event is one JSON object with a type: plan, lease, round, eval, checkpoint, receipt, peer,\nwarning, done or error.",
		RunE: func(cmd *cobra.Command, given []string) error {
			c, err := a.settings()
			if err != nil {
				return err
			}
			o.JobPath, o.Home, o.Config, o.Log, o.Stop = given[0], a.home, c, a.logger(c), a.stop
			if o.MaxPrice, err = amount("--max-price", maxPrice); err != nil {
				return err
			}
			if o.Budget, err = amount("--budget", budget); err != nil {
				return err
			}
			if o.Local > 0 {
				if o.Binary, err = os.Executable(); err != nil {
					return fmt.Errorf("find this program: %w", err)
				}
			}
			screen := a.trainScreen()
			o.Emit = screen.show
			if !yes && o.Local == 0 && a.format == "table" && term.IsTerminal(int(os.Stdin.Fd())) {
				o.Confirm = a.confirm
			}
			return node.Train(cmd.Context(), o)
		}}
	f := c.Flags()
	f.IntVar(&o.Local, "local", 0, "start so many providers on this machine")
	f.StringVar(&o.LocalDevice, "device", "cpu", "what the providers of --local compute on: cpu, or cuda for one card each")
	f.IntVar(&o.Peers, "peers", 0, "slots to lease (over market.peers)")
	f.StringVar(&maxPrice, "max-price", "", "dearest offer to take, credits per slot-hour (over market.max_price)")
	f.StringVar(&budget, "budget", "", "most credits to spend on the run (over market.budget)")
	f.BoolVar(&o.DryRun, "dry-run", false, "print the plan and stop")
	f.BoolVar(&o.CompareAlone, "compare-alone", false, "when the run is over, train the same model by one peer on this machine, in as many steps, and print both losses")
	f.BoolVar(&yes, "yes", false, "do not ask before leasing")
	f.StringVar(&o.Out, "out", "", "folder for the trained model (default NAME-model)")
	return c
}

// confirm asks on the terminal; anything but n starts.
func (a *app) confirm() bool {
	fmt.Fprint(a.err, "start? [Y/n] ")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err == nil && !strings.HasPrefix(strings.ToLower(strings.TrimSpace(line)), "n")
}

// trainScreen shows a run's events: JSON lines, or lines for people.
type trainScreen struct {
	a        *app
	rounds   int    // shown
	stride   uint64 // steps between two lines, where rounds are shorter than that; 0 shows every round
	shown    uint64 // steps until the last line
	up, down uint64 // bytes since then
	tenth    uint64 // of the comparison, that was told last
}

// lineSteps is the most steps that pass before a line is shown though the rounds are shorter: those of gradients take one.
const lineSteps = 10

func (a *app) trainScreen() *trainScreen { return &trainScreen{a: a} }

func (s *trainScreen) show(event any) {
	if s.a.format == "jsonl" {
		_ = json.NewEncoder(s.a.out).Encode(event) // a closed pipe must not stop the run
		return
	}
	switch e := event.(type) {
	case node.PlanEvent:
		s.plan(e)
	case node.LeaseEvent:
		s.lease(e)
	case node.RoundEvent:
		s.round(e)
	case node.EvalEvent:
		s.a.say("eval    held-out loss %.4f nats per token, %.3f bits per byte, over %s tokens", e.Loss, e.BitsPerByte, count(int64(e.Tokens)))
	case node.CheckpointEvent:
		s.a.say("model   %s  round %d, the same from %d peers, %s", e.Checkpoint, e.Round, e.Peers, size(e.Bytes))
	case node.PeerEvent:
		s.a.say("peer    %s  %s  %s", short(e.Peer), e.State, e.Detail)
	case node.AloneEvent:
		s.alone(e)
	case node.WarningEvent:
		s.a.say("warning %s", oneLine(e.Warning))
	case node.DoneEvent:
		s.done(e)
	}
}

func (s *trainScreen) plan(e node.PlanEvent) {
	if e.Pace == job.PaceAuto {
		s.stride = lineSteps
	}
	say := s.a.say
	again := ""
	if e.Resumed {
		again = "  (continued)"
	}
	say("run     %s%s", e.Run, again)
	say("model   %s, %s parameters, %s of memory for each member", e.Model, count(e.Parameters), size(e.MemoryBytes))
	if e.Init != "" {
		say("start   from %s", e.Init)
	}
	if e.Trained < e.Parameters {
		say("trained %s parameters, %.2g %% of the model; the rest stays as it is and never travels in rounds", count(e.Trained), 100*float64(e.Trained)/float64(e.Parameters))
	}
	say("data    %s tokens in %d shards, %s held out  %s", count(int64(e.TrainTokens)), e.Shards, count(int64(e.HeldOut)), e.Dataset)
	say("work    %d rounds × %d steps × %d peers = %s tokens, %s work units", e.Rounds, e.LocalSteps, e.Peers, count(int64(e.Tokens)), count(int64(e.WorkUnits)))
	if ring := 64 * float64(e.Peers-1) / float64(e.Peers); e.Pace == job.PaceAuto && e.Bits > 0 && e.Peers > 1 {
		say("pace    up to %.3g bits per parameter and step to each peer, 1/%.0f of data-parallel", e.Bits, ring/e.Bits)
	}
	if e.Resumed && e.Offers == 0 {
		return
	}
	say("book    %d offers → %d match, %d needed%s", e.Offers, e.Matching, e.Peers, rejections(e.Rejected))
	cost := fmt.Sprintf("%.6f to %.6f credits", e.CostLow, e.CostHigh)
	if e.Budget > 0 {
		cost += fmt.Sprintf(", budget %.6f", e.Budget)
	}
	say("cost    %s, about %s of training", cost, (time.Duration(e.SecondsGuess) * time.Second).String())
}

// rejections lists why offers do not match, the most frequent reason first.
func rejections(by map[string]int) string {
	if len(by) == 0 {
		return ""
	}
	var reasons []string
	for r := range by {
		reasons = append(reasons, r)
	}
	sort.Slice(reasons, func(i, j int) bool {
		if by[reasons[i]] != by[reasons[j]] {
			return by[reasons[i]] > by[reasons[j]]
		}
		return reasons[i] < reasons[j]
	})
	for i, r := range reasons {
		reasons[i] = fmt.Sprintf("%d %s", by[r], r)
	}
	return "; rejected: " + strings.Join(reasons, ", ")
}

func (s *trainScreen) lease(e node.LeaseEvent) {
	detail := ""
	switch {
	case e.Resumed:
		detail = "continued"
	case e.Milliseconds > 0:
		detail = fmt.Sprintf("after %.0f ms", e.Milliseconds)
	case e.Reason != "":
		detail = fmt.Sprintf("%s, spent %.6f", e.Reason, e.Spent)
	}
	s.a.say("lease   %s  %s  %s  %.4f credits/h  %s  %s", short(e.Lease), short(e.Peer), e.Device, e.Price, e.State, detail)
}

func (s *trainScreen) round(e node.RoundEvent) {
	s.up, s.down = s.up+e.BytesUp, s.down+e.BytesDown
	if e.Step > s.shown && e.Step < s.shown+s.stride && e.Step < e.Steps && s.rounds > 0 {
		return
	}
	if s.rounds%20 == 0 {
		s.a.say("%8s %9s %9s %9s %6s %10s %10s %11s %8s", "round", "loss", "tokens", "tokens/s", "peers", "up", "down", "spent", "left")
	}
	s.rounds++
	defer func() { s.shown, s.up, s.down = e.Step, 0, 0 }()
	s.a.say("%4d/%-3d %9.4f %9s %9.0f %6d %10s %10s %11.6f %8s", e.Round, e.Rounds, e.Loss, count(int64(e.Tokens)), e.TokensPerSecond,
		e.Peers, size(int64(s.up)), size(int64(s.down)), e.Spent, (time.Duration(e.ETASeconds) * time.Second).String())
}

func (s *trainScreen) alone(e node.AloneEvent) {
	if !e.Ended {
		if tenth := max(e.Steps/10, 1); e.Step/tenth != s.tenth {
			s.tenth = e.Step / tenth
			s.a.say("alone   step %d of %d by one peer, %.0f s", e.Step, e.Steps, e.Seconds)
		}
		return
	}
	s.a.say("alone   held-out loss %.4f nats per token by one peer in the same %d steps, %s tokens", e.Loss, e.Steps, count(int64(e.Tokens)))
	s.a.say("        held-out loss %.4f nats per token by the run, %s tokens: %.1f %% below", e.RunLoss, count(int64(e.RunTokens)), 100*e.Improvement)
}

func (s *trainScreen) done(e node.DoneEvent) {
	s.a.say("done    loss %.4f, held-out %.4f, %s tokens in %d rounds, %.1f s, %d replaced", e.FinalLoss, e.ValLoss, count(int64(e.Tokens)), e.Rounds, e.Seconds, e.Replaced)
	if e.Bytes > 0 {
		s.a.say("bytes   %s of updates fetched; data-parallel would have moved %s, %.0f times as much", size(int64(e.Bytes)), size(int64(e.RingBytes)),
			float64(e.RingBytes)/float64(e.Bytes))
	}
	s.a.say("paid    %.6f credits for %s verified work units", e.Spent, count(int64(e.WorkUnits)))
	if e.Out != "" {
		s.a.say("model   %s  in %s", e.Checkpoint, e.Out)
		if e.Adapter != "" {
			s.a.say("adapter in %s; the model above has it merged", e.Adapter)
		}
		s.a.say("next    capanode sample %s \"func \"", e.Out)
	}
	_ = s.a.print(e, table{rows: [][]string{{e.Checkpoint}}}) // the result alone goes to standard output
}
