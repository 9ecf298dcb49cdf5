package query

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/offer"
)

func card(id string, class string, vram uint32, price credit.Micro, perf uint64) offer.Offer {
	return offer.Offer{Peer: peer.ID(id), Beacon: offer.Beacon{
		Class: class, VRAMMiB: vram, Price: price, Floor: price / 2, PerfMFLOPS: perf, Rate: 10, Free: 1, Total: 2, Region: "EU",
		IssuedMs: noon.UnixMilli(), TTL: 60, MaxLease: 7200, Claimed: id == "d",
	}}
}

var shop = []offer.Offer{
	card("a", "RTX 4090", 24564, 400_000, 80_000_000),
	card("b", "RTX 3090", 24576, 180_000, 35_000_000),
	card("c", "cpu", 8000, 10_000, 50_000),
	card("d", "H100", 81559, 2_000_000, 900_000_000),
	card("e", "RTX 4090", 24564, 350_000, 79_000_000),
}

// noon is when the tests ask; the offers of the shop die a minute later.
var noon = time.UnixMilli(1_000_000_000_000)

func table(offers []offer.Offer) *Table {
	t := NewTable()
	for i := range offers {
		t.Put(&offers[i])
	}
	return t
}

func matches(t testing.TB, text string) string {
	q, err := Parse(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	res := q.Run(table(shop), noon)
	var ids []string
	for _, o := range res.Offers {
		ids = append(ids, string(o.Peer))
	}
	return strings.Join(ids, "")
}

func TestMatch(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  "cbead",
		"vram>=24":                          "bead", // named sizes: a 24 GB card reports 24564 MiB
		"vram>=24GiB":                       "bd",
		"vram >= 24000MB price<0.4":         "be",
		"vram>=24GB and price<=0.4":         "bea",
		"class in [4090, 3090]":             "bea",
		"class not in [4090,cpu]":           "bd",
		"class=\"rtx 4090\"":                "ea",
		"class='RTX 4090' price<0.4":        "e",
		"class != cpu":                      "bead",
		"class=RTX":                         "bea",
		"class=40":                          "",
		"not class=cpu not vram>30":         "bea",
		"class=cpu or class=h100":           "cd",
		"(class=cpu or class=h100) perf>1t": "d",
		"class=cpu or class=h100 perf>1t":   "cd", // and binds tighter than or
		"perf>=80T":                         "ad",
		"perf>=79tflops perf<80t":           "e",
		"perf=50":                           "c",
		"slots>1":                           "",
		"region=eu":                         "cbead",
		"region=\"\"":                       "",
		"rate<=0.00001":                     "cbead",
		"rate<0.00001":                      "",
		"floor<0.006":                       "c",
		"price in [0.18, 2]":                "bd",
		"PRICE<0.4 AND NOT Class=cpu":       "be",
		"price==0.4":                        "a",
		"price=0.400000":                    "a",
		"lease>=2 speed=measured":           "cbea",
		"lease>=2h not speed=Measured":      "d",
		"lease<120min or speed=claimed":     "d",
	} {
		if got := matches(t, text); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestPeerPrefix(t *testing.T) {
	id := shop[0].Peer.String()
	if got := matches(t, "peer="+id); !strings.Contains(got, "a") {
		t.Errorf("got %q", got)
	}
}

func TestSortAndLimit(t *testing.T) {
	for keys, want := range map[string]string{
		"price": "cbead", "price-": "daebc", "class,price": "dbeac", "class,price-": "dbaec", "vram-,price": "dbeac", "peer": "abcde",
	} {
		q, err := Query{}.SortBy(keys)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, o := range q.Run(table(shop), noon).Offers {
			got += string(o.Peer)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", keys, got, want)
		}
	}
	res := Query{}.Limit(2).Run(table(shop), noon)
	if len(res.Offers) != 2 || res.Matched != 5 {
		t.Errorf("limit: %d offers, %d matched", len(res.Offers), res.Matched)
	}
}

func TestSyntaxErrors(t *testing.T) {
	for text, want := range map[string]string{
		"vrma>=24":                            `column 1: unknown field "vrma"; did you mean vram?`,
		"price<0.4 clas=x":                    `column 11: unknown field "clas"; did you mean class?`,
		"colour=red":                          "fields are class, floor, lease, peer",
		"vram":                                "column 5: want an operator after vram, found the end",
		"vram>=":                              "column 7: want a value, found the end",
		"vram>=24XB":                          `column 7: vram "24XB": not a number with a known unit`,
		"price<cheap":                         `column 7: price "cheap": not a number`,
		"price<0.0000001":                     "finer than the smallest unit",
		"price<-1":                            "not a number",
		"vram>99999999999999999999":           "not a number in range",
		"perf>99999999999999999t":             "number too large",
		"class>4090":                          "class is text and has no >",
		"class in 4090":                       "want [ after in",
		"class in [4090":                      "want , or ] in the list, found the end",
		"class in []":                         "want a value",
		"(vram>1":                             "close the ( of column 1",
		"vram>1)":                             `column 7: unexpected ")"`,
		"vram>1 or":                           "want a field, found the end",
		"and vram>1":                          `unknown field "and"`,
		"vram>1 and and price<1":              `unknown field "and"`,
		"class='x":                            "column 7: quote without an end",
		"class ! x":                           "lonely !",
		"vram not > 1":                        "want an operator after vram",
		"ä=1":                                 "column 1: unknown field",
		"region=ä ö=1":                        `column 10: unknown field "ö"`,
		strings.Repeat("(", 40) + "vram>1":    "nested deeper than 32",
		strings.Repeat("not ", 40) + "vram>1": "nested deeper than 32",
		strings.Repeat("x", MaxText+1):        "at most 4096",
		"\xff":                                "UTF-8",
	} {
		_, err := Parse(text)
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: got %v, want %q", text, err, want)
		}
	}
	if _, err := (Query{}).SortBy("price,perff-"); err == nil || !strings.Contains(err.Error(), `column 7: unknown sort field "perff"; did you mean perf?`) {
		t.Errorf("sort: %v", err)
	}
}

func TestReasons(t *testing.T) {
	q, err := Parse("vram>=24GB (price<0.3 or perf>100T) not class=cpu")
	if err != nil {
		t.Fatal(err)
	}
	offers := slices.Clone(shop)
	offers[3].Beacon.Free = 0
	res := q.Run(table(offers), noon)
	got := fmt.Sprint(res.Rejected)
	want := `[{price<0.3 or perf>100T 2} {no free slots 1} {vram>=24GB 1}]`
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, r := range q.Explain(table(offers), noon) {
		if r.Offer.Beacon.Class == "cpu" && (r.Reason.Field != "vram" || r.Reason.Kind != Failed) {
			t.Errorf("cpu: %+v", r.Reason)
		}
	}
}

// TestCountsAddUp holds for any query over any book: each offer is matched or rejected, once.
func TestCountsAddUp(t *testing.T) {
	conditions := []string{"vram>=%d", "price<0.%d", "class=c%d", "class in [c%d, c2]", "not perf<%d", "slots>=%d", "(price>0.%d or vram<3)"}
	rapid.Check(t, func(t *rapid.T) {
		var parts []string
		for range rapid.IntRange(0, 4).Draw(t, "conditions") {
			parts = append(parts, fmt.Sprintf(rapid.SampledFrom(conditions).Draw(t, "condition"), rapid.IntRange(0, 9).Draw(t, "n")))
		}
		joint := rapid.SampledFrom([]string{" ", " and ", " or "}).Draw(t, "joint")
		q, err := Parse(strings.Join(parts, joint))
		if err != nil {
			t.Fatal(err)
		}
		var offers []offer.Offer
		for i := range rapid.IntRange(0, 30).Draw(t, "offers") {
			n := rapid.Uint32Range(0, 9).Draw(t, "seed")
			o := card(fmt.Sprint(i), fmt.Sprintf("c%d", n%4), n<<10, credit.Micro(n*100_000), uint64(n)*1000)
			o.Beacon.Free = uint16(n % 3)
			offers = append(offers, o)
		}
		res := q.Run(table(offers), noon)
		total := res.Matched
		for _, c := range res.Rejected {
			total += c.Offers
		}
		limit := rapid.IntRange(1, 5).Draw(t, "limit")
		cut := q.Limit(limit).Run(table(offers), noon)
		if cut.Matched != res.Matched || !slices.EqualFunc(cut.Offers, res.Offers[:min(limit, len(res.Offers))], func(a, b offer.Offer) bool { return a.Peer == b.Peer }) {
			t.Fatalf("the first %d are not those of the whole list", limit)
		}
		if total != len(offers) || len(q.Explain(table(offers), noon)) != len(offers)-res.Matched {
			t.Fatalf("%q: %d matched and rejected, %d explained, book of %d", parts, total, len(q.Explain(table(offers), noon)), len(offers))
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"vram>=24 price<0.4 class in [4090,3090]", "not (a=1 or b!=2)", "class='x y' and perf>1.5t", "region not in [eu, \"us west\"]", "((((", "price<0.0000001",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := Parse(text)
		if err != nil {
			var syntax *SyntaxError
			if !errors.As(err, &syntax) || syntax.Column < 1 || syntax.Column > len(text)+1 {
				t.Fatalf("%q: error without a column in the text: %v", text, err)
			}
			return
		}
		res := q.Run(table(shop), noon)
		for _, c := range res.Rejected {
			if c.Reason.Kind == Failed && !strings.Contains(text, c.Reason.Condition) {
				t.Errorf("%q: reason %q is not in the query", text, c.Reason.Condition)
			}
		}
	})
}
