package data

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/data/quality"
)

// dirtyCorpus has a known number of everything that a report counts.
func dirtyCorpus() map[string]string {
	r := rand.New(rand.NewPCG(8, 9))
	sentence := func() string {
		return fmt.Sprintf("The keeper of house %d said that the %d lamps have to be lit with care before %d.\n", r.IntN(1e6), r.IntN(1e6), r.IntN(1e6))
	}
	files := map[string]string{}
	for i := range 40 {
		var b strings.Builder
		for range 12 {
			b.WriteString(sentence())
		}
		b.WriteString("Printed by the house of lamps, all rights kept\n")
		files[fmt.Sprintf("en/%02d.txt", i)] = b.String()
	}
	files["en/copy.txt"] = files["en/00.txt"]
	files["en/near.txt"] = files["en/01.txt"] + "One more line.\n"
	files["de/brief.txt"] = strings.Repeat("Sehr geehrte Damen, schreiben Sie an anna.muster@example.org oder rufen Sie die Nummer auf dem Brief an.\n", 3)
	return files
}

func TestInspect(t *testing.T) {
	o := options(write(t, dirtyCorpus()))
	r, err := Inspect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Documents != 42 || r.ExactDuplicates.Documents != 1 || r.NearDuplicates.Documents != 1 || r.Read.Files != 43 {
		t.Errorf("%d documents, %+v exact, %+v near", r.Documents, r.ExactDuplicates, r.NearDuplicates)
	}
	if r.Languages[0].Name != "en" || r.Languages[0].Documents != 41 || r.Languages[1].Name != "de" {
		t.Errorf("languages %+v", r.Languages)
	}
	if lines := r.Boilerplate.Lines; len(lines) != 1 || lines[0].Documents != 41 || r.Boilerplate.Share < 0.02 || r.Boilerplate.Share > 0.1 {
		t.Errorf("boilerplate %+v", r.Boilerplate)
	}
	mail := r.Personal[quality.Email]
	if mail.Count != 3 || mail.Documents != 1 || len(mail.Samples) != 1 || strings.Contains(mail.Samples[0], "muster") {
		t.Errorf("hints %+v", mail)
	}
	if v := r.Tokens; v == nil || v.Tokens < r.Bytes || v.Entropy < 3 || v.Entropy > 6 || v.Used > 100 {
		t.Errorf("tokens %+v", v)
	}
	if r.Lengths.Min <= 0 || r.Lengths.P50 < r.Lengths.P10 || r.Lengths.Max < r.Lengths.P99 {
		t.Errorf("lengths %+v", r.Lengths)
	}
	broken := map[string]int64{}
	for _, b := range r.Rules {
		broken[b.Rule] = b.Documents
	}
	if broken["min_stop_words=2"] != 1 || broken["max_repeated_lines=0.3"] != 1 {
		t.Errorf("rules %+v", r.Rules)
	}
	first, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Inspect(context.Background(), o); err != nil {
		t.Error(err)
	} else if second, _ := json.Marshal(again); string(second) != string(first) {
		t.Errorf("a second look differs:\n%s\n%s", first, second)
	}
}

// The dataset's report tells the same of the text as that of the files, and the leakage that a copy across the sides makes.
func TestInspectDataset(t *testing.T) {
	files := dirtyCorpus()
	o := options(write(t, files))
	store := memory(t)
	m, _, _, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	set, err := InspectDataset(context.Background(), m, store.ReadAll, o)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := Inspect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if set.Documents != disk.Documents || set.Bytes != disk.Bytes || set.Words != disk.Words || set.Personal[quality.Email].Count != 3 || set.ExactDuplicates.Documents != 0 {
		t.Errorf("dataset %+v\nfiles %+v", set, disk)
	}
	if set.Tokens.Tokens != int64(m.TrainTokens+m.ValTokens) || len(set.Sources) != 2 {
		t.Errorf("tokens %+v, sources %+v", set.Tokens, set.Sources)
	}
	if math.Abs(set.Leakage.Share-disk.Leakage.Share) > 1e-9 {
		t.Errorf("leakage %+v, of the files %+v", set.Leakage, disk.Leakage)
	}
}

func TestLeakageIsSeen(t *testing.T) {
	files := map[string]string{}
	shared := strings.Repeat("", 1)
	r := rand.New(rand.NewPCG(1, 1))
	for range 40 {
		shared += fmt.Sprintf("w%d ", r.IntN(1e6))
	}
	for i := range 60 {
		own := ""
		for range 40 {
			own += fmt.Sprintf("w%d ", r.IntN(1e6))
		}
		files[fmt.Sprintf("%02d.txt", i)] = shared + "\n" + own
	}
	o := options(write(t, files))
	o.ValFraction = 0.2
	report, err := Inspect(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	// A held-out text has 68 runs of 13 words, of which 28 lie in the shared part; the shared ones count once for all texts.
	if report.Leakage.Share < 0.02 || report.Leakage.Share > 0.4 || len(report.Warnings) == 0 {
		t.Errorf("%+v, %v", report.Leakage, report.Warnings)
	}
	for name := range files {
		files[name] = files[name][len(shared):]
	}
	o.Corpus.Paths = []string{write(t, files)}
	if report, err = Inspect(context.Background(), o); err != nil || report.Leakage.Share != 0 || report.Leakage.Grams == 0 {
		t.Errorf("%+v, %v", report.Leakage, err)
	}
}

func TestInspectRefusals(t *testing.T) {
	o := options(write(t, map[string]string{"a.txt": ""}))
	if _, err := Inspect(context.Background(), o); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
	o.Filters = []string{"nonsense"}
	if _, err := Inspect(context.Background(), o); !errors.Is(err, quality.ErrRule) {
		t.Error(err)
	}
}
