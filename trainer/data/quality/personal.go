package quality

import (
	"bytes"
	"math/big"
)

// Personal is a kind of personal or secret data that a pattern can find.
type Personal int

// The kinds. A hint is no proof: numbers that look like a phone's may be anything.
const (
	Email Personal = iota
	Phone
	IPAddress  // IPv4, outside the ranges that name nobody
	CreditCard // 13 to 19 digits with a right Luhn digit and a known first one
	IBAN       // with a right check sum
	PrivateKey // the head of a PEM block
	APIKey     // the prefix and length of a well-known service's key
	personalKinds
)

// String names the kind as reports do.
func (p Personal) String() string {
	return [personalKinds]string{"email", "phone", "ip_address", "credit_card", "iban", "private_key", "api_key"}[p]
}

// PersonalKinds is the number of kinds.
func PersonalKinds() int { return int(personalKinds) }

// triggers are the bytes at which a look is worth it.
var triggers = func() (t [256]bool) {
	for c := '0'; c <= '9'; c++ {
		t[c] = true
	}
	for _, c := range "@+-" {
		t[c] = true
	}
	for _, k := range apiKeys {
		t[k.prefix[0]] = true
	}
	for c := 'A'; c <= 'Z'; c++ { // IBANs
		t[c] = true
	}
	return t
}()

var apiKeys = []struct {
	prefix string
	length int // of what follows, at least
}{
	{"AKIA", 16}, {"ASIA", 16}, {"AIza", 35}, {"ghp_", 36}, {"gho_", 36}, {"ghs_", 36}, {"github_pat_", 50}, {"glpat-", 20}, {"xoxb-", 20}, {"xoxp-", 20},
	{"sk_live_", 20}, {"rk_live_", 20}, {"sk-proj-", 40}, {"sk-ant-", 40}, {"hf_", 34}, {"npm_", 36}, {"pypi-", 50}, {"SG.", 60}, {"dop_v1_", 60},
}

// keysBy has the keys that begin with a byte.
var keysBy = func() (t [256][]struct {
	prefix string
	length int
}) {
	for _, k := range apiKeys {
		t[k.prefix[0]] = append(t[k.prefix[0]], k)
	}
	return t
}()

// FindPersonal calls found for each hint in a text, in their order.
func FindPersonal(text []byte, found func(Personal, []byte)) {
	for i := 0; i < len(text); {
		c := text[i]
		if !triggers[c] {
			i++
			continue
		}
		if kind, from, to := hintAt(text, i); to > i {
			found(kind, text[from:to])
			i = to
			continue
		}
		if c >= '0' && c <= '9' { // a run of digits is looked at once, from its start
			for i < len(text) && text[i] >= '0' && text[i] <= '9' {
				i++
			}
			continue
		}
		i++
	}
}

// hintAt looks for a hint at byte i. to is where it ends, 0 for none.
func hintAt(text []byte, i int) (kind Personal, from, to int) {
	c := text[i]
	if c == '@' {
		from, to = email(text, i)
		return Email, from, to
	}
	if i > 0 && alnum(text[i-1]) {
		return 0, 0, 0
	}
	switch {
	case c == '-':
		if bytes.HasPrefix(text[i:], []byte("-----BEGIN ")) {
			head := text[i:min(len(text), i+64)]
			if at := bytes.Index(head, []byte("PRIVATE KEY-----")); at > 0 {
				return PrivateKey, i, i + at + len("PRIVATE KEY-----")
			}
		}
		return 0, 0, 0
	case c == '+' || c >= '0' && c <= '9':
		return number(text, i)
	}
	for _, k := range keysBy[c] {
		if len(text)-i > len(k.prefix)+k.length && string(text[i:i+len(k.prefix)]) == k.prefix {
			end := i + len(k.prefix)
			for end < len(text) && (alnum(text[end]) || text[end] == '_' || text[end] == '-' || text[end] == '.') {
				end++
			}
			if end-i >= len(k.prefix)+k.length {
				return APIKey, i, end
			}
		}
	}
	return IBAN, i, iban(text, i)
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
}

// email returns the bounds of an address around the sign at byte at.
func email(text []byte, at int) (from, to int) {
	from = at
	for from > 0 && at-from < 64 && (alnum(text[from-1]) || bytes.IndexByte([]byte("._%+-"), text[from-1]) >= 0) {
		from--
	}
	end, dot := at+1, 0
	for end < len(text) && end-at < 254 && (alnum(text[end]) || text[end] == '-' || text[end] == '.') {
		if text[end] == '.' {
			if end == at+1 || text[end-1] == '.' {
				break
			}
			dot = end
		}
		end++
	}
	if end > 0 && text[end-1] == '.' { // the end of a sentence
		end--
		dot = bytes.LastIndexByte(text[at:end], '.') + at
	}
	if from == at || dot <= at+1 || end-dot < 3 || !letters(text[dot+1:end]) {
		return 0, 0
	}
	return from, end
}

func letters(b []byte) bool {
	for _, c := range b {
		if c|0x20 < 'a' || c|0x20 > 'z' {
			return false
		}
	}
	return true
}

// number judges what begins with a digit or a plus sign: an IP address, a card, a phone number.
func number(text []byte, i int) (kind Personal, from, to int) {
	end, digits, dots, groups := i, 0, 0, 1
	var plain [24]byte
	for ; end < len(text) && end-i < 40; end++ {
		switch c := text[end]; {
		case c >= '0' && c <= '9':
			if digits < len(plain) {
				plain[digits] = c
			}
			digits++
			continue
		case c == '+' && end == i:
			continue
		case c == '.' && end+1 < len(text) && text[end+1] >= '0' && text[end+1] <= '9':
			dots++
			continue
		case (c == ' ' || c == '-' || c == '(' || c == ')' || c == '/') && end > i && end+1 < len(text) && (text[end+1] >= '0' && text[end+1] <= '9' || text[end+1] == '('):
			groups++
			continue
		}
		break
	}
	if end < len(text) && alnum(text[end]) || digits > 19 {
		return 0, 0, 0
	}
	switch {
	case dots == 3 && groups == 1 && ipv4(text[i:end]):
		return IPAddress, i, end
	case dots == 0 && digits >= 13 && luhn(plain[:digits]) && bytes.IndexByte([]byte("3456"), plain[0]) >= 0 && text[i] != '+':
		return CreditCard, i, end
	case text[i] == '+' && digits >= 8 && digits <= 15, groups >= 3 && digits >= 9 && digits <= 13 && dots == 0 && !looksLikeDate(text[i:end]):
		return Phone, i, end
	}
	return 0, 0, 0
}

// looksLikeDate says whether digits are a date, or a date with a time, as 2024-01-31 12.
func looksLikeDate(b []byte) bool {
	year := func(b []byte) bool { return len(b) >= 4 && (b[0] == '1' && b[1] == '9' || b[0] == '2' && b[1] == '0') }
	return len(b) >= 8 && (year(b) && (b[4] == '-' || b[4] == '/' || b[4] == ' ') || year(b[6:]) && (b[2] == '-' || b[2] == '/'))
}

// ipv4 checks four numbers, and leaves out addresses that belong to nobody's line: private, loopback, link-local, documentation
// and version-like ones.
func ipv4(b []byte) bool {
	var parts []int
	for _, p := range bytes.Split(b, []byte{'.'}) {
		if len(p) == 0 || len(p) > 3 || len(p) > 1 && p[0] == '0' {
			return false
		}
		n := 0
		for _, c := range p {
			if c < '0' || c > '9' {
				return false
			}
			n = n*10 + int(c-'0')
		}
		parts = append(parts, n)
	}
	if len(parts) != 4 || max(parts[0], parts[1], parts[2], parts[3]) > 255 {
		return false
	}
	a, b2, c := parts[0], parts[1], parts[2]
	private := a < 10 || a == 10 || a == 127 || a >= 224 || a == 172 && b2 >= 16 && b2 < 32 || a == 192 && b2 == 168 || a == 169 && b2 == 254
	documentation := a == 192 && b2 == 0 && c == 2 || a == 198 && b2 == 51 && c == 100 || a == 203 && b2 == 0 && c == 113
	return !private && !documentation
}

// luhn checks the last digit of a card's number (ISO/IEC 7812-1).
func luhn(digits []byte) bool {
	sum := 0
	for i := range digits {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum += d
	}
	return sum%10 == 0 && sum > 0
}

// iban returns where an account number (ISO 13616) that begins at byte i ends, 0 where there is none.
func iban(text []byte, i int) int {
	capital := func(c byte) bool { return c >= 'A' && c <= 'Z' }
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	if i+15 > len(text) || !capital(text[i]) || !capital(text[i+1]) || !digit(text[i+2]) || !digit(text[i+3]) {
		return 0
	}
	var plain []byte
	end := i
	for ; end < len(text) && len(plain) < 34; end++ {
		if text[end] == ' ' && (end-i)%5 == 4 {
			continue
		}
		if !capital(text[end]) && !digit(text[end]) {
			break
		}
		plain = append(plain, text[end])
	}
	if len(plain) < 15 || end < len(text) && alnum(text[end]) {
		return 0
	}
	var decimal []byte
	for _, c := range append(plain[4:], plain[:4]...) {
		if digit(c) {
			decimal = append(decimal, c)
		} else {
			decimal = append(decimal, '0'+(c-'A'+10)/10, '0'+(c-'A'+10)%10)
		}
	}
	n, ok := new(big.Int).SetString(string(decimal), 10)
	if !ok || n.Mod(n, big.NewInt(97)).Int64() != 1 {
		return 0
	}
	if text[end-1] == ' ' {
		end--
	}
	return end
}

// Mask hides all but the ends of what was found, so that a report does not spread it.
func Mask(found []byte) string {
	out := []byte(nil)
	for i, c := range found {
		switch {
		case i < 2 || i >= len(found)-2 || c == '@' || c == '.' && i > len(found)/2:
			out = append(out, c)
		case alnum(c) || c >= 0x80:
			out = append(out, '*')
		default:
			out = append(out, c)
		}
	}
	if len(out) > 40 {
		out = append(out[:37], "..."...)
	}
	return string(out)
}

// Hints is the number of all hints of personal or secret data.
func (m *Measure) Hints() (n int64) {
	for _, k := range m.Personal {
		n += k
	}
	return n
}
