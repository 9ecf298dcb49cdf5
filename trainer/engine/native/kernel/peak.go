package kernel

// MultiplyAdds runs fused multiply-adds from registers alone on the calling goroutine for some 20 ms, and returns how
// many scalar ones they make, so that a caller with a clock learns the core's peak. It returns 0 on the portable path.
func (s Set) MultiplyAdds() int {
	return 0
}
