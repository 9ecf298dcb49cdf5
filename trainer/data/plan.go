package data

import (
	"math"

	"github.com/capacloud/capanode/storage/dataset"
)

const (
	autoShards     = 32      // wanted training shards: enough that a few dozen peers never share one in a round
	maxShardTokens = 4 << 20 // largest automatic shard: 8 MiB of 16-bit tokens, seconds of a home line
	maxShards      = 8192    // keeps the manifest under one block of 1 MiB
	leastWindows   = 4       // fewest windows in an automatic shard
	defaultContext = 512
)

// heldOut returns the threshold under which a part's key means held out, given the smallest and largest key of all. The rule is by
// content, so a document stays on its side when the corpus grows. Where the share is too small to catch any part, the one with
// the smallest key is held out; where it would catch all, the one with the largest is kept.
func heldOut(smallest, largest uint64, fraction float64) uint64 {
	if fraction <= 0 || smallest >= largest { // a single document trains
		return 0
	}
	threshold := uint64(math.MaxUint64)
	if share := fraction * 0x1p64; share < 0x1p64 {
		threshold = uint64(share)
	}
	return min(max(threshold, smallest+1), largest)
}

// shardCounts returns how many shards of nearly equal size each side is cut into.
func shardCounts(o Options, train, val uint64) (trainShards, valShards int, err error) {
	size := o.ShardTokens
	least := uint64(leastWindows*o.Context + 1)
	if size != 0 {
		least = uint64(o.Context + 1)
	} else {
		size = min(max(train/autoShards, least), maxShardTokens)
	}
	size = max(size, least, train/maxShards+1)
	largest := uint64(dataset.MaxShardBytes / o.dtype().Width())
	count := max(train/size, (train+largest-1)/largest, uint64(o.Peers), 1)
	if train < count*least {
		return 0, 0, &TooSmallError{Tokens: train, Need: uint64(o.Peers) * least, Peers: o.Peers, Context: o.Context}
	}
	if val == 0 {
		return int(count), 0, nil
	}
	// What is held out may be far more than what is trained on, where a file repeats itself: its shards are no more than the others
	// unless they must be.
	return int(count), int(max(min(val/size, count), (val+largest-1)/largest, 1)), nil
}

// shardSize returns the tokens of shard i when total tokens are cut into count shards whose sizes differ by one at most.
func shardSize(total uint64, count, i int) uint64 {
	size := total / uint64(count)
	if uint64(i) < total%uint64(count) {
		size++
	}
	return size
}
