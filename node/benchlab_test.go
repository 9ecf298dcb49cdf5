package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	trainerbench "github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/lab"
)

func TestComparisonIsTabulatedAndDrawn(t *testing.T) {
	case1 := func(family string, budget, share, loss float64) lab.Outcome {
		return lab.Outcome{Case: lab.Case{Family: family, Budget: budget, Method: lab.DeMo{Keep: 9, Decay: 0.5}}, Share: share, Loss: loss,
			Curve: []lab.Point{{Tokens: 100, Loss: 3}, {Tokens: 200, Loss: loss}}}
	}
	parallel := case1(lab.DataParallel, 0, 1, 1.9)
	parallel.Method = lab.Parallel{}
	c := trainerbench.Comparison{
		Conditions: "a small model",
		Front: []lab.Outcome{parallel, case1(lab.Ours, lab.Budgets[0], 0.09, 2.1), case1("other", lab.Budgets[0], 0.1, 2.0),
			case1(lab.Ours, lab.Budgets[2], 0.01, 2.2)},
		Parity: []trainerbench.Parity{{Peers: 4, Parallel: 1.9, Outcomes: []lab.Outcome{parallel, case1(lab.Ours, 0, 0.05, 1.995)}}},
	}
	front := frontTable(c)
	want := [][]string{
		{lab.Ours, "2.1000 (9 of 4096, decay 0.5)", "", "**2.2000 (9 of 4096, decay 0.5)**", "", ""},
		{"other", "**2.0000 (9 of 4096, decay 0.5)**", "", "", "", ""},
	}
	if !slices.EqualFunc(front.Rows, want, slices.Equal) || !strings.Contains(front.Title, "data-parallel: 1.9000") ||
		!slices.Equal(front.Head, []string{"method", "1/10", "1/30", "1/100", "1/300", "1/1000"}) {
		t.Errorf("front %+v", front)
	}
	parity := parityTable(c)
	want = [][]string{{"4", "data-parallel", "1.9000", "+0.0 %", "1/1", "0"}, {"4", "Capanode: 9 of 4096, decay 0.5", "1.9950", "+5.0 %", "1/20", "0"}}
	if !slices.EqualFunc(parity.Rows, want, slices.Equal) {
		t.Errorf("parity %+v", parity)
	}
	if p := frontPlot(c); len(p.Lines) != 3 || len(p.Lines[1].Points) != 2 || !p.X.Log {
		t.Errorf("plot against bytes: %+v", p)
	}
	if p := tokensPlot(c); len(p.Lines) != 3 || p.Lines[2].Name != "Capanode, 1/100" || p.Lines[2].Points[1] != [2]float64{200, 2.2} {
		t.Errorf("plot against tokens: %+v", p)
	}
}

func TestBenchText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(path, []byte("to be"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := benchText(t.Context(), path); err != nil || string(b) != "to be" {
		t.Errorf("%q (%v)", b, err)
	}
	if _, err := benchText(t.Context(), path+"/none"); err == nil {
		t.Error("a file that is not there was read")
	}
	b, err := benchText(t.Context(), "")
	if err != nil {
		t.Skip(err)
	}
	if len(b) < 1e6 || !strings.Contains(string(b[:10000]), "package bufio") {
		t.Errorf("%d bytes of Go's sources", len(b))
	}
}
