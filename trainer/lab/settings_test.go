package lab

import (
	"testing"

	"github.com/capacloud/capanode/trainer/model"
)

// Every case of the published comparison runs, keeps to its budget but for a little, and the budgets are what is compared.
func TestFrontKeepsToItsBudgets(t *testing.T) {
	if testing.Short() {
		t.Skip("trains with every case")
	}
	s := setup(4, 60)
	s.Windows, s.Rows = 8, 1
	s.Model = model.Spec{Family: model.FamilyLlama, Vocab: 128, Width: 16, Layers: 1, Heads: 2, KVHeads: 1, FeedForward: 16, Context: 8,
		RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}
	outcomes, err := Study{Setup: s, Seeds: []uint64{1}}.Run(t.Context(), Front(s, true))
	if err != nil {
		t.Fatal(err)
	}
	families := map[string]int{}
	for _, o := range outcomes {
		families[o.Family]++
		// Headers and the last partial block weigh more on 3,000 parameters than on models; sparse rounds take at least a step.
		if o.Budget > 1.0/200 && o.Share > 1.7*o.Budget {
			t.Errorf("%s, %s: 1/%.0f of data-parallel's bytes for a budget of 1/%.0f", o.Family, o.Method.Name(), 1/o.Share, 1/o.Budget)
		}
	}
	if families[Ours] != len(Budgets) || len(families) != 9 {
		t.Errorf("cases by family: %v", families)
	}
	if won, of := Won(outcomes, []string{Ours}, Others); of != len(Budgets) || won > of {
		t.Errorf("%d of %d budgets won", won, of)
	}
}

func TestWon(t *testing.T) {
	case1 := func(family string, budget, share, loss float64) Outcome {
		return Outcome{Case: Case{Family: family, Budget: budget}, Share: share, Loss: loss}
	}
	tenth, hundredth, last := Budgets[0], Budgets[2], Budgets[4]
	outcomes := []Outcome{
		case1(Ours, tenth, tenth, 2.0), case1("b", tenth, tenth, 2.1), // won
		case1(Ours, hundredth, hundredth, 2.2), case1("b", Budgets[1], hundredth/2, 2.15), // what needs fewer bytes is better
		case1(Ours, last, 2*last, 2.3), // over its budget
		case1("c", 0, 0, 2.5),
	}
	if won, of := Won(outcomes, []string{Ours}, []string{"b", "c"}); won != 1 || of != 3 {
		t.Errorf("won %d of %d, want 1 of 3", won, of)
	}
	if won, of := Won(outcomes, []string{Ours, "b"}, []string{"c"}); won != 3 || of != 4 {
		t.Errorf("together won %d of %d, want 3 of 4", won, of)
	}
}

func TestParityHasTheRoundsOfTheProgram(t *testing.T) {
	s := setup(4, 40)
	s.Windows = 8
	outcomes, err := Study{Setup: s, Seeds: []uint64{1, 2}}.Run(t.Context(), Parity(s))
	if err != nil {
		t.Fatal(err)
	}
	if outcomes[1].Family != Ours || outcomes[1].Rounds != outcomes[2].Rounds || outcomes[1].Spread <= 0 {
		t.Errorf("%g rounds of the program, %g of exact DiLoCo, spread %g", outcomes[1].Rounds, outcomes[2].Rounds, outcomes[1].Spread)
	}
}
