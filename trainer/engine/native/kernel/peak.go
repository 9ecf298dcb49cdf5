package kernel

// MultiplyAdds runs fused multiply-adds from registers alone on the calling goroutine, for some 20 ms, and returns how
// many scalar ones they make, so that a caller with a clock learns the core's peak. It returns 0 on the portable path.
func (s Set) MultiplyAdds() int {
	return s.multiplyAdds(10_000_000)
}

// multiplyAdds runs that many rounds of twelve independent vector multiply-adds.
func (s Set) multiplyAdds(rounds int) int {
	const chains = 12
	switch s.path {
	case AVX512:
		peakAVX512(rounds)
		return rounds * chains * 16
	case AVX2:
		peakAVX2(rounds)
		return rounds * chains * 8
	}
	return 0
}
