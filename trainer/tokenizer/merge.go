package tokenizer

// merges says which pairs of symbols become which symbol, the lowest rank first.
type merges struct {
	table pairTable // pair → rank << 32 | product
}

const (
	noRank = ^uint64(0)
	// fewSymbols is up to where looking at all pairs for the best one beats a heap.
	fewSymbols = 48
)

// rank returns the table's value of two symbols, noRank where they do not merge.
func (m *merges) rank(a, b int32) uint64 {
	if v, ok := m.table.get(pairOf(a, b)); ok {
		return v
	}
	return noRank
}

// merger is the scratch memory of merging.
type merger struct {
	ranks []uint64
	long  longWord
}

// apply merges symbols in place until nothing merges and returns what is left: the pair of the lowest rank first, the
// leftmost of equal ones.
func (w *merger) apply(m *merges, symbols []int32) []int32 {
	if len(symbols) > fewSymbols {
		return w.long.apply(m, symbols)
	}
	ranks := w.ranks[:0]
	for i := 1; i < len(symbols); i++ {
		ranks = append(ranks, m.rank(symbols[i-1], symbols[i]))
	}
	w.ranks = ranks[:0]
	for {
		best, at := noRank, 0
		for i, r := range ranks {
			if r < best {
				best, at = r, i
			}
		}
		if best == noRank {
			return symbols
		}
		symbols[at] = int32(uint32(best))
		symbols = append(symbols[:at+1], symbols[at+2:]...)
		ranks = append(ranks[:at], ranks[at+1:]...)
		if at > 0 {
			ranks[at-1] = m.rank(symbols[at-1], symbols[at])
		}
		if at < len(ranks) {
			ranks[at] = m.rank(symbols[at], symbols[at+1])
		}
	}
}

// longWord merges words of any length in n log n steps: a linked list of symbols and a heap of pairs, in which pairs
// that are gone stay until they come up.
type longWord struct {
	next, prev []int32 // of each symbol; -1 ends the list
	queue      candidates
}

// candidate is a pair that may be merged: the symbol at position at and its successor.
type candidate struct {
	rank uint64
	at   int32
}

type candidates []candidate

func (c candidates) less(i, j int) bool {
	return c[i].rank < c[j].rank || c[i].rank == c[j].rank && c[i].at < c[j].at
}

const gone = -1 // symbol that its predecessor has taken in

func (l *longWord) apply(m *merges, symbols []int32) []int32 {
	l.next, l.prev, l.queue = l.next[:0], l.prev[:0], l.queue[:0]
	for i := range symbols {
		l.next, l.prev = append(l.next, int32(i+1)), append(l.prev, int32(i-1))
		if i > 0 {
			l.offer(m, symbols, int32(i-1), int32(i))
		}
	}
	l.next[len(symbols)-1] = -1
	for len(l.queue) > 0 {
		top := l.pop()
		right := int32(-1)
		if symbols[top.at] != gone {
			right = l.next[top.at]
		}
		if right < 0 || m.rank(symbols[top.at], symbols[right]) != top.rank {
			continue
		}
		symbols[top.at], symbols[right] = int32(uint32(top.rank)), gone
		after := l.next[right]
		l.next[top.at] = after
		if after >= 0 {
			l.prev[after] = top.at
			l.offer(m, symbols, top.at, after)
		}
		if before := l.prev[top.at]; before >= 0 {
			l.offer(m, symbols, before, top.at)
		}
	}
	kept := symbols[:0]
	for _, s := range symbols {
		if s != gone {
			kept = append(kept, s)
		}
	}
	return kept
}

// offer queues the pair of two neighbours. It and pop are a binary heap, without the allocations of package heap.
func (l *longWord) offer(m *merges, symbols []int32, a, b int32) {
	r := m.rank(symbols[a], symbols[b])
	if r == noRank {
		return
	}
	l.queue = append(l.queue, candidate{r, a})
	for i := len(l.queue) - 1; i > 0; {
		parent := (i - 1) / 2
		if !l.queue.less(i, parent) {
			break
		}
		l.queue[i], l.queue[parent] = l.queue[parent], l.queue[i]
		i = parent
	}
}

func (l *longWord) pop() candidate {
	top, last := l.queue[0], len(l.queue)-1
	l.queue[0] = l.queue[last]
	l.queue = l.queue[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			return top
		}
		if child+1 < last && l.queue.less(child+1, child) {
			child++
		}
		if !l.queue.less(child, i) {
			return top
		}
		l.queue[i], l.queue[child] = l.queue[child], l.queue[i]
		i = child
	}
}
