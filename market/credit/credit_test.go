package credit

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Micro{
		"0": 0, "0.4": 400_000, ".5": 500_000, "25": 25_000_000, "1.": 1_000_000, "0.001234": 1234,
		"1000000000000": Max,
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", ".", "-1", "+1", "1e3", "0.0000001", "1.2.3", "1000000000000.000001", "99999999999999999999", "٣"} {
		if got, err := Parse(text); !errors.Is(err, ErrSyntax) {
			t.Errorf("Parse(%q) = %d, %v; want ErrSyntax", text, got, err)
		}
	}
}

func TestStringRoundTrip(t *testing.T) {
	if got := Micro(1234).String(); got != "0.001234" {
		t.Errorf("got %q", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		m := Micro(rapid.Uint64Range(0, uint64(Max)).Draw(t, "micro"))
		back, err := Parse(m.String())
		if err != nil || back != m {
			t.Fatalf("%d → %q → %d, %v", m, m, back, err)
		}
	})
}

// FuzzParse checks that text is no amount, or one that its own writing gives again, never above the largest.
func FuzzParse(f *testing.F) {
	for _, text := range []string{Max.String(), Micro(1234).String(), ".5", "1.", "-1", "1e3", "0.0000001"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := Parse(text)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again, err := Parse(m.String()); err != nil || again != m || m > Max {
			t.Fatalf("%q → %d → %q → %d, %v", text, m, m, again, err)
		}
	})
}
