package node

import (
	"context"
	"path/filepath"
	"reflect"
	"testing"
)

func TestReleasable(t *testing.T) {
	run := func(id, role string, state RunState, dataset string) Run {
		return Run{ID: id, Role: role, State: state, Dataset: dataset}
	}
	for name, c := range map[string]struct {
		all  []Run
		want []string
	}{
		"nothing":      {nil, nil},
		"under way":    {[]Run{run("a", "requester", RunTraining, "x")}, nil},
		"only planned": {[]Run{run("a", "requester", RunPlanned, "x")}, []string{"dataset/x", "init/a", "job/a"}},
		"of each ending": {[]Run{run("a", "requester", RunDone, "x"), run("b", "requester", RunFailed, "y"), run("c", "requester", RunStopped, "x")},
			[]string{"dataset/x", "dataset/y", "init/a", "init/b", "init/c", "job/a", "job/b", "job/c"}},
		"a dataset of two":             {[]Run{run("a", "requester", RunDone, "x"), run("b", "requester", RunTraining, "x")}, []string{"init/a", "job/a"}},
		"planned anew while under way": {[]Run{run("a", "requester", RunTraining, "x"), run("a", "requester", RunPlanned, "x")}, nil},
		"of a provider":                {[]Run{run("a", "provider", RunDone, "x")}, nil},
	} {
		if got := releasable(c.all); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// pinsOf lists the names of a home's pins; nobody runs on it.
func pinsOf(t *testing.T, home string, cfg Config) (names []string) {
	t.Helper()
	ctx := context.Background()
	n, err := openNode(ctx, home, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	pins, err := n.store.Pins(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		names = append(names, p.Name)
	}
	return names
}

// A dry run leaves nothing in the store that its owner would have to remove by name.
func TestDryRunKeepsNothing(t *testing.T) {
	ctx, home, cfg := context.Background(), t.TempDir(), localConfig(t)
	o := TrainOptions{JobPath: testJob(t, 3), Home: home, Config: cfg, Out: filepath.Join(t.TempDir(), "model"), Local: 2, DryRun: true}
	said := newEvents()
	o.Emit = said.emit
	if err := Train(ctx, o); err != nil {
		t.Fatal(err)
	}
	if plans := of[PlanEvent](said); len(plans) != 1 || plans[0].Shards == 0 {
		t.Errorf("plans %+v", plans)
	}
	if pins := pinsOf(t, home, cfg); len(pins) > 0 {
		t.Errorf("pins %v", pins)
	}
	if _, err := Collect(ctx, Use{Home: home, Config: cfg}); err != nil {
		t.Fatal(err)
	}
	n, err := openNode(ctx, home, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if all, err := n.store.List(ctx); err != nil || len(all) > 0 {
		t.Errorf("objects %v, %v", all, err)
	}
}
