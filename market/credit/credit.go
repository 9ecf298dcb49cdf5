// Package credit owns the unit of account: micro-credits, one millionth of a credit, as exact integers. It refuses to
// know what a credit buys or how one is settled.
package credit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// PerCredit is the number of micro-credits in one credit.
const PerCredit = 1_000_000

// Max is the largest amount that any record may carry, in micro-credits: a trillion credits. It leaves room to add
// amounts in signed 64-bit accounts without overflow.
const Max Micro = 1_000_000_000_000_000_000

// ErrSyntax reports text that is no amount of credits.
var ErrSyntax = errors.New("no amount of credits")

// Micro is an amount in micro-credits.
type Micro uint64

// String formats the amount in credits with all six decimals: 1234 micro-credits are "0.001234".
func (m Micro) String() string {
	return fmt.Sprintf("%d.%06d", uint64(m)/PerCredit, uint64(m)%PerCredit)
}

// Parse reads an amount in credits, such as "0.4" or "25". More than six decimals, signs, exponents and amounts above
// [Max] are errors: nothing is rounded.
func Parse(text string) (Micro, error) {
	whole, frac, _ := strings.Cut(text, ".")
	if whole == "" && frac == "" || len(frac) > 6 || !digits(whole) || !digits(frac) {
		return 0, fmt.Errorf("credit: %q: want digits with at most 6 decimals, as in 0.25: %w", text, ErrSyntax)
	}
	n, err := strconv.ParseUint(whole+frac+strings.Repeat("0", 6-len(frac)), 10, 64)
	if err != nil || Micro(n) > Max {
		return 0, fmt.Errorf("credit: %q: more than %s credits: %w", text, Max, ErrSyntax)
	}
	return Micro(n), nil
}

func digits(s string) bool {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
