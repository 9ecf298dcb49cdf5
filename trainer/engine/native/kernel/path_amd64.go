package kernel

import "golang.org/x/sys/cpu"

// supported reports whether the CPU has the instructions of an assembly path and the system saves its registers.
func supported(p Path) bool {
	avx2 := cpu.X86.HasAVX2 && cpu.X86.HasFMA
	if p == AVX512 {
		return avx2 && cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL
	}
	return avx2
}
